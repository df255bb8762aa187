"""Seeds of a data set: what is stored is what the equations say, whatever the batches, ranks and interruptions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from advcam_attr import AdvCAM
from advcam_attr.attr.adapters import SEAMBase
from advcam_attr.climbing import recipes
from advcam_attr.climbing.recipes import released_schedule
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.load import load_model
from advcam_attr.networks.seam import SEAM
from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store, sweep_seeds
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.runs.runtime import Runtime
from advcam_attr.types import AdvCAMError, Sample
from seed_run import SETTINGS, random_data, small_classifier

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return random_data(tmp_path_factory.mktemp("pictures"), 9)


@pytest.fixture
def net() -> nn.Module:
    return small_classifier()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def same_maps(one: Path, two: Path, ids, steps=None, tolerance=0.0) -> None:
    for id in ids:
        a, b = seed_store(one, steps).read(id), seed_store(two).read(id)
        assert (a.classes, a.size) == (b.classes, b.size)
        torch.testing.assert_close(a.high_res, b.high_res, rtol=0, atol=tolerance)
        torch.testing.assert_close(a.cam, b.cam, rtol=0, atol=tolerance)


def picture(sample: Sample, scale: float) -> torch.Tensor:
    """A picture at a scale, as the released code makes it, ``(3, H s, W s)``."""
    with Image.open(sample.image) as image:
        width, height = (int(np.round(side * scale)) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(((np.asarray(resized) / 255.0 - MEAN) / STD).transpose(2, 0, 1))


def section_c(per_scale: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of one class at each scale, ``(h, w)``, to its ``cam`` and ``high_res``."""
    (height, width), small, large = size, 0, 0
    h16, w16 = (height - 1) // 16 + 1, (width - 1) // 16 + 1
    for grid in per_scale:
        at = {"mode": "bilinear", "align_corners": False}
        small = small + F.interpolate(grid[None, None], ((height - 1) // 4 + 1, (width - 1) // 4 + 1), **at)[0, 0]
        large = large + F.interpolate(grid[None, None], (h16 * 16, w16 * 16), **at)[0, 0]
    large = large[:height, :width]
    return small / (small.max() + 1e-5), large / (large.max() + 1e-5)


THREE = (1.0, 0.5, 1.5)


def check(out: Path, data, oracle, tolerance: float) -> None:
    """That all maps of a run folder are those that ``oracle(sample, class, scale)`` gives."""
    store = seed_store(out)
    seen = 0
    for sample in data.samples:
        found = store.read(sample.id)
        assert found.classes == sample.labels
        for row, label in enumerate(sample.labels):
            cam, high_res = section_c([oracle(sample, label, s) for s in THREE], found.size)
            torch.testing.assert_close(found.cam[row].double(), cam.double(), rtol=0, atol=tolerance)
            torch.testing.assert_close(found.high_res[row].double(), high_res.double(), rtol=0, atol=tolerance)
            seen += float(high_res.max()) > 0.5
    assert seen > 3


def test_plain_cam_seeds_are_those_of_the_released_code(tmp_path, data, net):
    make_seeds(net.double(), data, tmp_path, replace(SETTINGS, method="cam", scales=THREE))
    weight = net[-1].weight

    def oracle(sample: Sample, label: int, scale: float) -> torch.Tensor:
        x = picture(sample, scale)
        with torch.no_grad():
            image, mirror = ((weight[label] @ net[:4](v[None])[0].flatten(1)).relu() for v in (x, x.flip(-1)))
            grid = net[:4](x[None]).shape[2:]
        return image.view(grid) + mirror.view(grid).flip(-1)

    check(tmp_path, data, oracle, 1e-5)


def released_climb(net: nn.Module, x: torch.Tensor, label: int, maps: int) -> torch.Tensor:
    """The released code, line by line, two backwards a step: the sum of so many maps, ``(h, w)``."""
    weight = net[-1].weight.detach()
    both = torch.stack([x, x.flip(-1)])
    total, first = 0, None
    for _ in range(maps):
        both = both.detach().requires_grad_()
        f = net[:4](both)
        z = torch.einsum("kc,bchw->bkhw", weight, f)
        (gradient,) = torch.autograd.grad(z[:, label].relu().sum(), f, retain_graph=True)
        alpha = gradient.sum((2, 3)) / (gradient > 0).sum().clamp_min(1)  # NaN there where no pixel is positive
        r = (alpha[:, :, None, None] * f).sum(1).relu()
        r = r[0] + r[1].flip(-1)
        first = r.detach() if first is None else first
        total = total + r.detach()
        y = z.relu().mean((2, 3))
        mask = r.detach() > 0.5 * r.detach().max()
        loss = (2 * y[:, label] - y.sum(1)).sum() - 7 * ((r - first).abs() * mask).sum()
        (step,) = torch.autograd.grad(loss, both)
        low, high = both.min(), both.max()
        both = (both + 0.08 * step / (step.abs().max() + 1e-12)).detach().clamp(low.item(), high.item())
    return total


def test_official_seeds_are_those_of_the_released_loop(tmp_path, data, net):
    small = replace(data, samples=tuple(s for s in data.samples if s.labels)[:3])
    # T = 11 maps, of which scale 0.5 takes 5; the factor 2 is common to all scales and falls out
    make_seeds(net.double(), small, tmp_path, replace(SETTINGS, overrides={"steps": 10}, scales=THREE))
    assert (released_schedule(10, 1.0), released_schedule(10, 0.5)) == ((10, 2.0), (4, 2.0))

    def oracle(sample: Sample, label: int, scale: float) -> torch.Tensor:
        return 2.0 * released_climb(net, picture(sample, scale), label, 5 if scale == 0.5 else 11)

    check(tmp_path, small, oracle, 1e-5)


def test_signed_recipes_that_stop_equal_the_attribution(tmp_path, data, net):
    """The same climb through the other door, one image and class at a time; negative sums are dropped at the end."""
    settings = replace(SETTINGS, recipe="auto", overrides={"steps": 6, "stop": 1.5, "step_rule": 0.1}, scales=(1.0,))
    make_seeds(net.double(), data, tmp_path, settings)
    advcam = AdvCAM(net, recipe="auto", **settings.overrides)
    stopped = []
    for sample in data.samples:
        grids = seed_store(tmp_path).read_grids(sample.id).grids
        for row, label in enumerate(sample.labels):
            climbing = []
            wanted = advcam.attribute(
                picture(sample, 1.0)[None].float(), label, output="native",
                on_step=lambda s, seen=climbing: seen.append(bool(s.climbing[0])),
            )  # fmt: skip
            torch.testing.assert_close(grids[0][row], wanted[0, 0].float(), rtol=1e-4, atol=1e-5)
            stopped.append(not all(climbing))
        maps = seed_store(tmp_path).read(sample.id)
        assert bool((maps.high_res >= 0).all())
    assert 0 < sum(stopped) < len(stopped)


def test_seeds_of_a_generator_are_its_accumulated_maps(tmp_path, data):
    """SEAM is climbed before its correlation module and summed after it, as by the attribution."""
    torch.manual_seed(0)
    seam = SEAM(classes=5, width=1).eval()
    with torch.no_grad():  # features are never negative: without this, a class would win or lose in all places
        seam.fc8.weight -= seam.fc8.weight.mean(1, keepdim=True)
    small = replace(data, samples=tuple(s for s in data.samples if s.labels)[:2])
    settings = replace(SETTINGS, recipe="official_wrn38", overrides={"steps": 2, "schedule": "same"}, scales=(3.0, 2.0))
    for name, base in (("seam", SEAMBase(seam)), ("cam", "cam")):
        make_seeds(seam, small, tmp_path / name, replace(settings, base=base))
    advcam = AdvCAM(seam, base=SEAMBase(seam), recipe=recipes.get("official_wrn38", **settings.overrides, scales=1.0))
    differ = []
    for sample in small.samples:
        found, plain = (seed_store(tmp_path / name).read_grids(sample.id).grids for name in ("seam", "cam"))
        for row, label in enumerate(sample.labels):
            for scale, grids, others in zip(settings.scales, found, plain, strict=True):
                wanted = advcam.attribute(picture(sample, scale)[None].float(), label, output="native")[0, 0]
                torch.testing.assert_close(grids[row], wanted, rtol=1e-4, atol=1e-5)
                differ.append(not torch.allclose(grids[row], others[row], rtol=0.1))
    assert sum(differ) > 0.5 * len(differ)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, recipe="auto"), replace(SETTINGS, method="cam")])
