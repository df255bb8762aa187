"""Restricted reading of .npy files: no file runs code or allocates more than it holds."""

import collections
import io
import itertools
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from advcam_attr.data.npy import read_npy
from advcam_attr.types import AdvCAMError


def write_pickle(path: Path, payload: bytes) -> Path:
    """An .npy file of one object, whose pickle is the payload."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(header.getvalue() + payload)
    return path


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


TABLES = {
    "IRN": {np.int32(2007000032): np.array([1, 0, 1], np.float32), np.int32(2007000039): np.zeros(3, np.float32)},
    "PSA": {"2007_000032": np.array([1, 0, 1], np.float32)},
    "RIB": {9: np.ones(3, np.float64), 25: np.array([True, False, False])},
}


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_tables_of_labels_of_all_versions(tmp_path, protocol, core, table):
    payload = pickle.dumps(np.array(table, object), protocol=protocol)
    if protocol < 4:  # in later protocols names are preceded by their length
        payload = payload.replace(b"numpy._core", core)
    read = read_npy(write_pickle(tmp_path / "labels.npy", payload))
    assert read.keys() == table.keys()
    for key, vector in table.items():
        np.testing.assert_array_equal(read[key], vector)
        assert read[key].dtype == vector.dtype


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.float32(2.5),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[1, None], ["a", 2.5]], object),
        np.array(["2007_000032", "x"]),
        np.arange(3, dtype=">f4"),
    ],
    ids=["numbers", "number", "fortran", "objects", "strings", "big-endian"],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x, {"k": (x,)}]], ids=["plain", "nested"])
def test_arrays_of_all_kinds(tmp_path, array, wrap):
    np.save(tmp_path / "x.npy", np.array({"value": wrap(array)}, object))
    np.testing.assert_equal(read_npy(tmp_path / "x.npy"), {"value": wrap(array)})
    np.save(tmp_path / "y.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "y.npy"), array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_contents_come_back_as_they_were(tmp_path, protocol):
    content = {
        np.int32(2007000032): np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "2007_000032": [np.float64(0.5), (True, None, b"bytes", 3)],
        "text": np.array(["aeroplane", "cat"]),
        "objects": np.array([{"a": np.ones(2)}, "b"], dtype=object),
        "empty": np.zeros((0, 3), np.int64),
        "view": torch.arange(12.0).view(3, 4)[1:, ::2],
        "half": torch.ones(2, dtype=torch.float16),
        "scalar": torch.tensor(3),
        "flags": np.array([True, False]),
        "ordered": collections.OrderedDict(a=1),
    }
    found = read_npy(write_pickle(tmp_path / "a.npy", pickle.dumps(np.array(content, object), protocol)))
    assert found.keys() == content.keys()
    for name, value in content.items():
        assert type(found[name]) is (dict if name == "ordered" else type(value))
        assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None)
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value)
        else:
            np.testing.assert_equal(*(x.tolist() if isinstance(x, np.ndarray) else x for x in (found[name], value)))


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    payload = pickle.dumps({1: np.zeros(3), 2: Malicious(trace)}, protocol=protocol)
    pickle.loads(payload)
    assert trace.exists(), "the attack must work where nobody is careful"
    trace.unlink()
    with pytest.raises(AdvCAMError, match=r"labels\.npy is rejected: its pickle asks for .*(pathlib|builtin)"):
        read_npy(write_pickle(tmp_path / "labels.npy", payload))
    assert not trace.exists()


@pytest.mark.parametrize(
    "payload",
    [
        # an object dtype, its flags taken away
        b"cnumpy._core.multiarray\nscalar\n"
        b"(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbS'12345678'\ntR.",
        b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\n(S'O8'\ntRS'12345678'\n\x86R.",  # a pointer as a scalar
        b"cnumpy._core.multiarray\nscalar\n(N}S'__new__'\nI1\nstb.",  # sets an attribute of the stand-in
        b"cnumpy\nndarray\n(N}S'x'\nI1\nstb.",
        b"\x80\x04cnumpy\nndarray\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
        b"ccopyreg\n_reconstructor\n.",
        b"cnumpy\nload\n.",
    ],
)
def test_crafted_pickles_are_rejected(tmp_path, payload):
    with pytest.raises(AdvCAMError, match=r"labels\.npy"):
        read_npy(write_pickle(tmp_path / "labels.npy", payload))
    np.save(tmp_path / "good.npy", TABLES["IRN"])
    assert len(read_npy(tmp_path / "good.npy")) == 2, "nothing stays behind of the attempt"


class Call:
    """Asks to call a function, and then to set a state."""

    def __init__(self, function, *arguments, state=None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def storage(numbers: int, count: int) -> bytes:
    """A storage of torch's old format that claims another count."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.zeros(numbers).storage(), content, _use_new_zipfile_serialization=False)
    return content.getvalue().replace(f"K{chr(numbers)}N".encode(), b"J" + count.to_bytes(4, "little") + b"N")


