"""Correspondence between the classes of a data set and those of a network, by name or from a JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from advcam_attr.data.labels import few
from advcam_attr.data.samples import LocalizationData, with_samples
from advcam_attr.reading import read_json
from advcam_attr.types import AdvCAMError


def match_names(classes: Sequence[str], names: Sequence[str]) -> dict[int, int]:
    """Match the classes of a data set to a network's classes of the same name.

    Leading numbers, case, hyphens, underscores and the possessive s are ignored. An entry may hold several names: one
    in brackets, others separated by commas or slashes. A class that several of the network's classes match has no
    match.

    Example:
        >>> match_names(["009.Brewer_Blackbird"], ["Rusty Blackbird", "Euphagus cyanocephalus (Brewer's Blackbird)"])
        {0: 1}
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
    """Relabel a split with the classes of a network, matched by name.

    Returns:
        The images of matched classes, with the network's labels; and the names of the unmatched classes, whose images
        are left out.
    """
    matched = match_names(data.classes, names)
    part = [sample for sample in data.samples if set(sample.labels) <= matched.keys()]
    if not part:
        raise AdvCAMError(
            f"none of the classes of {data.name} {data.split} ({few(data.classes)}) is among the net's {len(names)} "
            f"names ({few(names)})"
        )
    relabelled = [replace(sample, labels=tuple(sorted(matched[k] for k in sample.labels))) for sample in part]
    split = replace(with_samples(data, relabelled), classes=tuple(names))
    return split, tuple(name for k, name in enumerate(data.classes) if k not in matched)


def _names_in(entry: str) -> set[str]:
    bare = re.sub(r"^\d+\s*[.:]\s*", "", entry.strip())
    bracketed = re.findall(r"\(([^()]*)\)", bare)
    parts: Iterable[str] = [re.sub(r"\([^()]*\)", " ", bare), *bracketed, bare]
    return {one for part in parts for piece in (part, *re.split(r"[,/;]", part)) if (one := _normalised(piece))}


def _normalised(name: str) -> str:
    plain = re.sub(r"['’]s\b", "", name.lower())
    return " ".join(re.sub(r"[^\w]|_", " ", plain).split())


#: COCO's names of the classes that VOC names otherwise.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def read_class_map(path: str | Path, classes: Sequence[str], class_offset: int = 0) -> dict[int, tuple[int, ...]]:
    """Read which classes of a pretrained network depict the classes of a data set.

    Args:
        path: a JSON file that maps class names to lists of the network's 0-based classes. VOC's classes may have
            COCO's names.
        classes: K names of the data set.
        class_offset: added to the network's classes; 1 where its first class is the background.
    """
    path = Path(path)
    try:
        table = read_json(path)
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such class map: {path}") from error
    except (OSError, ValueError) as error:
        raise AdvCAMError(f"cannot read the class map {path}: it must be a JSON file") from error
    if not isinstance(table, dict):
        raise AdvCAMError(f"{path} must map class names to lists of the net's classes")
    class_map = {}
    for k, name in enumerate(classes):
        listed = table.get(name, table.get(COCO_NAMES.get(name, name)))
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(type(c) is int and c >= 0 for c in listed):
            raise AdvCAMError(f"{path}: {name!r} must have a list of the net's 0-based classes, got {str(listed)[:60]}")
        class_map[k] = tuple(c + class_offset for c in listed)
    if not class_map:
        raise AdvCAMError(f"{path} names none of the classes {few(classes)}")
    return class_map
