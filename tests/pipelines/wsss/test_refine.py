"""The refinement's steps: CRF, IRN or PSA, saliency rule; odd and missing input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.masks import palette, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.irnet import IRNET
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.wsss import refine as refinement
from advcam_attr.pipelines.wsss.irn import edges
from advcam_attr.pipelines.wsss.psa import PSAConfig
from advcam_attr.pipelines.wsss.refine import RefineConfig, refine
from advcam_attr.refine.affinity_labels import ir_label
from advcam_attr.refine.irn import irn_labels
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapStore
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError, ClassMaps, Sample
from logs import record_log
from places import HELPERS
from refine_run import CONFIG, RUNTIME, scenes
from run_tools import contents, run_script, write_times

ALL = replace(CONFIG, crf=("seeds", "masks"))


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[SegmentationData, MapStore]:
    return scenes(tmp_path_factory.mktemp("scenes"), 9)


@pytest.fixture(scope="module")
def saliency(tmp_path_factory, given) -> Path:
    """Every second image is salient where it should be, the others nowhere."""
    folder = tmp_path_factory.mktemp("saliency")
    for n, sample in enumerate(given[0].samples):
        mask = given[0].mask(sample).numpy() > 0
        Image.fromarray((mask * 255 * (n % 2 == 0)).astype(np.uint8)).save(folder / f"{sample.id}.png")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory, given, saliency) -> Path:
    out = tmp_path_factory.mktemp("refined")
    steps = refine(replace(ALL, saliency=saliency), given[1], given[0], out, RUNTIME)
    assert steps == {step: out / step for step in ("seeds_crf", "masks", "masks_crf", "masks_saliency")}
    return out


def iou(folder: Path, data: SegmentationData) -> float:
    found = torch.cat([read_mask(folder / f"{s.id}.png", 3).flatten() for s in data.samples])
    truth = torch.cat([data.mask(s).flatten() for s in data.samples])
    agree = ((found == truth) & (truth > 0)).sum()
    return float(agree / ((found > 0) | (truth > 0)).sum())


def test_written_files(done, given):
    out, (data, seeds) = done, given
    names = {path.relative_to(out).as_posix() for path in out.iterdir()}
    folders = {"seeds_crf", "confident", "masks", "masks_crf", "masks_saliency"}
    assert names == folders | {f"{name}.json" for name in folders} | {"irnet"}
    assert {path.name for path in (out / "irnet").iterdir()} == {
        "irnet.safetensors", "training.json", "checkpoint.pt", "log.jsonl",
    }  # fmt: skip
    for folder in folders:
        assert {path.name for path in (out / folder).iterdir()} == {f"{s.id}.png" for s in data.samples}
    with Image.open(out / "masks" / "000.png") as mask:
        assert (mask.mode, mask.size[::-1]) == ("P", seeds.read("000").size)
        assert mask.getpalette() == palette().ravel().tolist()
    assert len(read_log(out / "irnet" / "log.jsonl")) == 4
    assert [record["lr"][0] for record in read_log(out / "irnet" / "log.jsonl")] == pytest.approx(
        [0.05 * (1 - step / 4) ** 0.9 for step in range(4)]
    )


def test_each_step_is_its_function_of_the_one_before(done, given):
    out, (data, seeds) = done, given
    net = load_net(out / "irnet" / "irnet.safetensors", IRNET)[0]
    for sample in data.samples[:3]:
        pixels = torch.from_numpy(np.array(Image.open(sample.image))).permute(2, 0, 1)
        maps = seeds.read(sample.id)
        assert torch.equal(read_mask(out / "confident" / f"{sample.id}.png", 3), ir_label(maps, pixels, 0.35, 0.15))
        walked = irn_labels(maps, edges(net, pixels, 64))
        assert torch.equal(read_mask(out / "masks" / f"{sample.id}.png", 3), walked)
        assert walked.max() == sample.labels[0] + 1


def test_crf_and_saliency_rule(done, given, saliency):
    out, (data, seeds) = done, given
    truth = torch.cat([data.mask(s).flatten() for s in data.samples])
    cut = torch.cat([((seeds.read(s.id).high_res[0] > 0.35) * (s.labels[0] + 1)).flatten() for s in data.samples])
    seed_iou = float(((cut == truth) & (truth > 0)).sum() / ((cut > 0) | (truth > 0)).sum())
    assert iou(out / "seeds_crf", data) > max(seed_iou + 0.2, 0.95)
    for n, sample in enumerate(data.samples):
        before = read_mask(out / "masks_crf" / f"{sample.id}.png", 3)
        salient = data.mask(sample) > 0 if n % 2 == 0 else torch.zeros_like(before, dtype=torch.bool)
        expected = before.masked_fill((before > 0) != salient, 255)
        assert torch.equal(read_mask(out / "masks_saliency" / f"{sample.id}.png", 3), expected)


def test_second_run_changes_nothing(done, given, saliency):
    before, logged = write_times(done), record_log()
    refine(replace(ALL, saliency=saliency), given[1], given[0], done, RUNTIME)
    assert write_times(done) == before
    assert f"{done / 'irnet' / 'irnet.safetensors'} exists: nothing to train" in logged


def odd(folder: Path) -> tuple[SegmentationData, MapStore]:
    """One colour; one pixel wide; one pixel high; a map of zeros; no labels; two labels, one of which fills all."""
    store, samples = MapStore(folder / "maps"), []
    cases: list[tuple[str, tuple[int, int], tuple[float, ...]]] = [
        ("one_colour", (20, 30), (0.6,)), ("narrow", (30, 1), (0.7,)), ("flat", (1, 30), (0.7,)),
        ("zero", (20, 20), (0.0,)), ("none", (20, 20), ()), ("full", (24, 20), (1.0, 0.1)), ("wide", (20, 90), (0.9,)),
        ("dot", (1, 1), (1.0,)),
    ]  # fmt: skip
    for id, size, peaks in cases:
        fill = np.full((*size, 3), 90, np.uint8)
        if id not in ("one_colour", "narrow"):
            fill = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(fill).save(folder / f"{id}.png")
        peak = torch.tensor(peaks)[:, None, None]
        grid = strided_size(size, 4)
        store.write(id, ClassMaps(tuple(range(len(peaks))), size, peak.repeat(1, *grid), peak.repeat(1, *size)))
        samples.append(Sample(id, folder / f"{id}.png", tuple(range(len(peaks)))))
    return SegmentationData("odd", folder, "train", ("a", "b"), tuple(samples), lambda s: torch.zeros(1)), store


def test_odd_images_and_maps(tmp_path):
    data, seeds = odd(tmp_path)
    steps = refine(ALL, seeds, data, tmp_path / "out", RUNTIME)
    masks = {s.id: read_mask(steps["masks"] / f"{s.id}.png", 2) for s in data.samples}
    for sample in data.samples:
        with Image.open(sample.image) as image:
            assert masks[sample.id].shape == image.size[::-1]
    assert masks["zero"].max() == masks["none"].max() == 0
    for id in ("narrow", "flat", "one_colour", "full", "dot"):
        assert set(masks[id].unique().tolist()) == {1}
    for folder in steps.values():
        assert read_mask(folder / "none.png", 2).max() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("saliency", "saliency maps of 2 of 9"),
        ("seeds", "seeds of 9 of 9 images are missing, e.g. 000"),
        ("data", "no images"),
    ],
)
def test_missing_input_is_found_before_anything_is_made(given, saliency, tmp_path, wrong, message):
    data, seeds = given
    some = Path(shutil.copytree(saliency, tmp_path / "some"))
    for id in ("000", "001") if wrong == "saliency" else ():
        (some / f"{id}.png").unlink()
    if wrong == "seeds":
        seeds = MapStore(tmp_path / "nothing")
    if wrong == "data":
        data = replace(data, samples=())
    with pytest.raises(AdvCAMError, match=message):
        refine(replace(CONFIG, saliency=some), seeds, data, tmp_path / "out", RUNTIME)
    assert not (tmp_path / "out").exists()


def test_invalid_settings(given, tmp_path):
    with pytest.raises(AdvCAMError, match="unknown refinement method 'inr'; did you mean 'irn'"):
        refine(RefineConfig(method="inr"), given[1], given[0], tmp_path)
    with pytest.raises(AdvCAMError, match="unknown CRF recipe 'ps'; did you mean 'psa'"):
        RefineConfig(crf_recipe="ps")


def test_methods_are_registered_by_name(given, tmp_path, monkeypatch):
    def white(config, seeds, data, out, runtime):
        stage = refinement.LabelStage(
            "masks", out / "masks", {}, lambda s: seeds.read(s.id).size, lambda size: torch.ones(size).byte()
        )
        refinement.run_stage(stage, data)

    monkeypatch.setitem(refinement.METHODS, "white", white)
    steps = refine(RefineConfig(method="white"), given[1], given[0], tmp_path, RUNTIME)
    assert steps == {"masks": tmp_path / "masks"}
    assert read_mask(tmp_path / "masks" / "001.png", 3).min() == 1
    assert set(refinement.METHODS) >= {"irn", "psa"}


def test_psa_is_a_method_too(given, tmp_path):
    backbone = Backbone("timm/test_resnet", random_weights=True, stride=16)
    psa = PSAConfig(backbone=backbone, radius=3, epochs=1, batch=4, crop=80, steps=4)
    masks = refine(replace(CONFIG, method="psa", psa=psa), given[1], given[0], tmp_path, RUNTIME)["masks"]
    assert {path.name for path in masks.iterdir()} == {f"{s.id}.png" for s in given[0].samples}
    with pytest.raises(AdvCAMError, match=r"masks\.json was made with other settings \(method was psa, is irn"):
        refine(CONFIG, given[1], given[0], tmp_path, RUNTIME)
    assert not (tmp_path / "confident").exists(), "raised before anything is made"


@pytest.mark.slow
def test_two_ranks_share_all_stages(done, given, tmp_path):
    run_script(HELPERS / "refine_run.py", tmp_path / "scenes", 9, tmp_path / "out", ranks=2)
    out, alone = tmp_path / "out", done
    assert contents(out / "confident") == contents(alone / "confident")
    shared, single = (load_net(o / "irnet" / "irnet.safetensors", IRNET)[0].state_dict() for o in (out, alone))
    for key in single:
        torch.testing.assert_close(shared[key], single[key], rtol=1e-4, atol=1e-5)
    assert len(contents(out / "masks")) == 9
    losses = [[r["loss"] for r in read_log(o / "irnet" / "log.jsonl")] for o in (out, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
