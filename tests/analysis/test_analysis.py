"""Analyses of climbs and seeds: numbers worked out by hand, slow second ways, properties, and refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from advcam_attr import heads
from advcam_attr.analysis.amplification import amplification, plot_amplification
from advcam_attr.analysis.class_gains import class_gains, plot_class_gains
from advcam_attr.analysis.failures import image_gains
from advcam_attr.analysis.input_saliency import (
    SaliencyShares,
    input_saliency,
    plot_input_saliency,
    plot_saliency_shares,
)
from advcam_attr.analysis.landscape import Attack, landscape, plot_landscape, softmax_loss
from advcam_attr.analysis.regularizer_effects import NONE, VARIANTS, regularizer_effects, variant, without_others
from advcam_attr.analysis.samples import concatenate
from advcam_attr.analysis.score_curves import plot_score_curves, score_curves
from advcam_attr.analysis.seed_curves import plot_seed_curves, seed_curve
from advcam_attr.analysis.trajectories import embed, plot_trajectories, require_all, trajectories
from advcam_attr.cli import main as cli
from advcam_attr.climbing import climb, recipes
from advcam_attr.metrics.evaluation import Scope, SeedEvaluation
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.types import AdvCAMError, ClimbStep

NONE_YET = torch.empty(0)


def walk_of(*maps: list[list[list[float]]]) -> list[ClimbStep]:
    """A climb whose maps are these."""
    found = [torch.tensor(m) for m in maps]
    all_rows = torch.ones(len(found[0]), dtype=torch.bool)
    return [ClimbStep(t, NONE_YET, NONE_YET, m, m[:, None], NONE_YET, all_rows) for t, m in enumerate(found)]


def walk_on(net: nn.Module, x: torch.Tensor, target: torch.Tensor, name: str = NONE, steps: int = 3) -> list[ClimbStep]:
    plan = variant(recipes.get("auto", flip=False).plan(), name)
    return list(climb(heads.view(net), x, target, plan, steps=steps))


# --- Fig. 2 -----------------------------------------------------------------------------------------------------------


def test_amplification_by_hand():
    walk = walk_of([[[10.0, 5.0], [2.0, 1.0]]], [[[20.0, 15.0], [8.0, 99.0]]])
    found = amplification(walk)
    assert found.discriminative.tolist() == [True, True, False], "1.0 is a tenth of the peak, which is not above it"
    assert found.ratio.tolist() == [[1, 2], [1, 3], [1, 4]]
    assert found.growth().tolist() == [1.0, pytest.approx(4 / 2.5)]
    told = found.describe()
    assert told["discriminative"]["mean"] == [1.0, 2.5]
    assert told["other"]["q50"] == [1.0, 4.0]


def test_amplification_of_maps_without_evidence_has_no_cells():
    found = amplification(walk_of([[[-1.0, 0.0]]], [[[5.0, 5.0]]]))
    assert found.ratio.shape == (0, 2)
    assert found.describe()["growth"] == [None, None]
    plot_amplification({"none": found})


def test_scaling_the_maps_changes_no_ratio():
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).tolist()
    scaled = (7 * torch.tensor(maps)).tolist()
    one, other = amplification(walk_of(*maps)), amplification(walk_of(*scaled))
    torch.testing.assert_close(one.ratio, other.ratio)
    assert torch.equal(one.discriminative, other.discriminative)


# --- Fig. 3 -----------------------------------------------------------------------------------------------------------


def test_landscape_of_a_linear_net_by_a_slow_second_way(tiny):
    x, target = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1])
    found = landscape(heads.view(tiny), x, target, reach=0.2, points=5, seed=3)
    assert found.loss.shape == (2, 5, 5)
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(x.shape, generator=generator)
    for row in range(2):
        leaf = x[row : row + 1].clone().requires_grad_()
        softmax_loss(tiny(leaf), target[row : row + 1]).sum().backward()
        n = leaf.grad / leaf.grad.square().mean().sqrt()
        r = random[row : row + 1] / random[row : row + 1].square().mean().sqrt()
        for i, a in enumerate((-0.2, -0.1, 0, 0.1, 0.2)):
            for j, b in enumerate((-0.2, -0.1, 0, 0.1, 0.2)):
                moved = softmax_loss(tiny(x[row : row + 1] + a * n + b * r), target[row : row + 1])
                assert float(found.loss[row, i, j]) == pytest.approx(moved.item(), rel=1e-4)
    assert (found.rise() > 0).all(), "along its gradient the loss rises"
    plot_landscape({"clean": found})


def test_climbing_lowers_the_loss_and_attacking_raises_it(small_net, images):
    target = torch.tensor([0, 1, 2])
    plan = variant(recipes.get("auto", flip=False).plan(), NONE)
    view = heads.view(small_net)
    up = list(climb(view, images, target, plan, steps=4))[-1].x[:, 0]
    down = list(climb(view, images, target, dataclasses.replace(plan, objective=Attack()), steps=4))[-1].x[:, 0]
    middle = [landscape(view, x, target, points=3).loss[:, 1, 1] for x in (down, images, up)]
    assert (middle[0] > middle[1]).all()
    assert (middle[1] > middle[2]).all()


def test_a_landscape_without_gradient_is_flat_along_it():
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    found = landscape(heads.view(net.eval()), torch.rand(1, 3, 4, 4), torch.tensor([0]), points=3)
    assert float(found.loss.max() - found.loss.min()) < 1e-6
    plot_landscape({"flat": found})


@pytest.mark.parametrize(("points", "reach"), [(4, 0.1), (1, 0.1), (5, 0.0)])
def test_a_landscape_that_cannot_be_drawn(tiny, points, reach):
    with pytest.raises(AdvCAMError, match="odd number of points"):
        landscape(heads.view(tiny), torch.rand(1, 3, 4, 4), torch.tensor([0]), points=points, reach=reach)


# --- Fig. 4 -----------------------------------------------------------------------------------------------------------


def test_saliency_of_a_net_with_hand_set_weights(tiny):
    x, target = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    found = input_saliency(heads.view(tiny), walk_on(tiny, x, target), target, at=(0, 3))
    assert found.steps == (0, 3)
    # class 0 reads 2 * the mean of channel 0, class 1 -3 * the mean of channel 1, over four pixels each
    torch.testing.assert_close(found.saliency[0], torch.full((2, 2, 2), 2 / 4))
    torch.testing.assert_close(found.saliency[1], torch.full((2, 2, 2), 3 / 4))
    assert (found.score[:, 1] > found.score[:, 0]).all()
    assert found.spread().tolist() == [[1.0, 1.0], [1.0, 1.0]], "four equal pixels: it takes all to hold 80 %"
    plot_input_saliency(found, [np.zeros((2, 2, 3))] * 2, ["a", "<b> & $c"])


def test_spread_counts_the_fewest_pixels():
    from advcam_attr.analysis.input_saliency import InputSaliency

    found = InputSaliency(
        (0,), torch.tensor([[[[8.0, 1.0], [1.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]), torch.zeros(2, 1)
    )
    assert found.spread()[0].tolist() == [0.25]
    assert found.describe()["spread"][1] == [None]


def test_shares_of_many_images_by_hand():
    nan = float("nan")
    found = SaliencyShares((0, 4), torch.tensor([[0.25, 0.5], [0.5, 0.25], [0.25, 1.0], [nan, nan]]))
    told = found.describe()
    assert told["rows"] == 4
    assert told["mean"] == [pytest.approx(1 / 3, abs=1e-6), pytest.approx(1.75 / 3, abs=1e-6)]
    assert told["q50"] == [0.25, 0.5], "an image without saliency has no share"
    assert told["wider_at_last"] == 2
    assert told["change"] == [0.0, 0.25]
    axes = plot_saliency_shares({"with": found, "without": SaliencyShares((0, 4), found.share[:1])}).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[25, 50], [25, 50]]
    assert "4 images" in axes.get_title()


def test_saliency_leaves_the_model_as_it_was(small_net, images):
    small_net.train()
    target = torch.tensor([0, 1, 2])
    input_saliency(heads.view(small_net), walk_on(small_net, images, target), target)
    assert small_net.training
    assert all(p.grad is None for p in small_net.parameters())


# --- Figs. 5, 6, 12 ---------------------------------------------------------------------------------------------------


def test_variants_have_what_their_names_say():
    plan = recipes.get("official").plan()
    parts = {name: variant(plan, name) for name in VARIANTS}
    assert [bool(parts[name].regularizers) for name in VARIANTS] == [False, False, True, True]
    assert [parts[name].objective == plan.objective for name in VARIANTS] == [False, True, False, True]
    assert without_others(plan.objective).others.weight == 0
    with pytest.raises(AdvCAMError, match="unknown variant 'all'; there are none, other classes"):
        variant(plan, "all")


def test_effects_follow_the_climbs(small_net, images):
    target = torch.tensor([1, 2, 3])
    walks = {name: walk_on(small_net, images, target, name) for name in VARIANTS}
    found = regularizer_effects(walks, 2, at=(0, 3), row=1)
    assert found.maps.shape[:2] == (4, 2)
    torch.testing.assert_close(found.maps[0, 1], torch.stack([s.maps[1] for s in walks[NONE]]).sum(0))
    assert found.score[0].tolist() == [float(s.logits[1, 0, 2]) for s in walks[NONE]]
    others = [max(float(s.logits[1, 0, k]) for k in (0, 1, 3, 4)) for s in walks["both"]]
    assert found.others[3].tolist() == others
    with pytest.raises(AdvCAMError, match="a climb of 3 steps has no step 9"):
        regularizer_effects(walks, 2, at=(0, 9))


# --- Figs. 15 and 16 --------------------------------------------------------------------------------------------------


def test_score_curves_fall_from_one_and_cover_more_after_a_climb(small_net, images):
    found = score_curves(walk_on(small_net, images, torch.tensor([0, 1, 2])), (32, 32))
    for curve in (found.cam, found.advcam):
        assert (curve.diff(dim=1) <= 0).all()
        assert (curve[:, 0] <= 1).all()
        assert (curve[:, -1] >= 0).all()
    plot_score_curves(found)


def test_the_area_of_a_score_curve_by_hand():
    found = score_curves(walk_of([[[4.0, 2.0, 0.0]]]), (1, 3), points=3)
    assert found.describe()["area"] == {"cam": 0.5, "advcam": 0.5}


def test_trajectories_are_the_pooled_features(tiny):
    x, target = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    walk = walk_on(tiny, x, target)
    found = trajectories(heads.view(tiny), walk, target)
    expected = torch.stack([step.x[:, 0, :2].mean((2, 3)) for step in walk], 1)
    torch.testing.assert_close(found.features, expected)


def test_tsne_is_the_same_for_the_same_seed_and_needs_points():
    pytest.importorskip("sklearn")
    features = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    from advcam_attr.analysis.trajectories import Trajectories

    found = Trajectories(features, torch.tensor([0, 0, 1, 1]))
    one, other = (embed(found, perplexity=5, seed=1) for _ in range(2))
    assert torch.equal(one.points, other.points)
    assert one.points.shape == (4, 5, 2)
    plot_trajectories(one, {0: "cat", 1: "bird"})
    with pytest.raises(
        AdvCAMError, match="more points than its perplexity of 20: 4 images, each clean and after 4 steps"
    ):
        embed(found, perplexity=20)
    with pytest.raises(AdvCAMError, match="no image is of the class 'dog'"):
        require_all(found.target, [0, 2], ["cat", "dog"])


# --- seeds: Figs. 11, 13, 14 ------------------------------------------------------------------------------------------


def evaluation(*maps: list[float], ids: tuple[str, ...] = ("a", "b")) -> SeedEvaluation:
    """Two images of one row of four pixels; the first shows class 0 on two, the second class 1 on one."""
    truths = torch.tensor([[[1, 1, 0, 0]], [[2, 0, 0, 0]]], dtype=torch.uint8)
    sweep, counts = ThresholdSweep([0.5], 3), ImageCounts(1, 3)
    for k, (row, truth) in enumerate(zip(maps, truths, strict=True)):
        histogram = sweep.histogram(torch.tensor([[row]]), [k], truth)
        sweep.add(histogram, [k])
        counts.add(histogram, [k])
    return SeedEvaluation(Scope("toy", ("cat", "dog"), ids), sweep, counts)


def test_gains_by_class_and_image_by_hand():
    before = evaluation([0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1])
    after = evaluation([0.9, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1])
    classes = class_gains(before, after)
    assert classes.classes == ("dog", "cat"), "one pixel, then two"
    assert classes.size == (1.0, 2.0)
    assert classes.cam == (1.0, 0.5)
    assert classes.advcam == (0.5, 1.0)
    assert classes.gain() == (-0.5, 0.5)
    plot_class_gains(classes)
    found = image_gains(before, after)
    assert found.ids == ("b", "a"), "the loss first"
    assert found.cam == (1.0, pytest.approx((0.5 + 2 / 3) / 2))
    assert found.advcam == (pytest.approx((0.5 + 2 / 3) / 2), 1.0)
    assert found.describe()["worse"] == 1


def test_evaluations_of_other_images_are_not_compared():
    one, other = ([0.9, 0.1, 0.1, 0.1],) * 2, ("a", "c")
    with pytest.raises(AdvCAMError, match="different images"):
        image_gains(evaluation(*one), evaluation(*one, ids=other))


def test_a_seed_curve_tells_quality_and_noise():
    good, wide = ([0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]), ([0.9, 0.9, 0.9, 0.9], [0.9, 0.1, 0.1, 0.1])
    curve = seed_curve("both", {2: evaluation(*wide), 0: evaluation(*good)})
    assert curve.values == (0, 2)
    assert curve.mean_iou[0] == 1.0
    assert curve.noise == (0.0, pytest.approx(2 / 5))
    drawing = plot_seed_curves({"steps": [curve, dataclasses.replace(curve, name="none")], "tau": [curve]}, 2)
    colours = [[line.get_color() for line in place.lines] for place in drawing.axes]
    assert colours[0][0] == colours[1][0] != colours[0][1], "a name has one colour in all columns"
    assert drawing.axes[0].get_ylim() == drawing.axes[1].get_ylim()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "none"]
    with pytest.raises(AdvCAMError, match="no seeds for the curve"):
        seed_curve("none", {})


# --- all of them ------------------------------------------------------------------------------------------------------


def test_batches_give_what_all_rows_at_once_give(small_net, images):
    target = torch.tensor([0, 1, 2])
    whole = score_curves(walk_on(small_net, images, target), (32, 32))
    parts = [score_curves(walk_on(small_net, images[r : r + 1], target[r : r + 1]), (32, 32)) for r in range(3)]
    torch.testing.assert_close(concatenate(parts).advcam, whole.advcam, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdvCAMError, match="nothing to analyze"):
        concatenate([])
    with pytest.raises(AdvCAMError, match="the climbs differ in share"):
        concatenate([whole, dataclasses.replace(whole, share=(0.0, 1.0))])


def test_no_figure_is_left_behind():
    plot_amplification({"one": amplification(walk_of([[[1.0]]], [[[2.0]]]))})
    assert pyplot.get_fignums() == []


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main(["analyze", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A working directory with a net for the toy scenes that knows nothing, but is there at once."""
    from safetensors.torch import save_file

    from advcam_attr.pipelines.demo import small_net as fresh

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fresh().eval()
    (tmp_path / "analysis" / "toy").mkdir(parents=True)
    save_file(net.state_dict(), tmp_path / "analysis" / "toy" / "net.safetensors")
    return tmp_path


