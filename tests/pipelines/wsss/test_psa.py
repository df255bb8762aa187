"""PSA: label scores, training of its net, masks by its walk, resuming, and odd input."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advcam_attr.data.masks import mask_path, palette, png_settings, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.networks.affinitynet import AFFINITY_NET, ResNet38Affinity, affinity_net
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.wsss.affinity import refine_by_affinity, train_affinity, write_masks
from advcam_attr.pipelines.wsss.psa import PSA, SETTINGS, AffinityItems, PSAConfig, read_scores, write_scores
from advcam_attr.refine.affinity_labels import psa_scores
from advcam_attr.refine.psa import (
    affinity_labels,
    affinity_walk,
    affinity_walk_labels,
    pair_losses,
    walk_maps,
    weighted_loss,
)
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.training import train as training
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError, ClassMaps, Sample
from logs import record_log
from places import HELPERS
from psa_run import OPTIMIZER, SMALL, Seeds, SteadyPSA, discs, with_trunk
from refine_run import RUNTIME
from run_tools import LEFTOVER, contents, killed_at_step, run_script, write_times


def refine_psa(config, seeds, data, out, **runtime):
    refine_by_affinity(PSA(config, replace(RUNTIME, **runtime)), seeds, data, out)


def train_psa(config, net, data, out):
    return train_affinity(PSA(config, RUNTIME), net, data, out)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> PSAConfig:
    return with_trunk(SMALL, tmp_path_factory.mktemp("trunk"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("discs"), 5)


@pytest.fixture(scope="module")
def run(world, small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("psa")
    refine_psa(small, world[1], world[0], out)
    return out


@pytest.fixture(scope="module")
def trained(run) -> Path:
    return run / "affinitynet" / "affinitynet.safetensors"


@pytest.fixture
def net(trained) -> ResNet38Affinity:
    return load_net(trained, AFFINITY_NET)[0]


@pytest.fixture(scope="module")
def masks(run) -> dict[str, bytes]:
    return {name: content for name, content in contents(run).items() if name.startswith("masks")}


def test_written_files(world, run):
    data, _ = world
    names = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert names == {
        "scores.json", "masks.json",
        *(f"{folder}/{n}.png" for folder in ("scores", "masks") for n in range(5)),
        *(f"affinitynet/{name}" for name in ("training.json", "log.jsonl", "checkpoint.pt", "affinitynet.safetensors")),
    }  # fmt: skip
    log = read_log(run / "affinitynet" / "log.jsonl")
    assert [record["step"] for record in log] == [0, 1, 2, 3]
    assert log[0]["lr"] == pytest.approx([0.01, 0.02, 0.1, 0.2])
    assert log[2]["lr"][2] == pytest.approx(0.1 * 0.5**0.9)
    with Image.open(run / "masks" / "0.png") as mask:
        assert (mask.mode, mask.getpalette()) == ("P", palette().ravel().tolist())
    for sample in data.samples:
        labels = read_mask(run / "masks" / f"{sample.id}.png", 2)
        assert labels.shape == data.mask(sample).shape
        assert set(labels.unique().tolist()) == {0, sample.labels[0] + 1}


def test_masks_equal_the_steps_one_by_one(world, run, net):
    data, seeds = world
    for sample in data.samples[:2]:
        with Image.open(sample.image) as image:
            pixels = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)
        x = (pixels - torch.tensor(net.mean)[:, None, None]) / torch.tensor(net.std)[:, None, None]
        _, height, width = x.shape
        padded = torch.zeros(1, 3, -(-height // 8) * 8, -(-width // 8) * 8)
        padded[0, :, :height, :width] = x
        with torch.no_grad():
            walked = affinity_walk(
                walk_maps(seeds[sample.id].high_res), net(padded)[0], radius=3, steps=4, small_grids="seam"
            )
        expected = affinity_walk_labels(walked, sample.labels, (height, width))
        assert torch.equal(read_mask(run / "masks" / f"{sample.id}.png", 2), expected)


def test_scores_on_disk(world, run, tmp_path):
    data, seeds = world
    for sample in data.samples:
        with Image.open(sample.image) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        whole = torch.cat(psa_scores(seeds[sample.id], pixels))
        kept = read_scores(run / "scores" / f"{sample.id}.png", (pixels.shape[1], pixels.shape[2]))
        torch.testing.assert_close(kept, whole, atol=0.5 / 255 + 1e-6, rtol=0)
        same = affinity_labels(*kept.chunk(2)) == affinity_labels(*whole.chunk(2))
        assert same.float().mean() > 0.95
    write_scores(tmp_path / "a.png", torch.rand(4, 1, 9))
    assert read_scores(tmp_path / "a.png", (1, 9)).shape == (4, 1, 9)
    (tmp_path / "b.png").write_bytes(b"no PNG")
    for name, size, message in (("a", (1, 8), "8 x 1"), ("b", (1, 9), "label score"), ("c", (1, 9), "no such")):
        with pytest.raises(AdvCAMError, match=message):
            read_scores(tmp_path / f"{name}.png", size)


def test_images_and_labels_are_cut_together(tmp_path):
    """An image that is red where the scores are foreground: so are all cells of one label, wherever they are cut."""
    data, _ = discs(tmp_path / "images", 1)
    pixels = np.zeros((50, 70, 3), np.uint8)
    pixels[8:32, 16:48] = 255
    Image.fromarray(pixels).save(data.samples[0].image)
    foreground = torch.from_numpy(pixels[..., 0] / 255).float()
    both = torch.stack([1 - foreground, foreground])
    write_scores(tmp_path / "0.png", torch.cat([both, both]))
    net = affinity_net(Backbone("resnet38", random_weights=True), width=1)
    items = AffinityItems(replace(SMALL, crop=64, jitter=(0.0, 0.0, 0.0, 0.0)), net, data, tmp_path)
    seen = []
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = items[0]
        bright, inside = (
            F.avg_pool2d(m, 8)[0] for m in ((image[:1] > 0).float(), (image != 0).any(0, keepdim=True).float())
        )
        assert (image.shape, labels.shape, labels.dtype) == ((3, 64, 64), (8, 8), torch.uint8)
        assert torch.equal(labels == 255, inside == 0)
        assert torch.equal(labels == 1, bright > inside - bright)
        seen.append(labels)
    assert len({tuple(labels.flatten().tolist()) for labels in seen}) > 4


def test_jitter_changes_colours_and_not_labels(world, run):
    net = affinity_net(Backbone("resnet38", random_weights=True), width=1)
    drawn = []
    for jitter in ((0.0, 0.0, 0.0, 0.0), SMALL.jitter):
        items = AffinityItems(replace(SMALL, crop=64, jitter=jitter), net, world[0], run / "scores")
        torch.manual_seed(0)
        drawn.append(items[0])
    assert (drawn[0][0] - drawn[1][0]).abs().max() > 0.05


def test_one_step_is_worked_out(small, world, run, tmp_path):
    """Momentum does nothing yet in the first step: w - rate · (gradient + decay · w), ten times faster in the head."""
    settings = replace(
        small, epochs=1, batch=5, optimizer=replace(OPTIMIZER, weight_decay=0.1), jitter=(0.0, 0.0, 0.0, 0.0)
    )
    net, twin = (SteadyPSA(small, RUNTIME).make_net() for _ in range(2))
    with_scores(run, tmp_path)
    found = train_psa(settings, net, world[0], tmp_path)
    items = AffinityItems(settings, twin, world[0], run / "scores")
    ((images, labels),) = training.load_batches(items, training.TrainingBatches(5, 5, seed=0, steps=(0, 1)), seed=0)
    loss = weighted_loss(*pair_losses(twin(images), labels, radius=3))
    assert read_log(tmp_path / "affinitynet" / "log.jsonl")[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, weight in twin.named_parameters():
        expected = weight.detach()
        if weight.requires_grad:
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            rate = 0.1 if name.startswith("f") else 0.01
            expected = weight - rate * (gradient + 0.1 * weight)
        torch.testing.assert_close(found.get_parameter(name), expected, atol=1e-6, rtol=1e-4)


def with_scores(run: Path, out: Path) -> None:
    (out / "scores").mkdir()
    for file in [run / "scores.json", *(run / "scores").iterdir()]:
        (out / file.relative_to(run)).write_bytes(file.read_bytes())


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (3, 2)])
def test_resumed_training_ends_with_the_same_bytes(small, world, run, tmp_path, stop, every):
    data, seeds = world
    with_scores(run, tmp_path)
    with killed_at_step(stop):
        refine_psa(replace(small, checkpoint_every=every), seeds, data, tmp_path)
    (tmp_path / "affinitynet" / f"{LEFTOVER}.pt").write_text("left by a killed process")
    refine_psa(small, seeds, data, tmp_path)
    assert contents(run) == contents(tmp_path)


def test_second_run_changes_nothing(small, world, run):
    times, logged = write_times(run), record_log()
    refine_psa(small, world[1], world[0], run, workers=1)
    assert times == write_times(run)
    assert any("nothing to train" in line for line in logged)


def test_missing_and_damaged_masks_are_made_again(small, world, masks, net, tmp_path):
    data, seeds = world
    write_masks(PSA(small, RUNTIME), net, seeds, data, tmp_path)
    assert contents(tmp_path) == masks
    (tmp_path / "masks" / "1.png").unlink()
    (tmp_path / "masks" / "2.png").write_bytes(masks["masks/2.png"][:20])
    Image.new("P", (60, 44)).save(tmp_path / "masks" / "3.png")
    left = tmp_path / "masks" / f"{LEFTOVER}.png"
    left.write_text("by a process that was killed")
    os.utime(left, (0, 0))
    write_masks(PSA(small, RUNTIME), net, seeds, data, tmp_path)
    assert contents(tmp_path) == masks
    with pytest.raises(AdvCAMError, match=r"masks.json .* \(alpha"):
        write_masks(PSA(replace(small, alpha=4.0), RUNTIME), net, seeds, data, tmp_path)
    write_masks(PSA(replace(small, alpha=4.0), replace(RUNTIME, overwrite=True)), net, seeds, data, tmp_path)
    changed = contents(tmp_path)
    assert all(changed[name] != masks[name] for name in masks)


def test_modes_and_random_state_are_restored(small, world, run, net, tmp_path):
    net.train().b6.eval()
    modes, state = [m.training for m in net.modules()], torch.random.get_rng_state()
    write_masks(PSA(small, RUNTIME), net, world[1], world[0], tmp_path)
    with_scores(run, tmp_path)
    train_psa(replace(small, epochs=1), net, world[0], tmp_path)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_settings_raise_or_overwrite(small, world, run, tmp_path):
    data, seeds = world
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for changes in ({"alphas": (4.0, 24.0)}, {"epochs": 1}):
        with pytest.raises(AdvCAMError, match=next(iter(changes))):
            refine_psa(replace(small, **changes), seeds, data, tmp_path)
    refine_psa(replace(small, epochs=1), seeds, data, tmp_path, overwrite=True)
    assert len(read_log(tmp_path / "affinitynet" / "log.jsonl")) == 2


def changed(world, maps: ClassMaps | None, pixels: np.ndarray | None = None, folder: Path | None = None):
    """The data and seeds with one more image."""
    data, seeds = world
    more = Seeds(seeds)
    image = data.samples[0].image if folder is None else folder / "new.png"
    if pixels is not None:
        Image.fromarray(pixels).save(image)
    if maps is not None:
        more["new"] = maps
    labels = () if maps is None else maps.classes
    return replace(data, samples=(*data.samples, Sample("new", image, labels))), more


def maps_of(high_res: Tensor, *classes: int) -> ClassMaps:
    return ClassMaps(classes, (high_res.shape[1], high_res.shape[2]), torch.zeros(len(classes), 1, 1), high_res)


def test_maps_of_another_size_or_not_finite(small, world, net, tmp_path):
    data, seeds = changed(world, maps_of(torch.zeros(1, 9, 9), 1))
    reason = r"1 images .* of 9 x 9 pixels and its image .* of 60 x 44"
    with pytest.raises(AdvCAMError, match=reason):
        write_masks(PSA(small, RUNTIME), net, seeds, data, tmp_path)
    assert len(list((tmp_path / "masks").iterdir())) == 5
    with pytest.raises(AdvCAMError, match=reason):
        refine_psa(small, seeds, data, tmp_path)
    bad = changed(world, maps_of(torch.full((1, 44, 60), torch.nan), 1))
    with pytest.raises(AdvCAMError, match="maps of new are not finite"):
        write_masks(PSA(small, RUNTIME), net, bad[1], bad[0], tmp_path)


@pytest.mark.parametrize(
    ("high_res", "classes", "colour", "expected"),
    [
        (torch.zeros(2, 30, 40), (0, 1), "noise", {0}),
        (torch.zeros(0, 30, 40), (), "noise", {0}),
        (torch.ones(1, 30, 40), (1,), "plain", {2}),
        (torch.linspace(0, 1, 60).reshape(1, 60, 1), (1,), "noise", {0, 2}),
        (torch.linspace(0, 1, 60).reshape(1, 1, 60), (0,), "plain", {0, 1}),
        (torch.ones(1, 1, 1), (0,), "plain", {1}),
    ],
)
def test_odd_images_and_maps(small, world, tmp_path, high_res, classes, colour, expected):
    """Maps of zeros, no class, one colour, one label only, images 1 pixel wide or high: from seeds to masks."""
    height, width = high_res.shape[1:]
    pixels = np.full((height, width, 3), 90, np.uint8)
    if colour == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape).astype(np.uint8)
    data, seeds = changed(world, maps_of(high_res, *classes), pixels, tmp_path)
    data = replace(data, samples=data.samples[-2:])
    refine_psa(replace(small, epochs=1), seeds, data, tmp_path / "out")
    mask = read_mask(tmp_path / "out" / "masks" / "new.png", 2, (height, width))
    assert set(mask.unique().tolist()) == expected


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({}, ["3"], "seeds of 1 of 5 images are missing, e.g. 3"),
        ({}, None, "no images in discs all"),
        ({"crop": 24}, [], "crop of 24 pixels"),
        ({"backbone": Backbone("resnet38")}, [], "resnet38 needs a file"),
        ({"batch": 8}, [], "fewer than one batch of 8"),
    ],
)
def test_bad_input_raises_before_the_training(small, world, tmp_path, changes, missing, message):
    data, seeds = world
    if missing is None:
        data = replace(data, samples=())
    else:
        seeds = Seeds({id: maps for id, maps in seeds.items() if id not in missing})
    with pytest.raises(AdvCAMError, match=message):
        refine_psa(replace(small, **changes), seeds, data, tmp_path / "out")
    assert not (tmp_path / "out" / "affinitynet" / "log.jsonl").exists()
    assert (tmp_path / "out").exists() == ("batch" in changes)


def test_missing_scores_and_names_outside_the_folder(small, world, tmp_path):
    with pytest.raises(AdvCAMError, match="label scores of 5 of 5 images are missing"):
        train_psa(small, PSA(small, RUNTIME).make_net(), world[0], tmp_path / "out")
    with pytest.raises(AdvCAMError, match="cannot name a file"):
        mask_path(tmp_path, "../escape")


@pytest.mark.parametrize(
    "options",
    [{"alphas": (32.0, 4.0)}, {"jitter": (0.1, 0.1, 0.1, 0.6)}, {"radius": 1}, {"radius": 33}, {"crf": "ps"}],
)
def test_invalid_settings(options):
    with pytest.raises(AdvCAMError):
        replace(SMALL, **options)


def test_the_released_codes_numbers():
    psa, seam = SETTINGS["psa"], SETTINGS["seam"]
    assert (psa.alphas, psa.alpha, psa.beta, psa.steps, psa.radius) == ((4, 32), 16, 8, 256, 5)
    assert (psa.epochs, psa.batch, psa.crop) == (8, 8, 448)
    assert psa.optimizer == Optimizer(0.1, weight_decay=5e-4, momentum=5e-4, power=0.9)
    assert replace(seam, alphas=psa.alphas, optimizer=psa.optimizer, alpha=16.0, steps=256, small_grids="psa") == psa
    assert (seam.alphas, seam.optimizer.lr, seam.alpha, seam.steps, seam.small_grids) == ((4, 24), 0.01, 6, 64, "seam")


@pytest.mark.slow
def test_masks_are_better_than_their_seeds(tmp_path):
    """The walk carries the maps from the upper part of the discs, which they know, to the whole; mean of three nets."""
    data, seeds = discs(tmp_path / "images", 8)
    best = max(seed_iou(data, seeds, threshold / 20) for threshold in range(1, 18))
    found = []
    for seed in range(3):
        optimizer = replace(OPTIMIZER, lr=0.1, momentum=0.5)
        settings = replace(SMALL, width=4, epochs=25, batch=4, crop=64, optimizer=optimizer, steps=256)
        out = tmp_path / f"out{seed}"
        refine_psa(with_trunk(settings, tmp_path), seeds, data, out, seed=seed)
        losses = [record["loss"] for record in read_log(out / "affinitynet" / "log.jsonl")]
        assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
        found.append(evaluate_masks(out / "masks", data).scores().mean_iou)
    assert np.mean(found) > best + 0.03


def seed_iou(data: SegmentationData, seeds: Seeds, threshold: float) -> float:
    """Mean IoU of the seeds, cut at one threshold."""
    matrix = ConfusionMatrix(3)
    for sample in data.samples:
        matrix.update(threshold_maps(seeds[sample.id].high_res, sample.labels, threshold), data.mask(sample))
    return matrix.mean_iou()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """To rounding: each batch is shared, and the loss is the mean over the pairs of the whole batch."""
    for name, ranks in (("one", 1), ("two", 2)):
        run_script(HELPERS / "psa_run.py", tmp_path / "images", tmp_path / name, ranks=ranks)
    one, two = (
        load_net(tmp_path / n / "affinitynet" / "affinitynet.safetensors", AFFINITY_NET)[0] for n in ("one", "two")
    )
    for (name, weight), other in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    losses = [[r["loss"] for r in read_log(tmp_path / n / "affinitynet" / "log.jsonl")] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert png_settings(tmp_path / "two" / "masks" / "0.png")
