"""A table of the classes that a pretrained net knows in; for each class of a data set, those that depict it, out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advcam_attr.data.lists import few
from advcam_attr.types import AdvCAMError

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
