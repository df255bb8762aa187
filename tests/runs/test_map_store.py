"""The map store: round trips, atomic writes, foreign and damaged files."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from advcam_attr.refine.seeds import GridMaps, class_maps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import AdvCAMError, ClassMaps


def grids(classes=(2, 5), size=(33, 47), seed=0) -> GridMaps:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 3), (2, 2), (4, 5))
    return GridMaps(classes, size, tuple(torch.rand(len(classes), h, w, generator=generator) for h, w in shapes))


@pytest.fixture(params=["flat", "spread"])
def store(request, tmp_path) -> MapStore:
    return MapStore(tmp_path / "maps", settings="abc", layout=request.param)


def same(one: ClassMaps, two: ClassMaps) -> bool:
    return (
        one.classes == two.classes
        and one.size == two.size
        and torch.equal(one.cam, two.cam)
        and torch.equal(one.high_res, two.high_res)
    )


def test_grids_round_trip_and_are_resized_when_read(store):
    written = grids()
    store.write("2007_000032", written)
    read = store.read_grids("2007_000032")
    assert (read.classes, read.size) == (written.classes, written.size)
    assert all(torch.equal(a, b) for a, b in zip(read.grids, written.grids, strict=True))
    assert same(store.read("2007_000032"), class_maps(written))


def test_ready_maps_round_trip(store):
    maps = class_maps(grids())
    store.write("a", maps)
    assert same(store.read("a"), maps)
    with pytest.raises(AdvCAMError, match="ready maps"):
        store.read_grids("a")


@pytest.mark.parametrize("empty", [GridMaps((), (33, 47), ()), class_maps(GridMaps((), (33, 47), ()))])
def test_an_image_without_classes(store, empty):
    store.write("a", empty)
    read = store.read("a")
    assert (read.classes, read.size, read.cam.shape, read.high_res.shape) == ((), (33, 47), (0, 9, 12), (0, 33, 47))


def test_ids_and_missing_ids(store):
    assert list(store.ids()) == []
    for id in ("b", "a.1", "COCO_train2014_000000000009"):
        store.write(id, grids())
    assert list(store.ids()) == sorted(["b", "a.1", "COCO_train2014_000000000009"])
    assert store.missing(["z", "b", "y", "a.1"]) == ["z", "y"]
    assert "b" in store
    assert "z" not in store
    again = MapStore(store.folder)
    assert again.layout == store.layout, "an existing store keeps its layout"
    assert list(again.ids()) == list(store.ids())
    assert same(again.read("b"), store.read("b"))


def test_equal_maps_make_equal_bytes(tmp_path):
    mask = os.umask(0o027)
    try:
        for name in ("one", "two"):
            MapStore(tmp_path / name, settings="abc").write("a", grids())
    finally:
        os.umask(mask)
    assert (tmp_path / "one" / "a.safetensors").read_bytes() == (tmp_path / "two" / "a.safetensors").read_bytes()
    assert (tmp_path / "one" / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_damaged_files_have_no_header(store):
    store.write("a", grids())
    header = store.header("a")
    assert header is not None
    assert (header.classes, header.size, header.settings) == ((2, 5), (33, 47), "abc")
    assert store.header("z") is None
    content = store.path("a").read_bytes()
    negative = content.replace(b"[33, 47]", b"[-3, 47]")
    assert negative != content
    for damaged in (content[:-4], content[:20], b"", b"\0" * 500, content[:8] + b"x" + content[9:], negative):
        store.path("a").write_bytes(damaged)
        assert store.header("a") is None
        with pytest.raises(AdvCAMError, match=r"a\.safetensors is damaged or no file of maps; remove it") as caught:
            store.read("a")
        assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_errors(store):
    with pytest.raises(AdvCAMError, match=r"no maps of image a: .* is missing"):
        store.read("a")
    store.write("a", grids())
    save_file({"weight": torch.ones(2)}, store.path("a"))
    with pytest.raises(AdvCAMError, match="no file of maps"):
        store.read("a")
    about = json.dumps({"classes": [1], "size": [3, 3], "settings": "abc"})
    for tensors in ({"grid0": torch.ones(2, 1, 1)}, {"grid1": torch.ones(1, 1, 1)}, {"grid0": torch.ones(1, 1)}, {}):
        save_file(tensors, store.path("a"), {"advcam_maps": about})
        with pytest.raises(AdvCAMError, match="no file of maps"):
            store.read("a")
    store.write("a", grids())
    with pytest.raises(AdvCAMError, match="made with other settings"):
        MapStore(store.folder, settings="other").read("a")
    assert MapStore(store.folder).read("a").classes == (2, 5)


@pytest.mark.parametrize("id", ["", "../a", "a/b", ".hidden", "a\\b", "a\0"])
def test_ids_must_name_a_file_of_the_folder(store, id):
    with pytest.raises(AdvCAMError, match="cannot name a file"):
        store.write(id, grids())


def test_maps_must_fit_and_be_finite(store):
    whole = grids()
    broken = GridMaps(whole.classes, whole.size, (whole.grids[0] / 0, *whole.grids[1:]))
    ready = class_maps(whole)
    for maps in (
        broken,
        GridMaps((1,), whole.size, whole.grids),
        ClassMaps(ready.classes, (34, 47), ready.cam, ready.high_res),
    ):
        with pytest.raises(AdvCAMError, match="rejected"):
            store.write("a", maps)
    assert "a" not in store


def test_a_full_disk_leaves_the_old_file(store, monkeypatch):
    store.write("a", grids())
    before = store.path("a").read_bytes()

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match=r"cannot write .*a\.safetensors \(disk full: .*\): make room"):
        store.write("a", grids(seed=1))
    monkeypatch.undo()
    assert store.path("a").read_bytes() == before
    assert [file.name for file in store.path("a").parent.iterdir() if file.name.startswith(".")] == []


def test_stale_temporary_files_are_removed(store):
    store.write("a", grids())
    folder = store.path("a").parent
    old, new = (folder / f".advcam-{'0' * 8}-1-{digit * 12}.safetensors" for digit in "0a")
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert list(store.ids()) == ["a"]
    store.remove_stale()
    assert not old.exists()
    assert new.exists()


def test_a_spread_store_uses_many_folders(tmp_path):
    store = MapStore(tmp_path, layout="spread")
    for n in range(200):
        store.write(str(n), GridMaps((), (1, 1), ()))
    folders = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    assert len(folders) > 150
    assert json.loads((tmp_path / "layout.json").read_text()) == {"layout": "spread", "folders": 1000}
    assert len(list(store.ids())) == 200
