"""Atomic writing of files, and digests of contents."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from advcam_attr.types import AdvCAMError

#: Age in seconds from which any temporary file is the leftover of a killed process: a write takes milliseconds.
STALE = 3600.0

_TEMPORARY = re.compile(r"\.advcam-([0-9a-f]{8})-(\d+)-[0-9a-f]{12}(\.\w+)?")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if missing.

    Raises:
        AdvCAMError: it cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdvCAMError(f"cannot make the folder {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AdvCAMError(f"the folder {folder} cannot be written to; choose another folder")


def inside(folder: Path, name: Any, record: Path) -> Path:
    """Return the file of this name in a folder, as a record (or the folder itself) has it.

    Raises:
        AdvCAMError: anything but the plain name of a file in that folder, also where a symbolic link leads elsewhere.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
    if not plain or (folder / name).resolve().parent != folder.resolve():
        raise AdvCAMError(f"{record} names {name!r}, which is no file in {folder}: remove it, and make it again")
    return folder / name


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` at the end, and remove it after an error.

    Folders are created as needed.

    Raises:
        AdvCAMError: the folder is not writable, the disk is full, or the quota is used up.

    Example:
        >>> with replacing(Path("scores.json")) as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    temporary = path.with_name(f".advcam-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    make_folder(path.parent)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> AdvCAMError:
    """Return the error of a file that could not be written, which says whether the disk is full."""
    reason = f"disk full: {error.strerror}" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return AdvCAMError(f"cannot write {path} ({reason}): make room or choose another folder, and run it again")


def append_to(path: Path) -> TextIOWrapper:
    """Open a UTF-8 text file for appending, but not what a symbolic link leads to."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, "a", encoding="utf-8", opener=opener)


def remove_leftovers(folder: Path, *, older_than: float = STALE) -> None:
    """Remove temporary files of `replacing` that killed processes left in a folder.

    Those of processes of this machine that have ended are removed at once.

    Args:
        folder: need not exist; sub-folders are not searched.
        older_than: seconds since the last write; younger files of other machines may belong to a running process.
    """
    for file in folder.glob(".advcam-*"):
        if name := _TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):  # another process removed it first
                ended = name[1] == _machine() and not _runs(int(name[2]))
                if ended or time.time() - file.lstat().st_mtime >= older_than:
                    file.unlink()


@functools.cache
def _machine() -> str:
    """A digest of the names that processes' ids belong to: the machine's and, in a container, its own."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        file.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # bytes of names that are no UTF-8, as JSON's escapes


def to_json(value: Any) -> Any:
    """Return a value in JSON's own types: None for NaN and infinities, names or texts for what JSON does not have.

    Example:
        >>> to_json({"a": (1, float("nan")), 2: Path("maps")})
        {'a': [1, None], '2': 'maps'}
    """
    if isinstance(value, dict):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else getattr(value, "__name__", str(value))


def digest(path: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file's content."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the names and contents of files."""
    content = hashlib.sha256()
    for path in paths:
        try:
            content.update(f"{path.name} {digest(path)};".encode())
        except OSError as error:
            raise AdvCAMError(f"cannot read {path} ({error.strerror or error})") from error
    return content.hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return up to three changes of settings as text.

    Example:
        >>> difference({"steps": 8, "base": "cam"}, {"steps": 9, "base": "cam"})
        'steps was 8, is 9'
    """
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:3]]
    return "; ".join(shown + (["..."] if len(changed) > 3 else []))
