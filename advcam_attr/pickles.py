"""Pickles of arrays and tensors as plain values: nothing that a pickle names is called.

A pickle is unpickled into inert stand-ins: a name outside of a short list is an error, and what the listed names stand
for (arrays, dtypes, storages, tensors) is built from the recorded arguments afterwards, with every size checked against
the bytes that are there.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

#: Limits of a pickle: levels of nesting, and objects and bytes with shared ones counted as often as they occur (or
#: twice the file's length, if that is more).
_MAX_DEPTH, _MAX_WEIGHT = 64, 50_000_000

#: Torch's format of before version 1.6: its magic number and version.
_LEGACY = [0x1950A86A20F9469CFC6C, 1001]


class ForeignNameError(Exception):
    """A pickle names something that is not on the list."""


class StandIn:
    """A name of the list; or a call of one, with its arguments and state recorded."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: tuple[str, str], arguments: tuple[Any, ...] | None = None) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> Any:
        if self.arguments is not None:
            raise pickle.UnpicklingError("a call of what a call returned")
        return _Ordered(*arguments) if self.name == _ORDERED_DICT else StandIn(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        if self.arguments is None or self.state is not None:
            raise pickle.UnpicklingError("state where none belongs")
        self.state = state


class _Ordered(dict[Any, Any]):
    """An ordered dict without its attributes; a state dict has versions of its modules there."""

    def __setstate__(self, state: Any) -> None:
        pass


class StorageId:
    """The numbers of a tensor, which are elsewhere in the file."""

    __slots__ = ("count", "dtype", "key")

    def __init__(self, what: Any, kind: Any, key: Any, location: Any, count: Any, view: Any = None) -> None:
        if what != "storage" or type(key) is not str or type(count) is not int or count < 0 or view is not None:
            raise pickle.UnpicklingError("no storage")
        self.dtype, self.key, self.count = _STORAGES[kind.name[1]], key, count

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.count * self.dtype.itemsize


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, StorageId] = {}

    def find_class(self, module: str, name: str) -> StandIn:
        if (module, name) not in _BUILDERS:
            raise ForeignNameError(ascii(f"{module}.{name}"[:80]))
        return StandIn((module, name))

    def persistent_load(self, pid: Any) -> Any:
        found = StorageId(*pid)
        known = self.storages.setdefault(found.key, found)
        if (known.dtype, known.count) != (found.dtype, found.count):
            raise pickle.UnpicklingError("one storage of two sizes")
        return known


def unpickled(stream: io.BytesIO, read_storage: Callable[[StorageId], bytearray] | None = None) -> Any:
    """Read the next pickle of a stream; ``read_storage`` returns the bytes of storages that are not in the pickle.

    Raises:
        ForeignNameError: it names what is not on the list.
        Exception: it is malformed or too large; damaged pickles raise all kinds of errors.
    """
    value, _ = _raw(stream)
    return _built(value, {}, read_storage or _no_storage)


def read_legacy(stream: io.BytesIO) -> Any:
    """Read a file of ``torch.save`` of before version 1.6; errors are those of `unpickled`."""
    value, read_storage = _legacy(stream)
    return _built(value, {}, read_storage)


def _legacy(stream: io.BytesIO) -> tuple[Any, Callable[[StorageId], bytearray]]:
    """Return the content in stand-ins, and what reads its storages.

    The format is five pickles (magic number, version, system, content, keys of the storages), then the count and the
    numbers of each storage.
    """
    magic, version, system = (_raw(stream)[0] for _ in range(3))
    if [magic, version] != _LEGACY or not system["little_endian"]:
        raise pickle.UnpicklingError("another format, or numbers of a big-endian system")
    value, storages = _raw(stream)
    keys, _ = _raw(stream)
    if sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError("storages that are not there")
    numbers = {}
    for key in keys:
        if int.from_bytes(stream.read(8), "little") != storages[key].count:
            raise pickle.UnpicklingError("a storage of another size")
        numbers[key] = stream.read(storages[key].size)
    if stream.read(1):
        raise pickle.UnpicklingError("more than the storages")
    return value, lambda storage: bytearray(numbers[storage.key])


def _storage(content: bytes) -> Tensor:
    """Return the numbers of a storage in a pickled tensor."""
    value, read_storage = _legacy(io.BytesIO(content))
    if not isinstance(value, StorageId):
        raise pickle.UnpicklingError("no storage")
    return _numbers(value, read_storage(value))


def _no_storage(storage: StorageId) -> bytearray:
    raise pickle.UnpicklingError("a storage outside of the pickle")


def _raw(stream: io.BytesIO) -> tuple[Any, dict[str, StorageId]]:
    start = stream.tell()
    _check_structure(stream)
    stream.seek(start)
    unpickler = _Unpickler(stream)
    value = unpickler.load()
    _measure(value, {}, 0, max(_MAX_WEIGHT, 2 * len(stream.getbuffer())))
    return value, unpickler.storages


