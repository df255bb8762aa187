"""An ``.npy`` file of any kind in; its arrays out, without running anything that the file says.

NumPy reads object arrays (a dict of label vectors, say) by unpickling, which lets a file run code. Here the pickle is
read with a few stand-ins for the names that NumPy's own pickles use, which can only hold data; every other name is
refused before anything happens.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from advcam_attr.types import AdvCAMError


def read_npy(path: str | Path) -> Any:
    """Read an ``.npy`` file.

    Args:
        path: of numbers, or of objects made of dicts, lists, tuples, strings, numbers, and NumPy's arrays and scalars.

    Returns:
        An array; what a 0-dimensional object array holds comes as it is (``np.save`` puts dicts into one).

    Raises:
        AdvCAMError: the file is missing, damaged, or holds anything else.

    Example:
        >>> read_npy("cls_labels.npy")[2007000032].shape  # doctest: +SKIP
        (20,)
    """
    path = Path(path)
    if not path.is_file():
        raise AdvCAMError(f"no such file: {path}")
    try:
        with path.open("rb") as file:
            if not _holds_objects(file):
                file.seek(0)
                return np.load(file, allow_pickle=False)
            return _plain(_Unpickler(file).load())
    except _Refused as error:
        raise AdvCAMError(
            f"{path} is refused: it asks for {error}, and may hold nothing but dicts, numbers, strings and arrays; "
            "save it anew with np.save"
        ) from error
    except Exception as error:  # a damaged pickle makes its parser raise whatever it happens to meet
        raise AdvCAMError(f"cannot read {path}: not an .npy file, or damaged") from error


class _Refused(Exception):
    """Names what a pickle asked for."""


def _no_state(_: Any, state: Any) -> None:
    """What has none cannot be given one; without this, a pickle could change the class itself."""
    raise _Refused("a state for what has none")


def _holds_objects(file: Any) -> bool:
    """Read the header, and leave the file where the data begins."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return bool(read(file)[2].hasobject)


class _DType:
    """A dtype of numbers, strings or objects; no records, and no flags from the file."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufSU]\d+|O\d?", code):
            raise _Refused(f"the dtype {str(code)[:40]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, *_ = state
        if subdtype is not None or names is not None or order not in ("<", ">", "=", "|"):
            raise _Refused("a dtype with fields")
        self.order = order

    def read(self, content: bytes) -> np.ndarray:
        if self.code.startswith("O"):
            raise _Refused("an object in place of a number")
        return np.frombuffer(content, np.dtype(self.order + self.code))


class _Array:
    """An array; its content comes after it."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(content, list):
            self.value = dtype.read(content).reshape(shape, order="F" if fortran else "C").copy()
        elif shape == ():
            (self.value,) = content
        else:
            items = np.empty(len(content), object)
            for index, item in enumerate(content):
                items[index] = item
            self.value = items.reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """A NumPy scalar; made at once, since it may be a dict's key."""

    def __new__(cls, dtype: _DType, content: bytes) -> Any:
        return dtype.read(content)[0]

    __setstate__ = _no_state


class _Latin1:
    """Bytes, as Python 3 writes them in the pickle protocols of Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")

    __setstate__ = _no_state


class _Unpickler(pickle.Unpickler):
    _NAMES = {  # noqa: RUF012
        **{
            (f"numpy.{core}.multiarray", name): stand_in
            for core in ("core", "_core")
            for name, stand_in in (("_reconstruct", _Array), ("scalar", _Scalar))
        },
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise _Refused(f"{module}.{name}")
        return self._NAMES[module, name]


def _plain(value: Any) -> Any:
    """Arrays in place of their stand-ins, all the way down."""
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        plain = np.empty(value.shape, object)
        for index in np.ndindex(value.shape):
            plain[index] = _plain(value[index])
        return plain
    if isinstance(value, _DType):
        raise _Refused("a dtype")
    return value