def test_batches_and_threads_do_not_matter(tmp_path, data, net, settings):
    make_seeds(net, data, tmp_path / "one", replace(settings, batch=1, runtime=Runtime(workers=0)))
    make_seeds(net, data, tmp_path / "many", replace(settings, batch=64, runtime=Runtime(workers=3)))
    same_maps(tmp_path / "one", tmp_path / "many", [s.id for s in data.samples], tolerance=1e-5)


@pytest.mark.parametrize("recipe", ["official", "auto"])
def test_a_sweep_equals_separate_runs(tmp_path, data, net, recipe):
    small = replace(data, samples=data.samples[:6])
    settings = replace(SETTINGS, recipe=recipe, overrides={"stop": 3.0} if recipe == "auto" else {})
    steps = (0, 3, 6, 11)
    summary = sweep_seeds(net, small, tmp_path / "sweep", steps, settings)
    assert summary.written == 6
    assert sorted(f.name for f in (tmp_path / "sweep" / "maps").iterdir()) == ["T00", "T03", "T06", "T11"]
    distinct = set()
    for t in steps:
        make_seeds(net, small, tmp_path / f"{t}", replace(settings, overrides={**settings.overrides, "steps": t}))
        same_maps(tmp_path / "sweep", tmp_path / f"{t}", [s.id for s in small.samples], steps=t, tolerance=1e-6)
        distinct.add(seed_store(tmp_path / "sweep", t).path(small.samples[1].id).read_bytes())
    assert len(distinct) == 4
    assert sweep_seeds(net, small, tmp_path / "sweep", steps[::-1], settings).kept == 6
    with pytest.raises(AdvCAMError, match=r"sweep was \[0, 3, 6, 11\], is \[0, 11\]"):
        sweep_seeds(net, small, tmp_path / "sweep", (0, 11), settings)


