"""The names of a data set's classes and those of a net in; which class of the net is which of the data, out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from advcam_attr.data.labels import few
from advcam_attr.data.samples import LocalizationData
from advcam_attr.types import AdvCAMError


def match_names(classes: Sequence[str], names: Sequence[str]) -> dict[int, int]:
    """Which of a net's classes have the names of a data set's.

    Numbers before a name, case, hyphens, underscores and the possessive s do not count. A name may hold several: one
    in brackets, and others after commas or slashes. A class is matched where exactly one class of the net has its name.

    Args:
        classes: of the data set, e.g. ``"009.Brewer_Blackbird"``.
        names: of the net, e.g. ``"Euphagus cyanocephalus (Brewer's Blackbird)"``.

    Returns:
        The net's class for each class of the data that has one.

    Example:
        >>> match_names(
        ...     ["003.Sooty_Albatross", "009.Brewer_Blackbird"],
        ...     ["Euphagus carolinus (Rusty Blackbird)", "Euphagus cyanocephalus (Brewer's Blackbird)"],
        ... )
        {1: 1}
    """
    places: dict[str, set[int]] = {}
    for place, name in enumerate(names):
        for one in _names_in(name):
            places.setdefault(one, set()).add(place)
    found = {}
    for k, name in enumerate(classes):
        matched = set().union(*(places.get(one, set()) for one in _names_in(name)))
        if len(matched) == 1:
            (found[k],) = matched
    return found


def in_classes_of(data: LocalizationData, names: Sequence[str]) -> tuple[LocalizationData, tuple[str, ...]]:
    """A split in the classes of a net that knows some of the data's by name.

    Args:
        data: the split.
        names: of the net's classes.

    Returns:
        The images of the classes that the net knows, labelled by the net's classes; and the names of the classes of the
        data that it does not know, whose images are left out.

    Raises:
        AdvCAMError: the net knows none of them.
    """
    known = match_names(data.classes, names)
    kept = tuple(sample for sample in data.samples if set(sample.labels) <= known.keys())
    if not kept:
        raise AdvCAMError(
            f"none of the classes of {data.name} {data.split} ({few(data.classes)}) is among the net's {len(names)} "
            f"names ({few(names)})"
        )
    samples = tuple(replace(sample, labels=tuple(sorted(known[k] for k in sample.labels))) for sample in kept)
    ids = {sample.id for sample in samples}
    split = replace(
        data, classes=tuple(names), samples=samples, boxes={id: b for id, b in data.boxes.items() if id in ids}
    )
    return split, tuple(name for k, name in enumerate(data.classes) if k not in known)


def _names_in(name: str) -> set[str]:
    """All names that a line holds, in one spelling."""
    bare = re.sub(r"^\d+\s*[.:]\s*", "", name.strip())
    bracketed = re.findall(r"\(([^()]*)\)", bare)
    parts: Iterable[str] = [re.sub(r"\([^()]*\)", " ", bare), *bracketed, bare]
    return {one for part in parts for piece in (part, *re.split(r"[,/;]", part)) if (one := _spelling(piece))}


def _spelling(name: str) -> str:
    plain = re.sub(r"['’]s\b", "", name.lower())
    return " ".join(re.sub(r"[^\w]|_", " ", plain).split())


#: What COCO calls the classes that VOC has other names for.
COCO_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip


def read_known_classes(path: str | Path, classes: Sequence[str], offset: int = 0) -> dict[int, tuple[int, ...]]:
    """Read which classes of a pretrained net depict those of a data set.

    Args:
        path: a JSON file: for each name of a class, a list of the net's 0-based classes. Classes of VOC may have the
            names that COCO gives them.
        classes: the data set's names.
        offset: is added to the net's classes; 1 where the net has a background class first.

    Returns:
        For each class that the table names, by its place in ``classes``: the net's classes.

    Raises:
        AdvCAMError: the file is missing or no such table, or names none of the classes.

    Example:
        >>> read_known_classes("coco_to_imagenet.json", ("person", "sheep"), offset=1)  # doctest: +SKIP
        {1: (349, 350)}
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such table of known classes: {path}") from error
    except (OSError, ValueError) as error:
        raise AdvCAMError(f"cannot read the table of known classes {path}: it must be a JSON file") from error
    if not isinstance(table, dict):
        raise AdvCAMError(f"{path} must map names of classes to lists of the net's classes")
    known = {}
    for place, name in enumerate(classes):
        listed = table.get(name, table.get(COCO_NAMES.get(name, name)))
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(type(c) is int and c >= 0 for c in listed):
            raise AdvCAMError(f"{path}: {name!r} must have a list of the net's 0-based classes, got {str(listed)[:60]}")
        known[place] = tuple(c + offset for c in listed)
    if not known:
        raise AdvCAMError(f"{path} names none of the classes {few(classes)}")
    return known