def test_all_analyses_are_told(capsys):
    code, out, _ = run(capsys, "--list")
    assert code == 0
    assert len(out.splitlines()) == 11
    assert "Fig. 16" in out


def test_all_analyses_of_images_from_one_command(capsys, toy):
    pytest.importorskip("sklearn")
    code, out, err = run(capsys, "images", "--demo", "--first", 3, "--steps", 2, "--perplexity", 2)
    assert (code, err) == (0, "")
    for name in (
        "amplification",
        "landscape",
        "saliency",
        "saliency_share",
        "regularizers",
        "score_curves",
        "trajectories",
    ):
        assert f"{name} (Fig" in out
        told = json.loads((toy / "analysis" / f"{name}.json").read_text())
        assert told["recipe"]["steps"] == 2
        assert (toy / "analysis" / f"{name}.png").stat().st_size > 1000
    assert told["result"]["perplexity"] == 2
    assert len(told["result"]["points"]) == 3


def test_all_analyses_of_masks_share_one_climb(capsys, toy):
    code, out, err = run(capsys, "masks", "--demo", "--first", 4, "--steps", 2, "--lambdas", 0, 2, "--device", "cpu")
    assert (code, err) == (0, "")
    climbs = [line.split("(")[1].split(")")[0] for line in out.splitlines() if line.startswith("climbing")]
    assert climbs == ["without", "with", "lambda_0", "last"], "λ = 2 is the recipe's own"
    told = json.loads((toy / "analysis" / "seeds.json").read_text())
    assert [curve["values"] for curve in told["result"]["steps"]] == [[0, 1, 2]] * 2
    assert len(json.loads((toy / "analysis" / "failures.json").read_text())["result"]["images"]) == 4
    assert "Table XI" in out
    assert "Table XIII" in out
    assert "here, 4 images of toy " in out, "the table's own data set is another"
    last = json.loads((toy / "analysis" / "final_map.json").read_text())
    assert set(last["result"]) == {"last map only", "sum over t"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "analyze needs NAME: see advcam analyze --list"),
        (["amplificaton", "--demo"], "unknown analysis 'amplificaton'; did you mean 'amplification'?"),
        (["seeds,saliency", "--demo"], "some of these look at images, some at data sets"),
        (["saliency"], "saliency needs image files and a --model, or --demo"),
        (["saliency", "nothing.jpg", "--model", "timm/test_resnet"], "no such image file or folder: nothing.jpg"),
        (["saliency", "--demo", "--run", "x"], "takes image files and a --model (or --demo), not --run"),
        (["saliency", "--demo", "--at", "9"], "a climb of 8 steps has no step 9: look at 0 to 8"),
        (["saliency", "--demo", "--first", "0"], "--first takes a number above 0"),
        (["trajectories", "--demo", "--first", "1", "--perplexity", "9"], "t-SNE needs more points than"),
        (["seeds"], "seeds needs masks: give --run RUN, --data DIR with a --model, or --demo"),
        (["seeds", "--run", "nowhere"], "nowhere is no run folder"),
        (["seeds", "--data", "nowhere"], "seeds needs a --model whose classes are those of --data"),
        (["seeds", "--demo", "--lambdas", "1", "--set", "regularizers=none", "--first", "2", "--steps", "1"],
         "has no restricting term, and so no λ"),
    ],
)  # fmt: skip
def test_what_cannot_be_analyzed_is_one_line(capsys, toy, argv, message):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_one_image_alone(capsys, toy, monkeypatch):
    pytest.importorskip("sklearn")
    from PIL import Image

    monkeypatch.syspath_prepend(str(toy))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(toy / "it's <one>.png")
    argv = ["trajectories,amplification", toy / "it's <one>.png", "--model", "advcam_attr.pipelines.demo:small_net"]
    code, _, err = run(capsys, *argv, "--steps", 2)
    assert (code, err) == (0, "")
    assert json.loads((toy / "analysis" / "trajectories.json").read_text())["result"]["images"] == ["it's <one>.png"]
    code, _, err = run(capsys, *argv, "--steps", 2, "--target", 0, "--target", 1)
    assert code == 2
    assert "no image is of the class 'class " in err