def test_zero_steps_of_a_flip_pair_are_plain_cam_seeds(tmp_path, data, net):
    make_seeds(net, data, tmp_path / "cam", replace(SETTINGS, method="cam"))
    settings = replace(SETTINGS, recipe="auto", overrides={"steps": 0, "flip": "pair"})
    make_seeds(net, data, tmp_path / "zero", settings)
    same_maps(tmp_path / "cam", tmp_path / "zero", [s.id for s in data.samples])


def test_saliency_background_does_not_change_and_is_recorded(tmp_path, data, net):
    small = replace(data, samples=tuple(s for s in data.samples if s.labels)[:3])

    def left_half(sample: Sample, size: tuple[int, int]) -> torch.Tensor:
        found = torch.zeros(size)
        found[:, : found.shape[1] // 2] = 1.0
        return found

    strong = replace(SETTINGS, overrides={"steps": 6, "regularizers": 500.0, "objective": "target"}, scales=(1.0,))
    make_seeds(net, small, tmp_path / "with", replace(strong, saliency=left_half))
    make_seeds(net, small, tmp_path / "without", strong)
    recorded = json.loads((tmp_path / "with" / "seeds.json").read_text())["settings"]
    assert recorded["saliency"].endswith("left_half")
    advcam = AdvCAM(net, recipe="official", **strong.overrides, scales=1.0)
    differ = 0
    for sample in small.samples:
        (grid,), (other,) = (seed_store(tmp_path / k).read_grids(sample.id).grids for k in ("with", "without"))
        for row, label in enumerate(sample.labels):
            x = picture(sample, 1.0)[None].float()
            wanted = advcam.attribute(x, label, saliency=left_half(sample, tuple(x.shape[2:]))[None], output="native")[
                0, 0
            ]
            torch.testing.assert_close(grid[row], 1.0 * wanted, rtol=1e-4, atol=1e-5)
            differ += not torch.allclose(grid[row], other[row], rtol=1e-3)
    assert differ > 0
    with pytest.raises(AdvCAMError, match="saliency was None"):
        make_seeds(net, small, tmp_path / "without", replace(strong, saliency=left_half))
    wrong = replace(strong, saliency=lambda sample, size: torch.zeros(3, 3))
    summary = make_seeds(net, small, tmp_path / "wrong", wrong)
    assert summary.written == 0
    assert "saliency map of" in summary.failed[0][1]


def test_the_net_is_left_as_it_was(tmp_path, data, net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    make_seeds(net, data, tmp_path, SETTINGS)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_lying_photographs_stand_upright(tmp_path, net, data):
    path = tmp_path / "lying.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (28, 20), "red").save(path, exif=exif)
    make_seeds(net, replace(data, samples=(Sample("a", path, (0,)),)), tmp_path / "out", SETTINGS)
    assert seed_store(tmp_path / "out").read("a").size == (28, 20)


def test_real_photographs_and_weights(tmp_path, data_root):
    voc = data_root / "voc" / "VOCdevkit" / "VOC2012"
    loaded = load_model(
        "timm/mobilenetv2_100", model_args={"num_classes": 1001, "pad_type": "same"}, mean=[0.5], std=[0.5],
        checkpoint=data_root / "weights" / "mobilenetv2_100_imagenet.safetensors",
    )  # fmt: skip
    ids = (voc / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[:2]
    samples = []
    for id in ids:
        path = voc / "JPEGImages" / f"{id}.jpg"
        with Image.open(path) as image, torch.no_grad():
            x = torch.from_numpy(np.asarray(image.convert("RGB")) / 255.0).permute(2, 0, 1)[None].float()
            likely = loaded.model((x - 0.5) / 0.5)[0].topk(2).indices.tolist()
        samples.append(Sample(id, path, tuple(sorted(likely))))
    names = tuple(map(str, range(1001)))
    few = SegmentationData("voc", voc, "few", names, tuple(samples), lambda sample: torch.zeros(1, 1))
    settings = MapSettings(mean=(0.5,), std=(0.5,), overrides={"steps": 1}, scales=(0.5, 0.25))
    assert make_seeds(loaded.model, few, tmp_path, settings).written == 2
    for sample in samples:
        maps = seed_store(tmp_path).read(sample.id)
        with Image.open(voc / "SegmentationClass" / f"{sample.id}.png") as mask:
            assert maps.size == (mask.height, mask.width)
        torch.testing.assert_close(maps.high_res.amax((1, 2)), torch.ones(2), rtol=0, atol=0.02)
        labels = threshold_maps(maps.high_res[:, ::4, ::4], range(2), 0.2)
        assert {1, 2} <= set(labels.unique().tolist()), "each class has its peak somewhere"
