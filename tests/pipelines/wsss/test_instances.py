"""Instance masks by IRN's net: made, resumed, scored; by the command line; what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from advcam_attr.cli import main as cli
from advcam_attr.data.images import read_rgb, to_bytes
from advcam_attr.data.instances import read_instances, write_instances
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.irnet import IRNet, irnet
from advcam_attr.networks.net_file import save_net
from advcam_attr.pipelines.wsss.instances import FOLDER, evaluate_instances, make_instances, net_file
from advcam_attr.pipelines.wsss.irn import edges, edges_and_displacement
from advcam_attr.pipelines.wsss.mask_config import IRNConfig, RefineConfig
from advcam_attr.refine.instances import irn_instances
from advcam_attr.refine.recipes import InstanceRecipe
from advcam_attr.runs.npy_maps import write_dictionary
from advcam_attr.types import AdvCAMError, Instances, NoMaskError
from refine_run import RUNTIME, scenes
from run_tools import write_times
from tiny_voc import write_mask, write_voc

RECIPE = InstanceRecipe(iterations=20)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[Path, IRNet]:
    path = tmp_path_factory.mktemp("net") / "irnet.safetensors"
    made = irnet(Backbone("timm/test_resnet", random_weights=True))
    with torch.no_grad():
        made.mean_shift.running_mean.copy_(torch.tensor([0.3, -0.2]))
    save_net(path, made)
    return path, made


def make(given, net: Path, out: Path, recipe: InstanceRecipe = RECIPE) -> Path:
    data, seeds = given
    make_instances(recipe, net, 64, seeds, data, out, RUNTIME)
    return out / FOLDER


def test_instances_are_made_once_and_scored(net, tmp_path):
    data, seeds = given = scenes(tmp_path / "scenes", 3)
    folder = make(given, net[0], tmp_path / "out")
    for sample in data.samples:
        pixels = to_bytes(read_rgb(sample.image))
        edge, displacement = edges_and_displacement(net[1], pixels, 64)
        assert torch.equal(edge, edges(net[1], pixels, 64))
        expected = irn_instances(seeds.read(sample.id), edge, displacement, RECIPE)
        found = read_instances(folder / f"{sample.id}.png", 3)
        assert set(found.classes) == set(sample.labels)
        assert torch.equal(found.masks, expected.masks)
        assert found.scores == pytest.approx(expected.scores, abs=1e-6)
    before, kept = write_times(folder), (folder / "001.png").read_bytes()
    (folder / "001.png").unlink()
    make(given, net[0], tmp_path / "out")
    after = write_times(folder)
    assert {name.name for name in after if before[name] != after[name]} == {"001.png"}
    assert (folder / "001.png").read_bytes() == kept
    with pytest.raises(AdvCAMError, match="iterations was 20, is 30"):
        make(given, net[0], tmp_path / "out", InstanceRecipe(iterations=30))

    exact = replace(data, instances=lambda sample: read_instances(folder / f"{sample.id}.png", 3))
    assert evaluate_instances(folder, exact).scores.mean == pytest.approx(1)
    one = replace(data, instances=lambda sample: exact.instances(sample) if sample.id == "000" else none(sample))
    (folder / "000.png").unlink()
    with pytest.raises(AdvCAMError, match=r"no such file of instances: .*000\.png"):
        evaluate_instances(folder, replace(data, instances=lambda s: Instances((), torch.zeros(0, 40, 56).bool())))
    left = evaluate_instances(folder, replace(one, samples=data.samples[1:])).scope
    assert (left.ids, sorted(left.unmasked)) == ((), ["001", "002"])


def none(sample):
    raise NoMaskError(f"no instances of {sample.id}")


def test_images_that_fail_do_not_stop_the_others(net, tmp_path):
    data, seeds = scenes(tmp_path / "scenes", 3)
    seeds.write("001", replace(seeds.read("000"), classes=(1,)))
    with pytest.raises(AdvCAMError, match=r"instances of 1 images could not be made .001: "):
        make((data, seeds), net[0], tmp_path / "out")
    assert sorted(file.stem for file in (tmp_path / "out" / FOLDER).iterdir()) == ["000", "002"]


def test_the_net_is_that_of_the_masks(tmp_path):
    with pytest.raises(AdvCAMError, match=r"there is no IRN net .*make masks first"):
        net_file(RefineConfig(), tmp_path)
    with pytest.raises(AdvCAMError, match=r"refine\.method is psa: give --refine\.method irn"):
        net_file(RefineConfig(method="psa"), tmp_path)
    assert net_file(RefineConfig(irn=IRNConfig(trained="a.pth")), tmp_path) == Path("a.pth")


def test_the_command_line(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"], "b": ["cat"]}}, size=(48, 64))
    maps = np.zeros((48, 64), np.float32)
    maps[10:30, 20:50] = 1
    for id, label in {"a": 11, "b": 7}.items():
        (tmp_path / "theirs").mkdir(exist_ok=True)
        write_dictionary(tmp_path / "theirs" / f"{id}.npy", {label: maps})
        write_mask(root / "SegmentationClass" / f"{id}.png", (label + 1) * maps)
        write_mask(root / "SegmentationObject" / f"{id}.png", maps)
    argv = ["--run", "run", "--data.root", "VOC2012", "--data.train", "train", "--seeds.methods", "[advcam]"]
    made = ["--refine.irn.trained", str(net[0]), "--refine.irn.pad_to", "64", "--runtime.workers", "0"]
    assert cli.main(["wsss", "import", "theirs", "--to", "run/seeds/advcam"]) == 0
    assert cli.main(["wsss", "instances", *argv, *made, "--instances.threshold", "1"]) == 0
    folder = Path("run/refined/advcam/instances")
    assert sorted(file.name for file in folder.iterdir()) == ["a.png", "b.png"]
    used = json.loads(Path("run/config.json").read_text())["instances"]
    assert (used["threshold"], used["walk"]["exponent"]) == (1, 1)
    for id, label in {"a": 11, "b": 7}.items():
        write_instances(folder / f"{id}.png", Instances((label,), torch.from_numpy(maps[None] > 0), (1.0,)))
    capsys.readouterr()
    assert cli.main(["wsss", "evaluate", *argv, *made]) == 0
    out = capsys.readouterr().out
    assert "Instance masks: average precision" in out
    assert out.split("Instance masks")[1].splitlines()[2].split()[-3:] == ["100.0", "100.0", "100.0"]
    report = json.loads(Path("run/report.json").read_text())["instances"]["advcam"]
    assert report["per_class"] == pytest.approx({"cat": 1, "dog": 1})
    assert (report["ap"], report["ap_at"]["0.70"]) == pytest.approx((1, 1))