def test_of_a_data_set_and_of_a_run(capsys, tmp_path, monkeypatch):
    from tiny_voc import write_voc

    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"], "b": ["cat", "dog"], "c": []}}, size=(48, 64))
    model = ["--model", "advcam_attr.pipelines.demo:small_net", "--model-args", '{"num_classes": 20}']
    code, out, err = run(capsys, "failures,object_size", "--data", "VOC2012", *model, "--steps", 1, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "climbing 3 images (with)" in out
    told = json.loads((tmp_path / "analysis" / "object_size.json").read_text())
    assert {row["name"] for row in told["result"]["per_class"]} == {"cat", "dog"}

    code, _, err = run(capsys, "failures", "--data", "VOC2012", *model[:2], "--out", "other", "--steps", 1)
    assert code == 2
    assert "is it a net of this data set?" in err
    assert err.count("\n") == 1

    config = """
run: run
data: {root: VOC2012, train: train, val: null, score: train}
net: {backbone: timm/test_resnet, random_weights: true, mean: [0.5], std: [0.25]}
classifier: {epochs: 1, batch: 2, crop: 64, long_side: [64, 64], workers: 0}
seeds: {recipe: auto, overrides: {steps: 2}, scales: [1.0], workers: 0}
"""
    (tmp_path / "config.yaml").write_text(config)
    assert cli.main(["wsss", "classifier", "--config", "config.yaml"]) == 0
    capsys.readouterr()
    code, out, err = run(capsys, "seeds", "--run", "run", "--first", 2)
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "run" / "analysis" / "seeds.json").read_text())
    assert told["recipe"]["steps"] == 2, "the run's own"
    assert told["result"]["images"] == 2
    assert "seeds (Fig. 11): run/analysis/seeds.png" in out

    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "none.txt").write_text("c\n")
    code, _, err = run(capsys, "seeds", "--data", "VOC2012", *model, "--split", "none", "--out", "none", "--steps", 1)
    assert code == 2
    assert "no image of voc none shows a class: there is nothing to climb" in err
