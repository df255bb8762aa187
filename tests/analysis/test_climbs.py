"""Figs. 2 to 6, 12, 15 and 16: analyses of climbs by hand and against slow references."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from advcam_attr import heads
from advcam_attr.analysis.amplification import amplification, plot_amplification
from advcam_attr.analysis.input_saliency import (
    InputSaliency,
    SaliencyShares,
    input_saliency,
    plot_input_saliency,
    plot_saliency_shares,
)
from advcam_attr.analysis.landscape import Attack, landscape, plot_landscape, softmax_loss
from advcam_attr.analysis.regularizer_effects import NONE, VARIANTS, regularizer_effects, variant, without_others
from advcam_attr.analysis.samples import concatenate
from advcam_attr.analysis.score_curves import plot_score_curves, score_curves
from advcam_attr.analysis.trajectories import Trajectories, embed, plot_trajectories, require_all, trajectories
from advcam_attr.climbing import climb, recipes
from advcam_attr.types import AdvCAMError, ClimbStep

NONE_YET = torch.empty(0)


def climb_of(*maps: list[list[list[float]]]) -> list[ClimbStep]:
    """A climb whose maps are these."""
    found = [torch.tensor(m) for m in maps]
    climbing = torch.ones(len(found[0]), dtype=torch.bool)
    return [ClimbStep(t, NONE_YET, NONE_YET, m, m[:, None], NONE_YET, climbing) for t, m in enumerate(found)]


def climb_on(
    net: nn.Module, x: torch.Tensor, target: torch.Tensor, name: str = NONE, steps: int = 3
) -> list[ClimbStep]:
    plan = variant(recipes.get("auto", flip=False).plan(), name)
    return list(climb(heads.view(net), x, target, plan, steps=steps))


def test_amplification_by_hand():
    steps = climb_of([[[10.0, 5.0], [2.0, 1.0]]], [[[20.0, 15.0], [8.0, 99.0]]])
    found = amplification(steps)
    assert found.discriminative.tolist() == [True, True, False], "1.0 is a tenth of the peak, which is not above it"
    assert found.ratio.tolist() == [[1, 2], [1, 3], [1, 4]]
    assert found.growth().tolist() == [1.0, pytest.approx(4 / 2.5)]
    described = found.describe()
    assert described["discriminative"]["mean"] == [1.0, 2.5]
    assert described["other"]["q50"] == [1.0, 4.0]


def test_amplification_of_maps_without_evidence_has_no_cells():
    found = amplification(climb_of([[[-1.0, 0.0]]], [[[5.0, 5.0]]]))
    assert found.ratio.shape == (0, 2)
    assert found.describe()["growth"] == [None, None]
    plot_amplification({"none": found})


def test_scaling_the_maps_changes_no_ratio():
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).tolist()
    scaled = (7 * torch.tensor(maps)).tolist()
    one, other = amplification(climb_of(*maps)), amplification(climb_of(*scaled))
    torch.testing.assert_close(one.ratio, other.ratio)
    assert torch.equal(one.discriminative, other.discriminative)


def test_landscape_of_a_linear_net_equals_a_loop(tiny):
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
def test_bad_landscapes_raise(tiny, points, reach):
    with pytest.raises(AdvCAMError, match="odd number of points"):
        landscape(heads.view(tiny), torch.rand(1, 3, 4, 4), torch.tensor([0]), points=points, reach=reach)


def test_saliency_of_a_net_with_hand_set_weights(tiny):
    x, target = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    found = input_saliency(heads.view(tiny), climb_on(tiny, x, target), target, at=(0, 3))
    assert found.steps == (0, 3)
    # class 0 reads 2 * the mean of channel 0, class 1 -3 * the mean of channel 1, over four pixels each
    torch.testing.assert_close(found.saliency[0], torch.full((2, 2, 2), 2 / 4))
    torch.testing.assert_close(found.saliency[1], torch.full((2, 2, 2), 3 / 4))
    assert (found.score[:, 1] > found.score[:, 0]).all()
    assert found.spread().tolist() == [[1.0, 1.0], [1.0, 1.0]], "four equal pixels: it takes all to hold 80 %"
    plot_input_saliency(found, [np.zeros((2, 2, 3))] * 2, ["a", "<b> & $c"])


def test_spread_counts_the_fewest_pixels():
    found = InputSaliency(
        (0,), torch.tensor([[[[8.0, 1.0], [1.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]), torch.zeros(2, 1)
    )
    assert found.spread()[0].tolist() == [0.25]
    assert found.describe()["spread"][1] == [None]


def test_shares_by_hand():
    nan = float("nan")
    found = SaliencyShares((0, 4), torch.tensor([[0.25, 0.5], [0.5, 0.25], [0.25, 1.0], [nan, nan]]))
    described = found.describe()
    assert described["samples"] == 4
    assert described["mean"] == [pytest.approx(1 / 3, abs=1e-6), pytest.approx(1.75 / 3, abs=1e-6)]
    assert described["q50"] == [0.25, 0.5], "an image without saliency has no share"
    assert described["wider_at_last"] == 2
    assert described["change"] == [0.0, 0.25]
    axes = plot_saliency_shares({"with": found, "without": SaliencyShares((0, 4), found.share[:1])}).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[25, 50], [25, 50]]
    assert "4 images" in axes.get_title()


def test_saliency_restores_the_model(small_net, images):
    small_net.train()
    target = torch.tensor([0, 1, 2])
    input_saliency(heads.view(small_net), climb_on(small_net, images, target), target)
    assert small_net.training
    assert all(p.grad is None for p in small_net.parameters())


def test_variants_match_their_names():
    plan = recipes.get("official").plan()
    parts = {name: variant(plan, name) for name in VARIANTS}
    assert [bool(parts[name].regularizers) for name in VARIANTS] == [False, False, True, True]
    assert [parts[name].objective == plan.objective for name in VARIANTS] == [False, True, False, True]
    assert without_others(plan.objective).others.weight == 0
    with pytest.raises(AdvCAMError, match="unknown variant 'all'; there are none, other classes"):
        variant(plan, "all")


def test_effects_follow_the_climbs(small_net, images):
    target = torch.tensor([1, 2, 3])
    climbs = {name: climb_on(small_net, images, target, name) for name in VARIANTS}
    found = regularizer_effects(climbs, 2, at=(0, 3), sample=1)
    assert found.maps.shape[:2] == (4, 2)
    torch.testing.assert_close(found.maps[0, 1], torch.stack([s.maps[1] for s in climbs[NONE]]).sum(0))
    assert found.score[0].tolist() == [float(s.logits[1, 0, 2]) for s in climbs[NONE]]
    others = [max(float(s.logits[1, 0, k]) for k in (0, 1, 3, 4)) for s in climbs["both"]]
    assert found.others[3].tolist() == others
    with pytest.raises(AdvCAMError, match="a climb of 3 steps has no step 9"):
        regularizer_effects(climbs, 2, at=(0, 9))


def test_score_curves_decrease_from_one(small_net, images):
    found = score_curves(climb_on(small_net, images, torch.tensor([0, 1, 2])), (32, 32))
    for curve in (found.cam, found.advcam):
        assert (curve.diff(dim=1) <= 0).all()
        assert (curve[:, 0] <= 1).all()
        assert (curve[:, -1] >= 0).all()
    plot_score_curves(found)


def test_the_area_of_a_score_curve_by_hand():
    found = score_curves(climb_of([[[4.0, 2.0, 0.0]]]), (1, 3), points=3)
    assert found.describe()["area"] == {"cam": 0.5, "advcam": 0.5}


def test_trajectories_are_the_pooled_features(tiny):
    x, target = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    steps = climb_on(tiny, x, target)
    found = trajectories(heads.view(tiny), steps, target)
    expected = torch.stack([step.x[:, 0, :2].mean((2, 3)) for step in steps], 1)
    torch.testing.assert_close(found.features, expected)


def test_tsne_is_the_same_for_the_same_seed_and_needs_points():
    pytest.importorskip("sklearn")
    features = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
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


def test_batches_equal_all_samples_at_once(small_net, images):
    target = torch.tensor([0, 1, 2])
    whole = score_curves(climb_on(small_net, images, target), (32, 32))
    parts = [score_curves(climb_on(small_net, images[r : r + 1], target[r : r + 1]), (32, 32)) for r in range(3)]
    torch.testing.assert_close(concatenate(parts).advcam, whole.advcam, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdvCAMError, match="nothing to analyze"):
        concatenate([])
    with pytest.raises(AdvCAMError, match="the climbs differ in share"):
        concatenate([whole, dataclasses.replace(whole, share=(0.0, 1.0))])


def test_no_figure_is_left_behind():
    plot_amplification({"one": amplification(climb_of([[[1.0]]], [[[2.0]]]))})
    assert pyplot.get_fignums() == []
