"""A list of images, as any of the field's codebases writes it, in; ids out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from advcam_attr.data.images import EXTENSIONS
from advcam_attr.types import AdvCAMError

_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class IdList:
    """What a list file names.

    Attributes:
        ids: in order, each once.
        mask_folders: the folders of the masks that its lines name, in order of appearance; mostly empty.
    """

    ids: tuple[str, ...]
    mask_folders: tuple[str, ...]


def read_list(path: str | Path) -> IdList:
    """Read a list of images, one a line.

    A line is an id (IRN, VOC), or an image's path and, it may be, its mask's
    (``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``: PSA, SEAM, DeepLab, CCT).

    Raises:
        AdvCAMError: the file is missing or empty, a line is none of these, or an id comes twice.

    Example:
        >>> read_list("ImageSets/Segmentation/train.txt").ids[:2]  # doctest: +SKIP
        ('2007_000032', '2007_000039')
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such list of images: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AdvCAMError(f"cannot read the list of images {path}: it must be a text file") from error
    first_line: dict[str, int] = {}
    folders: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, *mask = line.split()
        if not _ID.fullmatch(stem(image)) or len(mask) > 1 or (mask and stem(mask[0]) != stem(image)):
            raise AdvCAMError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not an id, nor an image's path and its mask's"
            )
        if stem(image) in first_line:
            raise AdvCAMError(
                f"{path} names {stem(image)} twice, in lines {first_line[stem(image)]} and {number}; remove one"
            )
        first_line[stem(image)] = number
        folders.update((PurePosixPath(m).parent.name, None) for m in mask)
    if not first_line:
        raise AdvCAMError(f"the list of images {path} is empty; it should name one image a line")
    return IdList(tuple(first_line), tuple(folder for folder in folders if folder))


def stem(name: str) -> str:
    """An id, or the id of a path to an image."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def few(names: Iterable[object], limit: int = 3) -> str:
    """The first of some names, for a message."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")
