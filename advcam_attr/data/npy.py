"""Safe reading of ``.npy`` files, pickled dictionaries of arrays and tensors included.

A pickle is unpickled into inert stand-ins: a name outside of a short list is an error, and what the listed names stand
for (arrays, dtypes, storages, tensors) is built from the recorded arguments afterwards, with every size checked against
the bytes that are there. Nothing that a file names is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: Limits of a pickle: levels of nesting, and objects with shared ones counted as often as they occur.
_MAX_DEPTH, _MAX_OBJECTS = 64, 50_000_000


def read_npy(path: str | Path) -> Any:
    """Read an ``.npy`` file; of a 0-dimensional object array (``np.save`` wraps dicts into one), return its item.

    Args:
        path: an array of numbers or strings; or of objects, written by NumPy 1.7 or later and made of dicts, lists,
            tuples, numbers, strings, bytes, NumPy arrays and scalars, and torch tensors.

    Raises:
        AdvCAMError: the file is missing or damaged, or its pickle names anything else.

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
        content = _read(path.read_bytes())
    except _ForeignNameError as error:
        raise AdvCAMError(
            f"{path} is rejected: its pickle asks for {error}, which could run code; it may hold dicts, numbers, "
            "strings and arrays only"
        ) from None
    except Exception as error:  # damaged pickles raise all kinds of errors
        raise AdvCAMError(f"cannot read {path}: damaged, or no .npy file") from error
    return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content


class _ForeignNameError(Exception):
    """A pickle names something that is not on the list."""


def _read(content: bytes) -> Any:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        return _built(_unpickled(stream), {})
    return _array(content[stream.tell() :], dtype, shape, by_columns)


def _unpickled(stream: io.BytesIO) -> Any:
    start = stream.tell()
    _check_structure(stream)
    stream.seek(start)
    return _Unpickler(stream).load()


_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_FILL = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_MAKE = (
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "LIST",
    "DICT",
    "REDUCE",
    "STACK_GLOBAL",
    "BINPERSID",
    "NEWOBJ",
    "NEWOBJ_EX",
    "INST",
    "OBJ",
)


def _check_structure(stream: io.BytesIO) -> None:
    """Check a pickle's opcodes, memo, depth and size without building anything.

    The unpickler itself allocates what a memo index claims, and hashing deeply nested tuples overflows the C stack.
    """
    stack: list[tuple[int, int]] = []  # depth and number of objects
    marks: list[int] = []
    memo: dict[int, tuple[int, int]] = {}
    for position, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        before, name, index = opcode.stack_before, opcode.name, cast("int", argument)
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUT:
            index = len(memo) if name == "MEMOIZE" else index
            if index > position:
                raise pickle.UnpicklingError(f"memo index {index}")
            memo[index] = stack[-1]
        elif name in _GET:
            stack.append(memo[index])
        elif not before:
            stack += [(1, 1)] * len(opcode.stack_after)
        elif name in _FILL or name in _MAKE:
            start = marks.pop() + 2 - len(before) if pickletools.stackslice in before else len(stack) - len(before)
            parts = stack[start:]
            del stack[start:]
            own = parts.pop(0) if name in _FILL else (1, 1)
            depth = max([own[0], *(1 + part[0] for part in parts)])
            objects = own[1] + sum(part[1] for part in parts)
            if depth > _MAX_DEPTH or objects > _MAX_OBJECTS:
                raise pickle.UnpicklingError("too deeply nested, or too many objects")
            stack.append((depth, objects))
        elif name != "STOP":
            raise pickle.UnpicklingError(f"opcode {name}")


class _StandIn:
    """A name of the list; or a call of one, with its arguments and state recorded."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: tuple[str, str], arguments: tuple[Any, ...] | None = None) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> Any:
        if self.arguments is not None:
            raise pickle.UnpicklingError("a call of what a call returned")
        return dict(*arguments) if self.name == _ORDERED_DICT else _StandIn(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        if self.arguments is None or self.state is not None:
            raise pickle.UnpicklingError("state where none belongs")
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _StandIn:
        if (module, name) not in _BUILDERS:
            raise _ForeignNameError(ascii(f"{module}.{name}"[:80]))
        return _StandIn((module, name))

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _built(value: Any, done: dict[int, Any]) -> Any:
    """Return a value with the stand-ins replaced; ``done`` holds those of shared objects by id."""
    if id(value) in done:
        return done[id(value)]
    built = value
    if isinstance(value, _StandIn):
        if value.arguments is None:
            raise pickle.UnpicklingError("a function where a value belongs")
        build, state = _BUILDERS[value.name], _built(value.state, done)
        if build is _reconstruct:
            built = _reconstruct(*state)
        elif build is _dtype:
            built = _dtype(state, *value.arguments)
        elif state is None:
            built = build(*(_built(argument, done) for argument in value.arguments))
        else:
            raise pickle.UnpicklingError("a state where none belongs")
    elif isinstance(value, dict):
        built = {_built(key, done): _built(item, done) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        built = type(value)(_built(item, done) for item in value)
    if built is not value:
        done[id(value)] = built
    return built


def _array(content: Any, dtype: np.dtype[Any], shape: tuple[int, ...], by_columns: bool) -> np.ndarray:
    if dtype.kind == "O":
        flat = np.empty(len(content), dtype=object)
        flat[:] = content
    else:
        flat = np.frombuffer(content, dtype).copy()
    return flat.reshape(shape, order="F" if by_columns else "C")


def _reconstruct(version: int, shape: Any, dtype: np.dtype[Any], by_columns: bool, content: Any) -> np.ndarray:
    return _array(content, dtype, shape, by_columns)


def _from_buffer(content: Any, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray:
    return _array(content, dtype, shape, order == "F")


def _dtype(state: Any, name: str, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    if not re.fullmatch(r"[biufcSU]\d+|O\d?", name):
        raise pickle.UnpicklingError(f"dtype {name!r}")
    if state is None:
        return np.dtype(name)
    _, order, *parts = state[:5]
    if any(part is not None for part in parts):
        raise pickle.UnpicklingError("a structured dtype")
    return np.dtype(name).newbyteorder(order)


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    if dtype.hasobject:
        raise pickle.UnpicklingError("a pointer")
    return np.frombuffer(content, dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that Python 3 wrote in a protocol of Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def _storage(content: bytes) -> Tensor:
    """Return the numbers of a storage in ``torch.save``'s format before 1.6, in which pickled tensors hold them.

    The format is five pickles (magic number, protocol, system, persistent id, keys), the count, and the numbers.
    """
    stream = io.BytesIO(content)
    *_, about, keys = (_unpickled(stream) for _ in range(5))
    what, kind, key, _, count = about[:5]
    if what != "storage" or keys != [key] or any(part is not None for part in about[5:]):
        raise pickle.UnpicklingError("no storage")
    dtype = _STORAGES[kind.name[1]]
    numbers = bytearray(content[stream.tell() + 8 :])
    if len(numbers) != count * dtype.itemsize:
        raise pickle.UnpicklingError("a storage of another size")
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """Return a part of a storage; torch rejects what reaches beyond it."""
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset).clone()


def _not_a_value(*arguments: Any) -> Any:
    raise pickle.UnpicklingError("a type where a value belongs")


_ORDERED_DICT = ("collections", "OrderedDict")

#: The names that a pickle may use, and what builds the value of a call from its state and arguments.
_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _not_a_value,
    ("numpy", "dtype"): _dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    **{("torch", name): _not_a_value for name in _STORAGES},
    _ORDERED_DICT: _not_a_value,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): lambda: b"" for module in ("__builtin__", "builtins")},
}
