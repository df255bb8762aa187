"""Annotations (the XML of VOC, or the ``cls_labels.npy`` of others' codebases) in; the classes of an image out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from advcam_attr.data.lists import few
from advcam_attr.data.npy import read_npy
from advcam_attr.data.xml import read_elements
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError


def read_annotation(path: str | Path, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes of all objects of a PASCAL VOC annotation, the difficult ones included.

    Difficult objects count, as they do in the ``cls_labels.npy`` of IRN and PSA; parts of persons (heads, hands, feet)
    are no objects. Files that define entities are refused before anything of theirs is expanded.

    Args:
        path: ``Annotations/<id>.xml``.
        classes: the names of the classes.

    Returns:
        Indices into ``classes``, ascending, each once; empty if there is no object.

    Raises:
        AdvCAMError: the file is missing or damaged, or names an object that is none of the classes.
    """
    path = Path(path)
    names = [text for tags, text in read_elements(path) if tags == ("annotation", "object", "name")]
    for name in names:
        if name not in classes:
            raise AdvCAMError(f"annotation {path} names an object {name!r}, which is no class{nearest(name, classes)}")
    return tuple(sorted({classes.index(name) for name in names}))


def read_label_table(
    path: str | Path, num_classes: int, key: Callable[[int | str], str] = str
) -> dict[str, tuple[int, ...]]:
    """The labels of a ``cls_labels.npy``: a dict from ids to 0/1 vectors ``(K,)``.

    Args:
        path: as IRN, AdvCAM, PSA, SEAM, RIB write it; nothing in it is run.
        num_classes: K.
        key: brings the file's ids (integers or strings) to the form in which they are looked up.

    Returns:
        Class indices, ascending, by id.

    Raises:
        AdvCAMError: the file cannot be read, is no such dict, or a vector is not one of K zeros and ones.

    Example:
        >>> read_label_table("cls_labels.npy", 20, voc_id)["2007_000032"]  # doctest: +SKIP
        (0, 14)
    """
    table = read_npy(path)
    if not isinstance(table, Mapping) or not table:
        raise AdvCAMError(f"{path} is no table of labels: it should hold a dict from image ids to 0/1 vectors")
    labels: dict[str, tuple[int, ...]] = {}
    for name, vector in table.items():
        array = np.asarray(vector)
        if array.shape != (num_classes,) or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise AdvCAMError(
                f"{path}: the labels of {name} are of shape {array.shape} and type {array.dtype}, "
                f"where {num_classes} zeros and ones were expected; is it of another data set?"
            )
        labels[key(name if isinstance(name, str) else int(name))] = tuple(np.flatnonzero(array).tolist())
    return labels


def look_up(table: Mapping[str, tuple[int, ...]], keys: Sequence[str], path: str | Path) -> list[tuple[int, ...]]:
    """The labels of all keys.

    Raises:
        AdvCAMError: some are not in the table.
    """
    missing = [key for key in keys if key not in table]
    if missing:
        raise AdvCAMError(f"{path} has no labels for {len(missing)} of {len(keys)} images ({few(missing)})")
    return [table[key] for key in keys]


def voc_id(key: int | str) -> str:
    """A VOC id from its form in a label table; IRN stores them as integers.

    Example:
        >>> voc_id(2007000032), voc_id("2007_000032")
        ('2007_000032', '2007_000032')
    """
    return key if isinstance(key, str) else f"{key // 1_000_000}_{key % 1_000_000:06d}"


def coco_key(key: int | str) -> str:
    """A COCO image's number, however it is written; the number of padding zeros differs between codebases.

    Example:
        >>> coco_key(9), coco_key("000000000009"), coco_key("COCO_train2014_000000000009")
        ('9', '9', '9')
    """
    digits = re.search(r"\d+$", str(key))
    return str(int(digits[0])) if digits else str(key)
