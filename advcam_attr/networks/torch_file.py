"""Files of ``torch.save``: weights and plain values, read without torch's own unpickler.

`torch.load` allocates what a file of before version 1.6 claims, without looking whether it is there; and it ignores the
checksums of later files, which are zip archives.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from advcam_attr.pickles import ForeignNameError, StorageId, read_legacy, unpickled
from advcam_attr.reading import read_bytes
from advcam_attr.types import AdvCAMError

#: The largest file in bytes, and the most records of one.
_MAX_BYTES, _MAX_RECORDS = 1 << 36, 1 << 17


class ForeignPickleError(AdvCAMError):
    """A file that asks for more than tensors and plain values, which could run code."""


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of ``torch.save`` on the CPU; parameters become tensors, ordered dicts dicts.

    Tensors that shared their numbers still do.

    Raises:
        ForeignPickleError: it names a class or function other than those of tensors, arrays and plain values.
        AdvCAMError: it is missing, damaged or of another kind.
    """
    try:
        if not zipfile.is_zipfile(path):
            return read_legacy(io.BytesIO(read_bytes(path, _MAX_BYTES)))
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except ForeignNameError as error:
        raise ForeignPickleError(f"{path} asks for {error}") from error
    except AdvCAMError:
        raise
    except Exception as error:  # damaged pickles raise all kinds of errors
        raise AdvCAMError(f"cannot read {path}: not plain torch weights, or damaged") from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    records = {about.filename: about for about in archive.infolist()}
    stored = all(about.compress_type == zipfile.ZIP_STORED for about in records.values())
    if not stored or len(records) > _MAX_RECORDS or sum(about.file_size for about in records.values()) > size:
        raise zipfile.BadZipFile("records that are compressed, or larger than the archive")
    (content,) = (name for name in records if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = content.removesuffix("data.pkl")
    if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
        raise zipfile.BadZipFile("numbers of a big-endian system")

    def read(storage: StorageId) -> bytearray:
        return bytearray(archive.read(f"{folder}data/{storage.key}"))

    return unpickled(io.BytesIO(archive.read(content)), read)
