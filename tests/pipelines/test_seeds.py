"""Seeds of a data set: what is stored is what the equations say, whatever the batches, ranks and interruptions."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
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
from advcam_attr.runs.sharding import Shard
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


def test_a_run_is_the_same_bytes_in_any_shares(tmp_path, data, net):
    summary = make_seeds(net, data, tmp_path / "one", SETTINGS)
    assert (summary.images, summary.written, summary.kept, summary.failed) == (9, 9, 0, ())
    for rank in (2, 0, 1):
        shared = make_seeds(net, data, tmp_path / "three", SETTINGS, shard=Shard(rank, 3))
        assert 0 < shared.written < 9
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "three")
    assert set(snapshot(tmp_path / "one")) == {
        "seeds.json", "sizes.json", *(f"maps/{s.id}.safetensors" for s in data.samples)
    }  # fmt: skip


def test_a_second_run_keeps_what_is_done_and_mends_what_is_not(tmp_path, data, net, caplog):
    caplog.set_level(logging.INFO, "advcam_attr")
    make_seeds(net, data, tmp_path, SETTINGS)
    before = snapshot(tmp_path)
    summary = make_seeds(net, data, tmp_path, SETTINGS)
    assert (summary.written, summary.kept) == (0, 9)
    assert (
        f"rank 0 of 1: 9 of 9 images of random all in {len(batches(data))} batches; "
        f"9 are in {tmp_path / 'maps'}, 0 are to do"
    ) in caplog.messages
    one, two, three = [s for s in data.samples if s.labels][:3]
    seed_store(tmp_path).path(one.id).unlink()
    seed_store(tmp_path).path(two.id).write_bytes(before[f"maps/{two.id}.safetensors"][:-3])
    stale = json.loads(before["seeds.json"])["digest"].encode()
    foreign = before[f"maps/{three.id}.safetensors"].replace(stale, b"0" * 16)
    seed_store(tmp_path).path(three.id).write_bytes(foreign)
    summary = make_seeds(net, data, tmp_path, SETTINGS)
    assert 3 <= summary.written < 9
    assert snapshot(tmp_path) == before


def batches(data):
    from advcam_attr.data.images import image_size
    from advcam_attr.runs.prefetch import plan_batches

    return plan_batches([image_size(s.image) for s in data.samples], [len(s.labels) for s in data.samples], 4)


def test_an_interrupted_batch_is_done_again_with_the_same_mates(tmp_path, data, net, monkeypatch):
    make_seeds(net, data, tmp_path / "whole", SETTINGS)
    from advcam_attr.runs import map_store as store

    write, written = store.write_bytes, []

    def interrupted(path, content):
        if path.suffix == ".safetensors":
            written.append(path)
            if len(written) == 6:
                raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(store, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_seeds(net, data, tmp_path / "two", SETTINGS)
    monkeypatch.undo()
    assert len(list((tmp_path / "two" / "maps").iterdir())) == 5
    make_seeds(net, data, tmp_path / "two", SETTINGS)
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "two")


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
    settings = replace(SETTINGS, recipe="auto", overrides={"steps": 0, "transform": "relu"})
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


def test_images_that_cannot_be_read_are_named_and_the_rest_goes_on(tmp_path, data, net):
    broken = tmp_path / "broken.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:-300])
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    bad = (Sample("cut", broken, (1,)), Sample("gone", tmp_path / "gone.jpg", (1,)), Sample("text", text, ()))
    with_bad = replace(data, samples=(*data.samples[:5], *bad, *data.samples[5:]))
    summary = make_seeds(net, with_bad, tmp_path / "out", SETTINGS)
    assert (summary.images, summary.written) == (12, 9)
    reasons = dict(summary.failed)
    assert reasons.keys() == {"cut", "gone", "text"}
    assert "truncated" in reasons["cut"]
    assert "no such image file" in reasons["gone"]
    assert "not an image" in reasons["text"]
    assert "9 written, 0 kept, 3 failed" in str(summary)
    make_seeds(net, data, tmp_path / "good", SETTINGS)
    same_maps(tmp_path / "out", tmp_path / "good", [s.id for s in data.samples], tolerance=1e-5)
    shares = [make_seeds(net, with_bad, tmp_path / "two", SETTINGS, shard=Shard(r, 2)) for r in range(2)]
    assert sorted(id for share in shares for id, _ in share.failed) == ["cut", "gone", "text"]
    assert sum(share.images for share in shares) == 12
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "out")


def test_a_picture_that_changed_its_size_is_told(tmp_path, data, net):
    path = tmp_path / "a.png"
    Image.new("RGB", (28, 20), "red").save(path)
    one = replace(data, samples=(Sample("a", path, (0,)),))
    make_seeds(net, one, tmp_path / "out", SETTINGS)
    Image.new("RGB", (20, 20), "red").save(path)
    summary = make_seeds(net, one, tmp_path / "out", replace(SETTINGS, runtime=Runtime(overwrite=True)))
    assert summary.failed == (
        ("a", f"{path} is 20 x 20, and was 20 x 28 when the run began: remove sizes.json from the run folder if the "
              "images have changed"),
    )  # fmt: skip


def test_what_cannot_be_used_is_one_line(tmp_path, data, net):
    def refused(message: str, changed=data, settings=SETTINGS, model=net):
        with pytest.raises(AdvCAMError, match=message) as told:
            make_seeds(model, changed, tmp_path / "out", settings)
        assert "\n" not in str(told.value)
        assert not list(tmp_path.glob("out/maps/*"))

    refused(r"no images in random all", replace(data, samples=()))
    refused(r"two images have the id 0000", replace(data, samples=data.samples[:1] * 2))
    refused(r"has class 7, and the net has 5", replace(data, samples=(replace(data.samples[0], labels=(7,)),)))
    refused(r"unknown recipe 'ofical'", settings=replace(SETTINGS, recipe="ofical"))
    refused(r"unknown option 'stepps'", settings=replace(SETTINGS, overrides={"stepps": 3}))
    refused(r"scales must be positive", settings=replace(SETTINGS, scales=(0.0,)))
    with pytest.raises(AdvCAMError, match="method must be"):
        replace(SETTINGS, method="campy")
    for wrong in ({"batch": 0}, {"size": (0, 3)}, {"mean": (0.5, 0.5)}, {"std": (0.0,)}):
        with pytest.raises(AdvCAMError, match="must be"):
            replace(SETTINGS, **wrong)
    refused(r"device 'nonsense'", settings=replace(SETTINGS, runtime=Runtime(device="nonsense")))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 28, 5))
    refused(r"Sequential does not take images of 24 x 24 pixels .* seeds need a net that takes any size", model=flat)
    with pytest.raises(AdvCAMError, match="at least one number of steps"):
        sweep_seeds(net, data, tmp_path / "out", ())
    with pytest.raises(AdvCAMError, match="must not be negative"):
        sweep_seeds(net, data, tmp_path / "out", (3, -1))
    with pytest.raises(AdvCAMError, match="no seeds in"):
        seed_store(tmp_path)


def test_other_settings_are_refused_unless_overwritten(tmp_path, data, net):
    make_seeds(net, data, tmp_path, SETTINGS)
    before = snapshot(tmp_path)
    other = replace(SETTINGS, overrides={"steps": 2})
    with pytest.raises(AdvCAMError, match=r"seeds\.json was made with other settings \(recipe\.steps was 3, is 2\)"):
        make_seeds(net, data, tmp_path, other)
    with torch.no_grad():
        net[-1].weight[0, 0] += 1
    with pytest.raises(AdvCAMError, match=r"weights was \w+, is \w+"):
        make_seeds(net, data, tmp_path, SETTINGS)
    assert snapshot(tmp_path) == before
    assert make_seeds(net, data, tmp_path, replace(other, runtime=Runtime(overwrite=True))).written == 9
    make_seeds(net, data, tmp_path / "fresh", other)
    after, fresh = snapshot(tmp_path), snapshot(tmp_path / "fresh")
    assert {name: after[name] for name in fresh} == fresh


def test_execution_is_no_setting(tmp_path, data, net):
    make_seeds(net, data, tmp_path, SETTINGS)
    faster = replace(SETTINGS, batch=9, runtime=Runtime(workers=0, device="cpu"))
    assert make_seeds(net, data, tmp_path, faster).kept == 9


def test_every_setting_is_described_or_execution(net, data):
    from advcam_attr.pipelines.map_settings import config_dict

    words = config_dict(MapSettings(), net, data.name, None)
    names = {f.name for f in dataclasses.fields(MapSettings)}
    recorded = {name.removeprefix("recipe.") for name in words} | {"recipe", "overrides"}
    assert names - recorded == {"batch", "runtime"}


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_later(tmp_path, data, net, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".safetensors" and len(list(path.parent.glob("0*"))) >= 4:
            write(path, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match="No space left on device") as told:
        make_seeds(net, data, tmp_path / "out", SETTINGS)
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 4
    make_seeds(net, data, tmp_path / "out", SETTINGS)
    make_seeds(net, data, tmp_path / "whole", SETTINGS)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_too_little_memory_is_told(tmp_path, data, net, monkeypatch):
    def too_large(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("advcam_attr.attr.advcam.climb", too_large)
    with pytest.raises(AdvCAMError, match=r"too little memory for 4 samples of \d+ x \d+ pixels: lower batch"):
        make_seeds(net, data, tmp_path, SETTINGS)


def test_maps_that_are_not_finite_are_failures_of_their_image(tmp_path, data, net):
    calls = []

    def once_infinite(acts, target: torch.Tensor) -> torch.Tensor:
        calls.append(target)
        return acts.features.sum(1) / (0.0 if len(calls) == 1 else 1.0)

    settings = replace(SETTINGS, recipe="auto", overrides={"steps": 0}, base=once_infinite, batch=1, scales=(1.0,))
    summary = make_seeds(net, data, tmp_path, settings)
    assert len(summary.failed) == 1
    assert "not finite" in summary.failed[0][1]
    assert summary.written == 8


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
