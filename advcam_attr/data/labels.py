"""Image labels: PASCAL VOC's XML annotations, ``cls_labels.npy`` tables, and lists of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from advcam_attr.data.images import EXTENSIONS
from advcam_attr.data.npy import read_npy
from advcam_attr.reading import read_bytes, read_lines
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

#: Published annotations have four levels, and a few thousand bytes.
_MAX_DEPTH, _MAX_BYTES = 32, 1 << 20


def read_annotation(path: str | Path, classes: Sequence[str]) -> tuple[int, ...]:
    """Read the classes (indices into ``classes``, ascending and unique) of all objects of a PASCAL VOC annotation.

    Difficult objects count, as in the ``cls_labels.npy`` of IRN and PSA; parts of persons (heads, hands, feet) do not.
    """
    path = Path(path)
    names = [name.strip() for name in (e.text or "" for e in read_xml(path).iterfind("object/name"))]
    for name in names:
        if name not in classes:
            raise AdvCAMError(f"annotation {path} names an object {name!r}, which is no class{nearest(name, classes)}")
    return tuple(sorted({classes.index(name) for name in names}))


def read_xml(path: Path) -> Element:
    """Read the root of a PASCAL VOC or ImageNet annotation; documents with a DTD or entities are rejected."""
    try:
        root: Element = fromstring(read_bytes(path, _MAX_BYTES), forbid_dtd=True)
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such annotation: {path}") from error
    except DefusedXmlException as error:
        raise AdvCAMError(f"annotation {path} is rejected: it has a DTD, which annotations do not need") from error
    except (OSError, ParseError, LookupError, ValueError) as error:
        raise AdvCAMError(f"cannot read annotation {path} ({error}): is it truncated or damaged?") from error
    level = [root]
    for _ in range(_MAX_DEPTH):
        level = [child for element in level for child in element]
    if level or root.tag != "annotation":
        raise AdvCAMError(f"{path} is no annotation: its root is <{root.tag}>, or it is nested too deeply")
    return root


def read_label_table(
    path: str | Path, num_classes: int, key: Callable[[int | str], str] = str
) -> dict[str, tuple[int, ...]]:
    """Read a ``cls_labels.npy`` as IRN, AdvCAM, PSA, SEAM and RIB write it: class indices, ascending, by id.

    Args:
        path: of a dict from ids to 0/1 vectors ``(K,)``.
        num_classes: K.
        key: normalises the ids of the file, integers or strings.
    """
    table = read_npy(path)
    if not isinstance(table, Mapping) or not table:
        raise AdvCAMError(f"{path} is no table of labels: it should hold a dict from image ids to 0/1 vectors")
    labels: dict[str, tuple[int, ...]] = {}
    for name, vector in table.items():
        array = np.asarray(vector)
        if array.shape != (num_classes,) or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise AdvCAMError(
                f"{path}: the labels of {name} have shape {array.shape} and type {array.dtype}, where {num_classes} "
                "zeros and ones were expected; is it of another data set?"
            )
        if not isinstance(name, (int, str, np.integer)):
            raise AdvCAMError(f"{path}: {str(name)[:60]!r} is no image id; ids are integers or strings")
        labels[key(name if isinstance(name, str) else int(name))] = tuple(np.flatnonzero(array).tolist())
    return labels


def look_up(table: Mapping[str, tuple[int, ...]], keys: Sequence[str], path: str | Path) -> list[tuple[int, ...]]:
    """Return the labels of all keys; ``path`` names the table in the error about missing ones."""
    missing = [key for key in keys if key not in table]
    if missing:
        raise AdvCAMError(f"{path} has no labels for {len(missing)} of {len(keys)} images ({few(missing)})")
    return [table[key] for key in keys]


def voc_id(key: int | str) -> str:
    """Return the VOC id of a key of a label table; IRN stores 2007_000032 as the integer 2007000032."""
    return key if isinstance(key, str) else f"{key // 1_000_000}_{key % 1_000_000:06d}"


def coco_key(key: int | str) -> str:
    """Return the number of a COCO image; codebases differ in prefix and zero padding."""
    digits = re.search(r"\d+$", str(key))
    return str(int(digits[0])) if digits else str(key)


_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class IdList:
    """The unique ids of a list of images, and the mask folders that its lines name, in order of appearance."""

    ids: tuple[str, ...]
    mask_folders: tuple[str, ...]


def read_list(path: str | Path) -> IdList:
    """Read a list of images, one a line.

    A line is an id (IRN, VOC), or the path of an image, optionally followed by the path of its mask
    (``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``: PSA, SEAM, DeepLab, CCT).
    """
    path = Path(path)
    first_line: dict[str, int] = {}
    folders: dict[str, None] = {}
    for number, line in enumerate(read_lines(path, "list of images"), start=1):
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


def whole(text: str) -> int | None:
    """Return a whole number of at most nine digits from 0 on; None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def few(names: Iterable[object], limit: int = 3) -> str:
    """Join the first of some names for a message, e.g. "a, b, c and 2 more"."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")