@pytest.mark.parametrize("count", [0, 6, 10**6])
def test_storages_hold_what_they_claim(tmp_path, count):
    assert storage(5, 5) != storage(5, count), "the count is found"
    call = Call(torch.storage._load_from_bytes, storage(5, count))
    with pytest.raises(AdvCAMError, match=r"cannot read .*a\.npy"):
        read_npy(write_pickle(tmp_path / "a.npy", pickle.dumps(np.array({"x": call}, object))))


def test_no_state_reaches_a_rebuilt_object(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__setstate__", lambda *_: pytest.fail("a state is set"))
    rebuild = Call(torch.storage._load_from_bytes, storage(5, 5)), 0, (5,), (1,), False, {}
    tensor = Call(torch._utils._rebuild_tensor_v2, *rebuild, state=(1, 2))
    with pytest.raises(AdvCAMError, match=r"cannot read .*a\.npy"):
        read_npy(write_pickle(tmp_path / "a.npy", pickle.dumps(np.array({"x": [tensor, tensor]}, object))))


def lists(count: int, times: int) -> bytes:
    """Opcodes of lists that hold the next one some times, filled after they were shared."""
    index = [n.to_bytes(4, "little") for n in range(count)]
    made = b"".join(b"]r" + n for n in index)
    return made + b"".join(b"j%bj%ba" % pair * times for pair in itertools.pairwise(index))


#: Opcodes of an array of 10^5 bytes.
ARRAY = (
    b"B\xa0\x86\x01\x00" + bytes(10**5) + b"q\x00cnumpy\ndtype\nq\x01X\x02\x00\x00\x00u1\x85Rq\x02"
    b"cnumpy.core.numeric\n_frombuffer\nq\x03h\x03(h\x00h\x02J\xa0\x86\x01\x00\x85X\x01\x00\x00\x00CtR"
)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"K\x01s.",  # a key whose hash overflows the stack
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.",  # a key of 2^60 parts
        b"\x80\x02K\x01" + b"".join(b"q%cK\x01h%ch%c\x86" % (n, n, n) for n in range(60)) + b".",
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # a bytearray of 64 GB
        b"\x80\x04\x8e\x00\x00\x00\x00\x10\x00\x00\x00.",
        b"\x80\x02(" + lists(60, 2) + b"t.",  # 2^60 parts
        b"\x80\x02(" + lists(10**4, 1) + b"t.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02" + b"]" * 9 + b"K\x01.",  # what is left below the result
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02(" + ARRAY + ARRAY[ARRAY.index(b"h\x03(") :] * 10**4 + b"t.",  # that share 10^5 bytes
    ],
    ids=[
        "deep key",
        "deep list",
        "wide key",
        "shared",
        "memo",
        "bytearray",
        "bytes",
        "filled late",
        "deep late",
        "within itself",
        "left over",
        "extension",
        "shared bytes",
    ],
)
def test_nothing_is_allocated_that_is_not_there(tmp_path, payload):
    with pytest.raises(AdvCAMError, match=r"cannot read .*a\.npy"):
        read_npy(write_pickle(tmp_path / "a.npy", payload))


def test_damaged_and_missing_files(tmp_path):
    np.save(tmp_path / "labels.npy", TABLES["IRN"])
    whole = (tmp_path / "labels.npy").read_bytes()
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    claims = (tmp_path / "a.npy").read_bytes().replace(b"(2, 3), }" + b" " * 12, b"(200000000000, 3), }" + b" ")
    for content in (*(whole[:length] for length in (0, 5, 40, len(whole) // 2, len(whole) - 1)), claims):
        (tmp_path / "part.npy").write_bytes(content)
        with pytest.raises(AdvCAMError, match=r"cannot read .*part\.npy"):
            read_npy(tmp_path / "part.npy")
    with pytest.raises(AdvCAMError, match="no such file"):
        read_npy(tmp_path / "none.npy")