_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_FILL = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_MAKE = (
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "REDUCE", "STACK_GLOBAL", "BINPERSID", "NEWOBJ", "NEWOBJ_EX",
)  # fmt: skip
_PLAIN = (
    "PROTO", "FRAME", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT",
    "GLOBAL",
)  # fmt: skip


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
        elif name in _PLAIN:
            stack += [(1, 1)] * len(opcode.stack_after)
        elif name in _FILL or name in _MAKE:
            start = marks.pop() + 2 - len(before) if pickletools.stackslice in before else len(stack) - len(before)
            if start < 0:
                raise pickle.UnpicklingError("too few objects")
            parts = stack[start:]
            del stack[start:]
            own = parts.pop(0) if name in _FILL else (1, 1)
            depth = max([own[0], *(1 + part[0] for part in parts)])
            objects = own[1] + sum(part[1] for part in parts)
            if depth > _MAX_DEPTH or objects > _MAX_WEIGHT:
                raise pickle.UnpicklingError("too deeply nested, or too many objects")
            stack.append((depth, objects))
        elif name != "STOP" or len(stack) != 1 or marks:
            raise pickle.UnpicklingError(f"opcode {name}")


def _measure(value: Any, known: dict[int, tuple[int, int] | None], level: int, limit: int) -> tuple[int, int]:
    """Return depth, and number of objects and bytes; what was filled after it was shared is counted here alone."""
    if isinstance(value, StandIn):
        parts: Any = (*(value.arguments or ()), value.state)
    elif isinstance(value, dict):
        parts = (*value, *value.values())
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        return 1, 1 + (len(value) if isinstance(value, (bytes, bytearray, str)) else 0)
    if id(value) not in known:
        if level > _MAX_DEPTH:
            raise pickle.UnpicklingError("too deeply nested")
        known[id(value)] = None
        inner = [_measure(part, known, level + 1, limit) for part in parts]
        known[id(value)] = 1 + max((d for d, _ in inner), default=0), 1 + sum(n for _, n in inner)
    found = known[id(value)]
    if found is None or level + found[0] > 2 * _MAX_DEPTH or found[1] > limit:
        raise pickle.UnpicklingError("too deeply nested, within itself, or too many objects")
    return found


def _built(value: Any, done: dict[int, Any], read_storage: Callable[[StorageId], bytearray]) -> Any:
    """Return a value with the stand-ins replaced; ``done`` holds those of shared objects by id."""
    if id(value) in done:
        return done[id(value)]
    built = value
    if isinstance(value, StorageId):
        built = _numbers(value, read_storage(value))
    elif isinstance(value, StandIn):
        if value.arguments is None:
            raise pickle.UnpicklingError("a function where a value belongs")
        build, state = _BUILDERS[value.name], _built(value.state, done, read_storage)
        if build is _reconstruct:
            built = _reconstruct(*state)
        elif build is _dtype:
            built = _dtype(state, *value.arguments)
        elif state is None:
            built = build(*(_built(argument, done, read_storage) for argument in value.arguments))
        else:
            raise pickle.UnpicklingError("a state where none belongs")
    elif isinstance(value, dict):
        built = {_built(key, done, read_storage): _built(item, done, read_storage) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        built = type(value)(_built(item, done, read_storage) for item in value)
    if built is not value:
        done[id(value)] = built
    return built


def array_of(content: Any, dtype: np.dtype[Any], shape: tuple[int, ...], by_columns: bool) -> np.ndarray:
    """Return an array of a content whose length is checked against the shape."""
    if dtype.kind == "O":
        flat = np.empty(len(content), dtype=object)
        for place, item in enumerate(content):
            flat[place] = item
    else:
        flat = np.frombuffer(content, dtype).copy()
    if min(shape, default=0) < 0:
        raise pickle.UnpicklingError("a negative size")
    return flat.reshape(shape, order="F" if by_columns else "C")


def _reconstruct(version: int, shape: Any, dtype: np.dtype[Any], by_columns: bool, content: Any) -> np.ndarray:
    return array_of(content, dtype, shape, by_columns)


def _from_buffer(content: Any, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray:
    return array_of(content, dtype, shape, order == "F")


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


def _numbers(storage: StorageId, content: bytearray) -> Tensor:
    if len(content) != storage.size:
        raise pickle.UnpicklingError("a storage of another size")
    return torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """Return a part of a storage; torch rejects what reaches beyond it."""
    if min(size, default=0) < 0 or math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *others: Any) -> Any:
    return value


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
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): tuple,
    **{("torch", name): _not_a_value for name in _STORAGES},
    _ORDERED_DICT: _not_a_value,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): lambda: b"" for module in ("__builtin__", "builtins")},
}
