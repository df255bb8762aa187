"""From seeds to pseudo ground truth: what is written, how it goes on, how it is shared, and odd inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.data.masks import palette, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.voc import read_voc
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.irnet import IRNET, irnet
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.pipelines.wsss import irn
from advcam_attr.pipelines.wsss import refine as stages
from advcam_attr.pipelines.wsss.irn import SETTINGS as NAMED
from advcam_attr.pipelines.wsss.irn import (
    ConfidentItems,
    IRNSettings,
    edges,
    make_confident,
    refine_irn,
    train_irn,
    write_masks,
)
from advcam_attr.pipelines.wsss.psa import PSASettings
from advcam_attr.pipelines.wsss.refine import RefineSettings, refine
from advcam_attr.refine.affinity_labels import ir_label
from advcam_attr.refine.irn import irn_labels
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.sharding import Shard
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError, ClassMaps, Sample
from logs import record_log
from places import HELPERS
from refine_run import IRN, SETTINGS, scenes

ALL = replace(SETTINGS, crf=("seeds", "masks"))


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
def done(tmp_path_factory, given, saliency) -> tuple[Path, list[str]]:
    out, told = tmp_path_factory.mktemp("refined"), record_log()
    summary = refine(replace(ALL, saliency=saliency), given[1], given[0], out)
    assert list(summary.steps) == ["seeds_crf", "masks", "masks_crf", "masks_saliency"]
    assert (summary.final, summary.images) == (out / "masks_saliency", 9)
    return out, told


@pytest.fixture
def confident(done, tmp_path) -> Path:
    """A folder in which the confident labels are made."""
    shutil.copytree(done[0] / "confident", tmp_path / "confident")
    shutil.copy(done[0] / "confident.json", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(done) -> Path:
    return done[0] / "irnet" / "irnet.safetensors"


def contents(out: Path, pattern: str = "**/*") -> dict[str, bytes]:
    return {
        str(f.relative_to(out)): f.read_bytes()
        for f in sorted(out.glob(pattern))
        if f.is_file() and f.name != "checkpoint.pt"
    }


def iou(folder: Path, data: SegmentationData) -> float:
    found = torch.cat([read_mask(folder / f"{s.id}.png", 3).flatten() for s in data.samples])
    truth = torch.cat([data.mask(s).flatten() for s in data.samples])
    agree = ((found == truth) & (truth > 0)).sum()
    return float(agree / ((found > 0) | (truth > 0)).sum())


def test_what_is_written(done, given):
    out, told = done
    data, seeds = given
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
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3)), palette())
    assert len(read_log(out / "irnet" / "log.jsonl")) == 4
    assert [record["lr"][0] for record in read_log(out / "irnet" / "log.jsonl")] == pytest.approx(
        [0.05 * (1 - step / 4) ** 0.9 for step in range(4)]
    )
    assert "rank 0 of 1: confident labels of 9 of 9 images; 0 are in" in "\n".join(told)


def test_each_stage_is_its_function_of_the_stage_before(done, given):
    out, _ = done
    data, seeds = given
    net = load_net(out / "irnet" / "irnet.safetensors", IRNET)[0]
    for sample in data.samples[:3]:
        pixels = torch.from_numpy(np.array(Image.open(sample.image))).permute(2, 0, 1)
        maps = seeds.read(sample.id)
        assert torch.equal(read_mask(out / "confident" / f"{sample.id}.png", 3), ir_label(maps, pixels, 0.35, 0.15))
        walked = irn_labels(maps, edges(net, pixels, 64))
        assert torch.equal(read_mask(out / "masks" / f"{sample.id}.png", 3), walked)
        assert walked.max() == sample.labels[0] + 1


def test_the_crf_raises_the_seeds_and_the_rule_leaves_pixels_out(done, given, saliency):
    out, _ = done
    data, seeds = given
    truth = torch.cat([data.mask(s).flatten() for s in data.samples])
    cut = torch.cat([((seeds.read(s.id).high_res[0] > 0.35) * (s.labels[0] + 1)).flatten() for s in data.samples])
    seed_iou = float(((cut == truth) & (truth > 0)).sum() / ((cut > 0) | (truth > 0)).sum())
    assert iou(out / "seeds_crf", data) > max(seed_iou + 0.2, 0.95)
    for n, sample in enumerate(data.samples):
        before = read_mask(out / "masks_crf" / f"{sample.id}.png", 3)
        salient = data.mask(sample) > 0 if n % 2 == 0 else torch.zeros_like(before, dtype=torch.bool)
        expected = before.masked_fill((before > 0) != salient, 255)
        assert torch.equal(read_mask(out / "masks_saliency" / f"{sample.id}.png", 3), expected)


def test_a_second_run_does_nothing(done, given, saliency):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    told = record_log()
    refine(replace(ALL, saliency=saliency), given[1], given[0], out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert f"{out / 'irnet' / 'irnet.safetensors'} exists: nothing to train" in told
    assert sum("; 9 are in" in line for line in told) == 5


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "where",
    ["checkpoint", *(pytest.param(w, marks=pytest.mark.slow) for w in ("confident", "end of training", "masks"))],
)
def test_a_run_that_is_stopped_ends_with_the_same_bytes(done, given, tmp_path, monkeypatch, where):
    from advcam_attr.data import masks
    from advcam_attr.training import train as training

    data, seeds = given

    def stopping(real, after: int):
        calls = iter(range(10**6))

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if next(calls) == after:
                raise Stop
            return result

        return call

    with monkeypatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(training, "save_checkpoint", stopping(training.save_checkpoint, 0))
        elif where == "end of training":
            patch.setattr(irn, "store_mean_displacement", stopping(irn.store_mean_displacement, 0))
        else:
            patch.setattr(masks, "write_png", stopping(masks.write_png, 4 if where == "confident" else 13))
        with pytest.raises(Stop):
            refine_irn(IRN, seeds, data, tmp_path)
    told = record_log()
    refine_irn(IRN, seeds, data, tmp_path)
    assert any("resuming at step" in line for line in told) == (where in ("checkpoint", "end of training"))
    for folder in ("confident", "irnet", "masks"):
        assert contents(tmp_path / folder) == contents(done[0] / folder)


def test_shares_together_are_the_whole(done, given, trained, tmp_path):
    data, seeds = given
    net = load_net(trained, IRNET)[0]
    for rank in (1, 0):
        make_confident(IRN, seeds, data, tmp_path, shard=Shard(rank, 2))
        write_masks(IRN, net, seeds, data, tmp_path, shard=Shard(rank, 2))
    for folder in ("confident", "masks"):
        assert contents(tmp_path / folder) == contents(done[0] / folder)


def test_a_trained_net_needs_no_confident_labels(done, given, trained, tmp_path):
    told = record_log()
    refine_irn(IRNSettings(trained=trained, pad_to=64, workers=2, device="cpu"), given[1], given[0], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"masks", "masks.json"}
    assert told[0] == f"IRN's net is {trained}"
    assert contents(tmp_path / "masks") == contents(done[0] / "masks")


def test_other_settings_are_refused_until_they_overwrite(given, confident):
    data, seeds = given
    tmp_path = confident
    with pytest.raises(AdvCAMError, match=r"other settings \(foreground was 0\.35, is 0\.3; background"):
        make_confident(replace(IRN, foreground=0.3, background=0.05), seeds, data, tmp_path)
    one = contents(tmp_path / "confident")
    make_confident(replace(IRN, foreground=0.6, overwrite=True), seeds, data, tmp_path)
    assert contents(tmp_path / "confident").keys() == one.keys()
    assert contents(tmp_path / "confident") != one


def test_training_needs_all_labels_and_a_whole_batch(given, confident):
    data, _ = given
    net = IRN.make_net()
    with pytest.raises(AdvCAMError, match="9 images, fewer than one batch of 32"):
        train_irn(replace(IRN, batch=32), net, data, confident)
    for id in ("001", "007"):
        (confident / "confident" / f"{id}.png").unlink()
    with pytest.raises(AdvCAMError, match=r"confident labels of 2 of 9 images are missing .* e\.g\. of 001"):
        train_irn(IRN, net, data, confident)
    (confident / "confident.json").unlink()
    with pytest.raises(AdvCAMError, match=r"confident labels of 9 of 9 images are missing"):
        train_irn(IRN, net, data, confident)


def test_the_loss_falls_and_all_but_the_branches_stays_as_it_was(given, confident):
    data, _ = given
    net = IRN.make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    trained = train_irn(replace(IRN, epochs=6, scales=(1.0, 1.0)), net, data, confident)
    losses = [record["loss"] for record in read_log(confident / "irnet" / "log.jsonl")]
    assert sum(losses[-4:]) < 0.93 * sum(losses[:4])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not net.training
    after = trained.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {*(f"fc_edge{n}" for n in range(1, 7)), *(f"fc_dp{n}" for n in range(1, 8)), "mean_shift"}


def test_the_stored_mean_is_that_of_the_images_corners(trained, given):
    data, _ = given
    net = load_net(trained, IRNET)[0]
    mean = net.mean_shift.running_mean.clone()
    net.mean_shift.running_mean.zero_()
    corners = []
    for sample in data.samples[:8]:
        image = torch.from_numpy(np.array(Image.open(sample.image))).permute(2, 0, 1) / 255
        image = (image - torch.tensor(net.mean)[:, None, None]) / torch.tensor(net.std)[:, None, None]
        corners.append(F.pad(image, (0, 64 - image.shape[2], 0, 64 - image.shape[1])))
    with torch.no_grad():
        expected = net(torch.stack(corners))[:, 1:].mean((0, 2, 3))
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def striped(tmp_path) -> tuple[SegmentationData, Path]:
    """A picture whose grey is 12 times its label, which are stripes."""
    labels = np.zeros((90, 70), np.uint8)
    labels[:, 20:35], labels[30:60, 35:] = 7, 18
    (tmp_path / "confident").mkdir()
    Image.fromarray(labels).save(tmp_path / "confident" / "a.png")
    Image.fromarray(np.repeat((labels * 12)[..., None], 3, 2)).save(tmp_path / "a.png")
    sample = Sample("a", tmp_path / "a.png", (6, 17))
    classes = tuple(f"class {n}" for n in range(20))
    return SegmentationData("striped", tmp_path, "train", classes, (sample,), lambda s: torch.zeros(1)), tmp_path


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.5)])
def test_images_and_labels_are_augmented_alike(striped, scales):
    data, folder = striped
    net = irnet(Backbone("timm/test_resnet", random_weights=True, mean=(0.5,) * 3, std=(0.5,) * 3))
    items = ConfidentItems(replace(IRN, crop=96, scales=scales), net, data, folder / "confident")
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        image, labels = items[0]
        assert (image.shape, labels.shape, labels.dtype) == ((3, 96, 96), (24, 24), torch.uint8)
        grey = (image[0, 2::4, 2::4] * 0.5 + 0.5) * 255 / 12
        inside = labels != 255
        assert set(labels.unique().tolist()) <= {0, 7, 18, 255}
        agree = ((grey - labels).abs() < 1)[inside].float().mean()
        assert agree == 1 if scales == (1.0, 1.0) else agree > 0.8  # bicubic pixels mix colours at borders
        assert torch.equal(image[0, 2::4, 2::4][~inside], torch.zeros(int((~inside).sum())))
        seen.append((int(inside.sum()), labels[inside].float().mean().item()))
    assert len(set(seen)) > 1


def test_labels_of_another_size_are_refused(striped):
    data, folder = striped
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "confident" / "a.png")
    with pytest.raises(AdvCAMError, match=r"confident/a\.png has 9x9 pixels and its image 70x90"):
        ConfidentItems(IRN, IRN.make_net(), data, folder / "confident")[0]


# --- odd inputs -------------------------------------------------------------------------------------------------------


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


def test_odd_images_and_maps_go_through_all_stages(tmp_path):
    data, seeds = odd(tmp_path)
    summary = refine(ALL, seeds, data, tmp_path / "out")
    masks = {s.id: read_mask(summary.steps["masks"] / f"{s.id}.png", 2) for s in data.samples}
    for sample in data.samples:
        with Image.open(sample.image) as image:
            assert masks[sample.id].shape == image.size[::-1]
    assert masks["zero"].max() == masks["none"].max() == 0
    for id in ("narrow", "flat", "one_colour", "full", "dot"):
        assert set(masks[id].unique().tolist()) == {1}
    for folder in summary.steps.values():
        assert read_mask(folder / "none.png", 2).max() == 0


def test_maps_of_another_size_are_named_and_the_others_done(given, trained, tmp_path):
    data, _ = given
    seeds = scenes(tmp_path / "scenes", 9)[1]
    seeds.write("004", ClassMaps((1,), (16, 16), torch.ones(1, 4, 4), torch.ones(1, 16, 16)))
    settings = IRNSettings(trained=trained, pad_to=64, workers=0, device="cpu")
    with pytest.raises(AdvCAMError) as error:
        refine_irn(settings, seeds, data, tmp_path / "out")
    assert "masks of 1 images could not be made (004: the maps of 004 are of 16 x 16 pixels and its image" in str(
        error.value
    )
    assert "40 x 56" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 8


@pytest.mark.parametrize("wrong", ["saliency", "seeds", "empty"])
def test_what_is_missing_is_told_before_anything_is_made(given, saliency, tmp_path, wrong):
    data, seeds = given
    settings = SETTINGS
    if wrong == "saliency":
        for file in list(saliency.iterdir())[2:]:
            (tmp_path / "some").mkdir(exist_ok=True)
            (tmp_path / "some" / file.name).write_bytes(file.read_bytes())
        settings = replace(SETTINGS, saliency=tmp_path / "some")
    elif wrong == "seeds":
        seeds = MapStore(tmp_path / "nothing")
    else:
        data = replace(data, samples=())
    reason = {
        "saliency": "saliency maps of 2 of 9",
        "seeds": "seeds of 9 of 9 images are missing, e.g. 000",
        "empty": "no im",
    }
    with pytest.raises(AdvCAMError, match=reason[wrong]):
        refine(settings, seeds, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_are_checked():
    for wrong in ({"epochs": 0}, {"crop": 100}, {"crop": 64, "radius": 10}, {"background": 0.5}, {"edge_lr": -1},
                  {"scales": (0, 1)}, {"pad_to": 500}, {"momentum": float("nan")}):  # fmt: skip
        with pytest.raises(AdvCAMError, match="irn: "):
            IRNSettings(**wrong)
    with pytest.raises(AdvCAMError, match="unknown refinement method 'inr'; did you mean 'irn'"):
        RefineSettings(method="inr")
    with pytest.raises(AdvCAMError, match="unknown input of the CRF 'mask'; did you mean 'masks'"):
        RefineSettings(crf=("mask",))
    for settings in (RefineSettings, IRNSettings, PSASettings):
        with pytest.raises(AdvCAMError, match="unknown CRF recipe 'ps'; did you mean 'psa'"):
            settings(**{"crf_recipe" if settings is RefineSettings else "crf": "ps"})
    with pytest.raises(AdvCAMError, match="thresholds"):
        RefineSettings(crf_threshold=35)


def test_defaults_are_advcams_and_others_have_names():
    assert NAMED["advcam"] == IRNSettings()
    numbers = {n: (s.foreground, s.background, s.walk.exponent, s.walk.background) for n, s in NAMED.items()}
    assert numbers == {
        "advcam": (0.35, 0.15, 1.5, 0.25), "irn": (0.30, 0.05, 1.0, 0.25),
        "rib": (0.35, 0.17, 1.3, 0.27), "rib_coco": (0.35, 0.17, 1.3, 0.22),
    }  # fmt: skip
    s = IRNSettings()
    assert (s.batch, s.epochs, s.crop, s.edge_lr, s.displacement_lr, s.momentum) == (32, 3, 512, 0.1, 1.0, 1e-4)


def test_a_method_is_a_name(given, tmp_path, monkeypatch):
    def white(settings, seeds, data, out):
        stage = stages.LabelStage(
            "masks", out / "masks", {}, lambda s: seeds.read(s.id).size, lambda size: torch.ones(size).byte()
        )
        stages.run_stage(stage, data)

    monkeypatch.setitem(stages.METHODS, "white", white)
    summary = refine(RefineSettings(method="white", workers=0), given[1], given[0], tmp_path)
    assert summary.final == tmp_path / "masks"
    assert read_mask(summary.final / "001.png", 3).min() == 1
    assert set(stages.METHODS) >= {"irn", "psa"}


def test_the_tasks_of_an_array_do_not_train(given, tmp_path, monkeypatch):
    data, seeds = given
    for key, value in {"ID": 0, "MIN": 0, "MAX": 1, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    with pytest.raises(AdvCAMError, match="now train IRN's net in one job"):
        refine_irn(IRN, seeds, data, tmp_path)
    assert len(list((tmp_path / "confident").glob("*.png"))) == 5


@pytest.mark.slow
def test_two_ranks_share_all_stages(done, given, tmp_path):
    script = HELPERS / "refine_run.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(
        [*command, str(tmp_path / "scenes"), "9", str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    out, alone = tmp_path / "out", done[0]
    assert contents(out / "confident") == contents(alone / "confident")
    shared, single = (load_net(o / "irnet" / "irnet.safetensors", IRNET)[0].state_dict() for o in (out, alone))
    for key in single:
        torch.testing.assert_close(shared[key], single[key], rtol=1e-4, atol=1e-5)
    assert len(contents(out / "masks")) == 9
    losses = [[r["loss"] for r in read_log(o / "irnet" / "log.jsonl")] for o in (out, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_untrained_net_file_is_told(tmp_path):
    net = irnet(Backbone("timm/test_resnet", random_weights=True))
    save_net(tmp_path / "net.safetensors", net)
    assert torch.equal(
        IRNSettings(trained=tmp_path / "net.safetensors").make_net().fc_edge6.weight, net.fc_edge6.weight
    )
    with pytest.raises(AdvCAMError, match="no such checkpoint file"):
        IRNSettings(trained=tmp_path / "other.pth").make_net()


def test_psa_is_a_method_too(given, tmp_path):
    psa = PSASettings(
        random_weights=True, backbone="timm/test_resnet", stride=16, radius=3, epochs=1, batch=4, crop=80, workers=0,
        device="cpu", steps=4,
    )  # fmt: skip
    summary = refine(replace(SETTINGS, method="psa", psa=psa), given[1], given[0], tmp_path)
    assert {path.name for path in summary.final.iterdir()} == {f"{s.id}.png" for s in given[0].samples}
    with pytest.raises(AdvCAMError, match=r"masks\.json was made with other settings \(method was psa, is irn"):
        refine(SETTINGS, given[1], given[0], tmp_path)
    assert not (tmp_path / "confident").exists(), "it is told before anything is made"


@pytest.mark.slow
def test_real_photographs_and_weights(data_root, tmp_path):
    """Blobs in the middle of true masks teach edges, which lie where the true borders are."""
    voc = read_voc(data_root / "voc", "train")
    few = replace(voc, samples=tuple(s for s in voc.samples if len(s.labels) == 1)[:8])
    store = MapStore(tmp_path / "maps")
    for sample in few.samples:
        (label,) = sample.labels
        inside = (few.mask(sample) == label + 1)[None, None].float()
        blob = inside
        for _ in range(6):
            blob = F.avg_pool2d(blob, 31, 1, 15, count_include_pad=False) * inside
        blob = F.avg_pool2d(blob, 31, 1, 15, count_include_pad=False)
        size = (inside.shape[2], inside.shape[3])
        cam = F.interpolate(blob, strided_size(size, 4), mode="bilinear")[0]
        store.write(sample.id, ClassMaps((label,), size, cam / cam.amax(), blob[0] / blob.amax()))
    settings = IRNSettings(
        backbone="timm/mobilenetv2_100", model_args={"num_classes": 1001, "pad_type": "same"}, mean=(0.5,) * 3,
        std=(0.5,) * 3, checkpoint=data_root / "weights" / "mobilenetv2_100_imagenet.safetensors", crop=192, batch=4,
        epochs=15, radius=5, edge_lr=1.0, workers=0, device="cpu",
    )  # fmt: skip
    summary = refine(RefineSettings(irn=settings, workers=0, device="cpu"), store, few, tmp_path / "out")
    net = load_net(tmp_path / "out" / "irnet" / "irnet.safetensors", IRNET)[0]
    border, rest = [], []
    for sample in few.samples:
        assert set(read_mask(summary.final / f"{sample.id}.png", 20).unique().tolist()) == {0, sample.labels[0] + 1}
        pixels = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1)
        truth = few.mask(sample)[2::4, 2::4]
        at_border = F.max_pool2d((truth == 255)[None].float(), 3, 1, 1)[0] > 0
        edge = edges(net, pixels)[: truth.shape[0], : truth.shape[1]]
        border.append(edge[at_border])
        rest.append(edge[~at_border])
    assert torch.cat(border).mean() > 1.5 * torch.cat(rest).mean()
