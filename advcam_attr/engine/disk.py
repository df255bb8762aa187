"""Bytes and a path in; a whole file, or one line on why there is none, out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advcam_attr.files import replacing
from advcam_attr.types import AdvCAMError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a full disk is told in one line.

    Args:
        path: the file; folders are made as needed.
        content: what it shall hold.

    Raises:
        AdvCAMError: the disk is full, the quota is used up, or the file cannot be written for another reason.
    """
    try:
        with replacing(path) as file:
            file.write_bytes(content)
    except OSError as error:
        raise AdvCAMError(
            f"cannot write {path} ({error.strerror}): make room, and run the same command again; it goes on from there"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; a full disk is told in one line."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
