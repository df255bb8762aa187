"""Safe reading of ``.npy`` files, pickled dictionaries of arrays and tensors included."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from advcam_attr.pickles import ForeignNameError, array_of, unpickled
from advcam_attr.reading import read_bytes
from advcam_attr.types import AdvCAMError


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
        content = _read(read_bytes(path))
    except ForeignNameError as error:
        raise AdvCAMError(
            f"{path} is rejected: its pickle asks for {error}, which could run code; it may hold dicts, numbers, "
            "strings and arrays only"
        ) from None
    except AdvCAMError:
        raise
    except Exception as error:  # damaged pickles raise all kinds of errors
        raise AdvCAMError(f"cannot read {path}: damaged, or no .npy file") from error
    return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content


def _read(content: bytes) -> Any:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        return unpickled(stream)
    return array_of(content[stream.tell() :], dtype, shape, by_columns)
