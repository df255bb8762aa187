"""An ``.npy`` file of any kind in; its arrays, tensors, dicts and numbers, or a refusal, out. No code of it is run.

NumPy reads objects (a dict of label vectors, say) by unpickling, and a pickle names functions to call. Here each name
that a pickle of arrays needs stands for a function of this file, which builds the array from its bytes; any other name
is refused before anything is called. NumPy's and torch's own functions are never called with what the pickle holds: the
state of a dtype, for one, can be forged.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError


def read_npy(path: str | Path) -> Any:
    """Read an ``.npy`` file.

    Args:
        path: of numbers or strings; or of objects, by any NumPy from 1.7 on, made of dicts, lists, tuples, numbers,
            strings, bytes, NumPy's arrays and scalars, and torch's tensors.

    Returns:
        An array; what a 0-dimensional object array holds comes as it is (``np.save`` puts dicts into one).

    Raises:
        AdvCAMError: the file is missing, damaged, or asks for anything else than the above.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.npy"
        >>> np.save(file, {"2007_000032": np.ones(2, np.float32)})
        >>> read_npy(file)
        {'2007_000032': array([1., 1.], dtype=float32)}
    """
    path = Path(path)
    if not path.is_file():
        raise AdvCAMError(f"no such file: {path}")
    try:
        with path.open("rb") as file:
            if not _holds_objects(file):
                file.seek(0)
                return np.load(file, allow_pickle=False)
            content = _plain(_Unpickler(file).load())
    except _Refused as error:
        raise AdvCAMError(
            f"{path} is refused: its pickle asks for {error}, and may hold nothing but dicts, numbers, strings and "
            "arrays; it could run code"
        ) from None
    except Exception as error:  # damaged pickles make the unpickler raise whatever it happens to meet
        raise AdvCAMError(f"cannot read {path}: damaged, or no .npy file") from error
    return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content


class _Refused(Exception):
    """A name that no pickle of arrays needs."""


def _holds_objects(file: BinaryIO) -> bool:
    """Read the header, and leave the file where the data begins."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    return bool(read(file)[2].hasobject)


class _Call:
    """A function that a pickle may call, and may do nothing else to."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


class _DType:
    """A dtype of numbers, strings or objects by its name; of its state, only the order of the bytes counts."""

    def __init__(self, name: Any = None, align: Any = False, copy: Any = False) -> None:
        if not re.fullmatch(r"[biufcSU]\d+|O\d?", name):
            raise pickle.UnpicklingError(f"dtype {name!r}")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "="}[state[1]]
        if state[2] is not None or state[3] is not None or state[4] is not None:
            raise pickle.UnpicklingError("a dtype with parts")

    def plain(self) -> np.dtype[Any]:
        return np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """An array that gets its content from its state."""

    def __init__(self, kind: Any = None, shape: Any = None, code: Any = None) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        wanted = dtype.plain()
        if wanted.kind == "O":
            flat = np.empty(len(content), dtype=object)
            flat[:] = [_plain(item) for item in content]
        else:
            flat = np.frombuffer(content, wanted).copy()
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


def _from_buffer(content: Any, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.plain()).copy().reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, content: bytes) -> Any:
    return np.frombuffer(content, dtype.plain())[0]


def _storage(content: bytes) -> Tensor:
    """The numbers of a pickled storage, flat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are going, and files hold them
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise pickle.UnpicklingError("no storage")
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """A part of a storage, no number of it twice; torch refuses what reaches beyond it."""
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset).clone()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 3 writes them in the pickle protocols of Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], _Call] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Call(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Call(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Call(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): _Call(lambda *arguments: _Array()),
    ("numpy", "dtype"): _Call(_DType),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch.storage", "_load_from_bytes"): _Call(_storage),
    ("collections", "OrderedDict"): _Call(lambda *arguments: dict(*arguments)),
    ("_codecs", "encode"): _Call(_encode),
    **{(module, "bytes"): _Call(lambda: b"") for module in ("__builtin__", "builtins")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]


def _plain(value: Any) -> Any:
    """A value with arrays in the place of what stood for them, all the way down."""
    if isinstance(value, _Array):
        if value.array is None:
            raise pickle.UnpicklingError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, (_Call, _DType)):
        raise pickle.UnpicklingError("a function where a value should be")
    return value
