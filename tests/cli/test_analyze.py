"""``advcam analyze``: every analysis from one command, on toy scenes, a data set and a run."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from advcam_attr.cli import main as cli


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main(["analyze", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A working directory with an untrained net for the toy scenes."""
    from safetensors.torch import save_file

    from advcam_attr.pipelines.demo import small_net as fresh

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fresh().eval()
    (tmp_path / "analysis" / "toy").mkdir(parents=True)
    save_file(net.state_dict(), tmp_path / "analysis" / "toy" / "net.safetensors")
    return tmp_path


def test_all_analyses_are_listed(capsys):
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
        found = json.loads((toy / "analysis" / f"{name}.json").read_text())
        assert found["recipe"]["steps"] == 2
        assert (toy / "analysis" / f"{name}.png").stat().st_size > 1000
    assert found["result"]["perplexity"] == 2
    assert len(found["result"]["points"]) == 3


def test_all_analyses_of_masks_share_one_climb(capsys, toy):
    code, out, err = run(capsys, "masks", "--demo", "--first", 4, "--steps", 2, "--lambdas", 0, 0.005)
    assert (code, err) == (0, "")
    climbs = [line.split("(")[1].split(")")[0] for line in out.splitlines() if line.startswith("climbing")]
    assert climbs == ["without", "with", "lambda_0", "last"], "λ = 0.005 is the recipe's own"
    found = json.loads((toy / "analysis" / "seeds.json").read_text())
    assert [curve["values"] for curve in found["result"]["steps"]] == [[0, 1, 2]] * 2
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
        (["saliency", "--demo", "--at", "9"], "a climb of 5 steps has no step 9: look at 0 to 5"),
        (["saliency", "--demo", "--first", "0"], "--first takes a number above 0"),
        (["trajectories", "--demo", "--first", "1", "--perplexity", "9"], "t-SNE needs more points than"),
        (["seeds"], "seeds needs masks: give --run RUN, --data DIR with a --model, or --demo"),
        (["seeds", "--run", "nowhere"], "nowhere is no run folder"),
        (["seeds", "--data", "nowhere"], "seeds needs a --model whose classes are those of --data"),
        (["seeds", "--demo", "--lambdas", "1", "--set", "regularizers=none", "--first", "2", "--steps", "1"],
         "has no restricting term, and so no λ"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(capsys, toy, argv, message):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["images", "--base", "cem"], "unknown base 'cem'"),
        (["images", "--recipe", "atuo"], "unknown recipe 'atuo'"),
        (["images", "--set", "stepz=1"], "'stepz'"),
        (["images", "--device", "abacus"], "'abacus'"),
        (["saliency", "--at", "9"], "a climb of 5 steps has no step 9"),
        (["trajectories", "--first", "1", "--perplexity", "99"], "t-SNE needs more points than"),
        (["trajectories"], "t-SNE needs scikit-learn"),
        (["masks", "--base", "cem"], "unknown base 'cem'"),
        (["masks", "--recipe", "atuo"], "unknown recipe 'atuo'"),
        (["masks", "--set", "stepz=1"], "'stepz'"),
        (["masks", "--device", "abacus"], "'abacus'"),
        (["seeds", "--lambdas", "1", "--set", "regularizers=none"], "has no restricting term, and so no λ"),
        (["seeds", "--taus", "-1"], "threshold"),
        (["seeds", "--xis", "-1"], "size"),
    ],
)
def test_nothing_is_trained_or_written_before_an_error(capsys, tmp_path, monkeypatch, argv, message):
    def train_net(*args, **options):
        raise AssertionError("trained")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advcam_attr.pipelines.demo.train_net", train_net)
    if len(argv) == 1:
        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    code, _, err = run(capsys, *argv, "--demo")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


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
    found = json.loads((tmp_path / "analysis" / "object_size.json").read_text())
    assert {row["name"] for row in found["result"]["per_class"]} == {"cat", "dog"}

    code, _, err = run(capsys, "failures", "--data", "VOC2012", *model[:2], "--out", "other", "--steps", 1)
    assert code == 2
    assert "is it a net of this data set?" in err
    assert err.count("\n") == 1

    config = """
run: run
data: {root: VOC2012, train: train, val: null, score: train}
net: {backbone: {name: timm/test_resnet, random_weights: true, mean: [0.5], std: [0.25]}}
classifier: {epochs: 1, batch: 2, crop: 64, long_side: [64, 64]}
seeds: {recipe: auto, overrides: {steps: 2}, scales: [1.0]}
runtime: {workers: 0}
"""
    (tmp_path / "config.yaml").write_text(config)
    assert cli.main(["wsss", "classifier", "--config", "config.yaml"]) == 0
    capsys.readouterr()
    code, out, err = run(capsys, "seeds", "--run", "run", "--first", 2)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "run" / "analysis" / "seeds.json").read_text())
    assert found["recipe"]["steps"] == 2, "the run's own"
    assert found["result"]["images"] == 2
    assert "seeds (Fig. 11): run/analysis/seeds.png" in out

    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "none.txt").write_text("c\n")
    code, _, err = run(capsys, "seeds", "--data", "VOC2012", *model, "--split", "none", "--out", "none", "--steps", 1)
    assert code == 2
    assert "no image of voc none shows a class: there is nothing to climb" in err
