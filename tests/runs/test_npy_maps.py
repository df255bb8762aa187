"""IRN's and PSA's dictionaries: readable by the released code, read without running pickled code."""

from __future__ import annotations

import io
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.npy_maps import export_maps, import_maps, read_dictionary, write_dictionary
from advcam_attr.types import AdvCAMError


@pytest.fixture
def store(tmp_path) -> MapStore:
    generator = torch.Generator().manual_seed(0)
    store = MapStore(tmp_path / "maps")
    store.write("2007_000032", GridMaps((0, 14), (33, 47), (torch.rand(2, 3, 3, generator=generator),)))
    store.write("2007_000039", GridMaps((19,), (20, 21), (torch.rand(1, 2, 2, generator=generator),)))
    return store


def save(path, content, protocol=4):
    """Write as numpy.save does, with any protocol."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        boxed = np.empty((), dtype=object)
        boxed[()] = content
        pickle.dump(boxed, file, protocol=protocol)
    return path


def test_exports_have_irns_format(store, tmp_path):
    assert export_maps(store, tmp_path / "irn") == 2
    for id in store.ids():
        maps = store.read(id)
        theirs = np.load(tmp_path / "irn" / f"{id}.npy", allow_pickle=True).item()
        assert list(theirs) == ["keys", "cam", "high_res"]
        assert theirs["keys"].dtype == torch.int64
        assert theirs["keys"].tolist() == list(maps.classes)
        assert theirs["cam"].dtype == torch.float32
        assert torch.equal(theirs["cam"], maps.cam)
        assert isinstance(theirs["high_res"], np.ndarray)
        assert theirs["high_res"].dtype == np.float32
        assert (theirs["high_res"] == maps.high_res.numpy()).all()


def test_exports_have_psas_format(store, tmp_path):
    assert export_maps(store, tmp_path / "psa", "psa", ["2007_000032"]) == 1
    theirs = np.load(tmp_path / "psa" / "2007_000032.npy", allow_pickle=True).item()
    assert list(theirs) == [0, 14]
    assert all(type(k) is int and v.dtype == np.float32 and v.shape == (33, 47) for k, v in theirs.items())
    assert (theirs[14] == store.read("2007_000032").high_res[1].numpy()).all()


def test_exports_name_only_what_old_numpy_has(store, tmp_path):
    export_maps(store, tmp_path / "irn")
    with (tmp_path / "irn" / "2007_000032.npy").open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        names = {argument for opcode, argument, _ in pickletools.genops(file) if opcode.name == "GLOBAL"}
    assert names == {
        "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "torch._utils _rebuild_tensor_v2",
        "torch.storage _load_from_bytes", "collections OrderedDict",
    }  # fmt: skip


@pytest.mark.parametrize("dictionary", ["irn", "psa"])
def test_export_and_import_are_a_round_trip(store, tmp_path, dictionary):
    export_maps(store, tmp_path / "npy", dictionary)
    back = MapStore(tmp_path / "back")
    assert import_maps(tmp_path / "npy", back) == 2
    for id in store.ids():
        one, two = store.read(id), back.read(id)
        assert (one.classes, one.size) == (two.classes, two.size)
        assert torch.equal(one.high_res, two.high_res)
        assert one.cam.shape == two.cam.shape
        if dictionary == "irn":
            assert torch.equal(one.cam, two.cam)


@pytest.mark.parametrize("dictionary", ["irn", "psa"])
def test_images_without_classes(tmp_path, dictionary):
    store, back = MapStore(tmp_path / "maps"), MapStore(tmp_path / "back")
    store.write("a", GridMaps((), (33, 47), ()))
    export_maps(store, tmp_path / "npy", dictionary)
    theirs = np.load(tmp_path / "npy" / "a.npy", allow_pickle=True).item()
    assert list(theirs) == (["keys"] if dictionary == "irn" else [])
    with pytest.raises(AdvCAMError, match="give the size"):
        import_maps(tmp_path / "npy", back)
    import_maps(tmp_path / "npy", back, {"a": (33, 47)})
    assert back.read("a").high_res.shape == (0, 33, 47)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_any_protocol_are_read(tmp_path, protocol):
    content = {
        "keys": np.array([3, 1]),  # NumPy where IRN has torch, and not ascending
        "cam": torch.stack([torch.full((5, 6), 3.0), torch.full((5, 6), 1.0)]).double(),
        "high_res": np.asfortranarray(np.stack([np.full((18, 21), 3), np.full((18, 21), 1)]).astype(">f2")),
    }
    found = read_dictionary(save(tmp_path / "a.npy", content, protocol), (18, 21))
    assert found.classes == (1, 3)
    assert found.size == (18, 21)
    assert found.cam.dtype == found.high_res.dtype == torch.float32
    assert found.high_res[:, 0, 0].tolist() == found.cam[:, 0, 0].tolist() == [1.0, 3.0]


class Runs:
    """Asks to call a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, getattr, __import__, io.open, torch.load, np.load, np.fromfile]
)
def test_malicious_pickles_are_not_run(tmp_path, protocol, function):
    witness = tmp_path / "run"
    argument = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w')"
    path = save(tmp_path / "a.npy", {"keys": Runs(function, argument)}, protocol)
    with pytest.raises(AdvCAMError, match=r"a\.npy is rejected: its pickle asks for \S+, which could") as caught:
        read_dictionary(path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_malicious_storages_inside_tensors_are_not_run(tmp_path):
    witness = tmp_path / "run"
    inner = io.BytesIO()
    torch.save(Runs(os.system, f"touch {witness}"), inner, _use_new_zipfile_serialization=False)
    path = save(tmp_path / "a.npy", {"keys": Runs(torch.storage._load_from_bytes, inner.getvalue())})
    with pytest.raises(AdvCAMError, match=r"a\.npy is rejected: its pickle asks for"):
        read_dictionary(path)
    assert not witness.exists()


def test_forged_states_are_errors(tmp_path):
    rebuild, storage = torch._utils._rebuild_tensor_v2, torch.ones(3).storage()
    for content in (
        {"keys": Runs(rebuild, storage, 0, (10**12,), (0,), False, {})},  # a small storage, repeated without end
        {"keys": Runs(rebuild, storage, 2, (2,), (1,), False, {})},  # beyond the end
        {"keys": Runs(np.dtype, "V8", False, True)},
        {"keys": Runs(np.dtype, "i8", False, True)},  # a dtype where an array should be
        {"keys": np.dtype("f4")},
        {"keys": np.ndarray},
        {"keys": np.zeros(2, dtype="i4,f4")},
    ):
        with pytest.raises(AdvCAMError, match=r"a\.npy"):
            read_dictionary(save(tmp_path / "a.npy", content))


FOREIGN = [[1, 2], {"a": 1}, {"keys": torch.tensor([1])}, {1: np.ones(3)}, {1: np.ones((3, 3)), 2: np.ones((2, 2))}]


def test_damaged_and_foreign_files_are_errors(tmp_path, store):
    export_maps(store, tmp_path / "npy", ids=["2007_000032"])
    path = tmp_path / "npy" / "2007_000032.npy"
    whole = path.read_bytes()
    for content in (b"", b"no numpy", whole[:50], whole[:-200], whole[:200] + b"\xff" * 20 + whole[220:]):
        path.write_bytes(content)
        with pytest.raises(AdvCAMError, match=r"(cannot read .*2007_000032\.npy|npy is rejected|npy is damaged)"):
            read_dictionary(path)
    np.save(path, np.ones(3))
    for file in (path, *(save(tmp_path / f"{n}.npy", content) for n, content in enumerate(FOREIGN))):
        with pytest.raises(AdvCAMError, match="holds no dictionary of IRN or PSA"):
            read_dictionary(file)
    with pytest.raises(AdvCAMError, match="no such file"):
        read_dictionary(tmp_path / "none.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvCAMError, match=r"no \.npy files"):
        import_maps(tmp_path / "empty", store)
    with pytest.raises(AdvCAMError, match="unknown dictionary 'seam'"):
        export_maps(store, tmp_path, "seam")


def test_another_size_is_an_error(store, tmp_path):
    maps = store.read("2007_000032")
    write_dictionary(tmp_path / "a.npy", {14: maps.high_res[1].numpy()})
    with pytest.raises(AdvCAMError, match=r"maps of \(33, 47\) for an image of \(47, 33\)"):
        read_dictionary(tmp_path / "a.npy", (47, 33))
