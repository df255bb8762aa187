"""One field of a structure in a MATLAB 5 file, as the Semantic Boundaries Dataset has them.

SciPy's reader crashes, or runs for ever, on some damaged files; this one takes no length that the file does not have.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

#: Size of the header, and the most bytes that a compressed element may have.
_HEADER, _MAX_BYTES = 128, 1 << 28

_MATRIX, _COMPRESSED = 14, 15

#: NumPy's types by those of elements.
_TYPES = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}

#: Classes of matrices: a structure, and the first and last of numbers.
_STRUCTURE, _FIRST, _LAST = 2, 6, 15


def read_field(content: bytes, variable: str, field: str) -> np.ndarray:
    """Return the numbers of ``variable.field`` in a file's content.

    Raises:
        KeyError: there is no such variable or field.
        ValueError: the content is malformed, of a big-endian system, or the field is no matrix of numbers.
        zlib.error: a compressed element is damaged.
    """
    if content[126:_HEADER] != b"IM":
        raise ValueError("no MATLAB 5 file of a little-endian system")
    for kind, data in _elements(content[_HEADER:]):
        if kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(data, _MAX_BYTES)
            if not unpacking.eof:
                raise ValueError(f"truncated, or more than {_MAX_BYTES} bytes")
            kind, data = next(_elements(data))
        if kind == _MATRIX:
            flags, _, name, *rest = _elements(data)
            if flags[1][0] == _STRUCTURE and bytes(name[1]) == variable.encode():
                return _numbers(_fields(rest)[field.encode()])
    raise KeyError(variable)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of elements; those of up to four bytes have their length in the type's upper half."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        start = place + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data):
            raise ValueError("an element longer than the file")
        yield kind, data[start : start + size]
        end = start + size
        place = end if kind == _COMPRESSED else -(-end // 8) * 8


def _fields(parts: list[tuple[int, bytes]]) -> dict[bytes, bytes]:
    (_, length), (_, names), *matrices = parts
    size = int.from_bytes(length, "little")
    if not size or len(names) != size * len(matrices):
        raise ValueError("no structure of one element")
    found = (names[place : place + size].rstrip(b"\0") for place in range(0, len(names), size))
    return {name: data for name, (_, data) in zip(found, matrices, strict=True)}


def _numbers(data: bytes) -> np.ndarray:
    flags, dimensions, _, numbers = _elements(data)
    if not _FIRST <= flags[1][0] <= _LAST:
        raise ValueError("no numbers")
    shape = np.frombuffer(dimensions[1], "<i4").tolist()
    array = np.frombuffer(numbers[1], _TYPES[numbers[0]])
    if min(shape) < 0 or math.prod(shape) != len(array):
        raise ValueError("other numbers than the shape says")
    return array.reshape(shape, order="F")
