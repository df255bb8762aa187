"""Seeds of a data set: resumed, shared and failing runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store, sweep_seeds
from advcam_attr.runs import map_store as store
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard
from advcam_attr.types import AdvCAMError, Sample
from run_tools import contents
from seed_run import SETTINGS, random_data, same_maps, small_classifier


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return random_data(tmp_path_factory.mktemp("pictures"), 9)


@pytest.fixture
def net() -> nn.Module:
    return small_classifier()


def test_a_run_is_the_same_bytes_in_any_shares(tmp_path, data, net):
    summary = make_seeds(net, data, tmp_path / "one", SETTINGS)
    assert (summary.images, summary.written, summary.kept, summary.failed) == (9, 9, 0, ())
    for rank in (2, 0, 1):
        shared = make_seeds(net, data, tmp_path / "three", SETTINGS, shard=Shard(rank, 3))
        assert 0 < shared.written < 9
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert set(contents(tmp_path / "one")) == {
        "seeds.json", "sizes.json", *(f"maps/{s.id}.safetensors" for s in data.samples)
    }  # fmt: skip


def test_a_second_run_makes_only_what_is_missing(tmp_path, data, net):
    make_seeds(net, data, tmp_path, SETTINGS)
    before = contents(tmp_path)
    summary = make_seeds(net, data, tmp_path, SETTINGS)
    assert (summary.written, summary.kept) == (0, 9)
    one, two, three = [s for s in data.samples if s.labels][:3]
    seed_store(tmp_path).path(one.id).unlink()
    seed_store(tmp_path).path(two.id).write_bytes(before[f"maps/{two.id}.safetensors"][:-3])
    stale = json.loads(before["seeds.json"])["digest"].encode()
    foreign = before[f"maps/{three.id}.safetensors"].replace(stale, b"0" * 16)
    seed_store(tmp_path).path(three.id).write_bytes(foreign)
    summary = make_seeds(net, data, tmp_path, SETTINGS)
    assert 3 <= summary.written < 9
    assert contents(tmp_path) == before


def test_an_interrupted_batch_is_made_again_whole(tmp_path, data, net, monkeypatch):
    make_seeds(net, data, tmp_path / "whole", SETTINGS)
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
    assert contents(tmp_path / "whole") == contents(tmp_path / "two")


def test_unreadable_images_are_failures_of_their_own(tmp_path, data, net):
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
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


def test_an_image_that_changed_its_size_is_a_failure(tmp_path, data, net):
    path = tmp_path / "a.png"
    Image.new("RGB", (28, 20), "red").save(path)
    one = replace(data, samples=(Sample("a", path, (0,)),))
    make_seeds(net, one, tmp_path / "out", SETTINGS)
    Image.new("RGB", (20, 20), "red").save(path)
    summary = make_seeds(net, one, tmp_path / "out", replace(SETTINGS, runtime=Runtime(overwrite=True)))
    ((id, reason),) = summary.failed
    assert id == "a"
    assert f"{path} is 20 x 20, and was 20 x 28" in reason


def test_invalid_input_is_one_line(tmp_path, data, net):
    def rejects(message: str, changed=data, settings=SETTINGS, model=net):
        with pytest.raises(AdvCAMError, match=message) as caught:
            make_seeds(model, changed, tmp_path / "out", settings)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out/maps/*"))

    rejects(r"no images in random all", replace(data, samples=()))
    rejects(r"two images have the id 0000", replace(data, samples=data.samples[:1] * 2))
    rejects(r"has class 7, and the net has 5", replace(data, samples=(replace(data.samples[0], labels=(7,)),)))
    rejects(r"unknown recipe 'ofical'", settings=replace(SETTINGS, recipe="ofical"))
    rejects(r"unknown option 'stepps'", settings=replace(SETTINGS, overrides={"stepps": 3}))
    rejects(r"scales must be positive", settings=replace(SETTINGS, scales=(0.0,)))
    for wrong in ({"method": "campy"}, {"batch": 0}, {"size": (0, 3)}, {"mean": (0.5, 0.5)}, {"std": (0.0,)}):
        with pytest.raises(AdvCAMError, match="must be"):
            replace(SETTINGS, **wrong)
    rejects(r"device 'nonsense'", settings=replace(SETTINGS, runtime=Runtime(device="nonsense")))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 28, 5))
    with pytest.raises(AdvCAMError, match="no grid of features over the image was found"):
        make_seeds(flat, data, tmp_path / "flat", SETTINGS)
    for steps in ((), (3, -1)):
        with pytest.raises(AdvCAMError, match="steps"):
            sweep_seeds(net, data, tmp_path / "out", steps)
    with pytest.raises(AdvCAMError, match="no seeds in"):
        seed_store(tmp_path)


def test_other_settings_need_overwrite(tmp_path, data, net):
    make_seeds(net, data, tmp_path, SETTINGS)
    before = contents(tmp_path)
    other = replace(SETTINGS, overrides={"steps": 2})
    with pytest.raises(AdvCAMError, match=r"seeds\.json was made with other settings \(recipe\.steps was 3, is 2\)"):
        make_seeds(net, data, tmp_path, other)
    with torch.no_grad():
        net[-1].weight[0, 0] += 1
    with pytest.raises(AdvCAMError, match=r"weights was \w+, is \w+"):
        make_seeds(net, data, tmp_path, SETTINGS)
    assert contents(tmp_path) == before
    assert make_seeds(net, data, tmp_path, replace(other, runtime=Runtime(overwrite=True))).written == 9
    make_seeds(net, data, tmp_path / "fresh", other)
    after, fresh = contents(tmp_path), contents(tmp_path / "fresh")
    assert {name: after[name] for name in fresh} == fresh


def test_execution_is_no_setting(tmp_path, data, net):
    make_seeds(net, data, tmp_path, SETTINGS)
    faster = replace(SETTINGS, batch=9, runtime=Runtime(workers=0, device="cpu"))
    assert make_seeds(net, data, tmp_path, faster).kept == 9


def test_every_setting_is_described_or_execution(net, data):
    from advcam_attr.pipelines.map_settings import config_dict

    words = config_dict(MapSettings(normalization="seam"), net, data.name, None)
    names = {f.name for f in dataclasses.fields(MapSettings)}
    recorded = {name.removeprefix("recipe.") for name in words} | {"recipe", "overrides"}
    assert names - recorded == {"batch", "runtime"}


def test_a_full_disk_is_one_line_and_the_run_resumes(tmp_path, data, net, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".safetensors" and len(list(path.parent.glob("0*"))) >= 4:
            write(path, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match="No space left on device") as caught:
        make_seeds(net, data, tmp_path / "out", SETTINGS)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 4
    make_seeds(net, data, tmp_path / "out", SETTINGS)
    make_seeds(net, data, tmp_path / "whole", SETTINGS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_too_little_memory_is_one_line(tmp_path, data, net, monkeypatch):
    def too_large(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("advcam_attr.attr.advcam.climb", too_large)
    with pytest.raises(AdvCAMError, match=r"too little memory for 4 samples of \d+ x \d+ pixels: lower batch"):
        make_seeds(net, data, tmp_path, SETTINGS)


def test_maps_that_are_not_finite_are_failures(tmp_path, data, net):
    calls = []

    def once_infinite(acts, target: torch.Tensor) -> torch.Tensor:
        calls.append(target)
        return acts.features.sum(1) / (0.0 if len(calls) == 1 else 1.0)

    settings = replace(SETTINGS, recipe="auto", overrides={"steps": 0}, base=once_infinite, batch=1, scales=(1.0,))
    summary = make_seeds(net, data, tmp_path, settings)
    assert len(summary.failed) == 1
    assert "NaN or infinite" in summary.failed[0][1]
    assert summary.written == 8
