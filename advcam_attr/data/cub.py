"""CUB-200-2011: one class and one box an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from advcam_attr.data.images import stored_size
from advcam_attr.data.labels import few, whole
from advcam_attr.data.samples import Box, LocalizationData, clipped_box, find_root, image_ids, require_images
from advcam_attr.reading import read_lines
from advcam_attr.types import AdvCAMError, Sample

#: The splits, their codes in ``train_test_split.txt``, and the numbers of their published images.
SPLITS = {"train": ("1", 5994), "test": ("0", 5794)}

IMAGES, LABELS, BOXES = "images.txt", "image_class_labels.txt", "bounding_boxes.txt"
SPLIT, CLASSES = "train_test_split.txt", "classes.txt"


def read_cub(root: str | Path, split: str = "test") -> LocalizationData:
    """Read a split of CUB-200-2011 from its published files, joined by the images' numbers.

    A box ``x y width height`` becomes ``x, y, min(x + width, W - 1), min(y + height, H - 1)``, as in the lists of Choe
    et al.: no pixel is subtracted for counting from 1, and none for the last column. Fractions, which the published
    file does not have, are truncated. Labels are the file's minus 1; ids are the stems of the images.

    Args:
        root: the folder of ``images.txt``, or the one above ``CUB_200_2011``.
        split: ``train`` or ``test``.

    Raises:
        AdvCAMError: a file is missing, damaged or has no line for an image; an image is missing; a box lies outside of
            its image.
    """
    if split not in SPLITS:
        raise AdvCAMError(f"CUB-200-2011 has no split {split!r}; there are {', '.join(SPLITS)}")
    folder = find_cub(root)
    classes, samples, listed = _read_samples(folder, split)
    require_images(samples, f"CUB-200-2011 {split}")
    sizes = {sample.id: stored_size(sample.image) for sample in samples}
    boxes = {id: (cub_box(listed[id], size, f"{folder / BOXES}, {id}"),) for id, size in sizes.items()}
    return LocalizationData("cub", folder / "images", split, classes, samples, boxes, sizes)


def cub_box(fields: Sequence[str], size: tuple[int, int], where: str) -> Box:
    """Return a box from the fields x, y, width and height of its line; ``where`` names it in errors."""
    try:
        x, y, width, height = (float(field) for field in fields)
    except ValueError as error:
        raise AdvCAMError(f"{where}: {' '.join(fields)!r} are not the four numbers of a box") from error
    return clipped_box(x, y, x + width, y + height, size, where)


def find_cub(root: str | Path) -> Path:
    """Return the folder of CUB's lists: a root, or ``CUB_200_2011`` in it."""
    looked_for = f"{IMAGES} and {SPLIT}, in it and in CUB_200_2011"
    return find_root("CUB-200-2011", root, ["CUB_200_2011"], _holds_lists, looked_for)


def _holds_lists(folder: Path) -> bool:
    return (folder / IMAGES).is_file() and (folder / SPLIT).is_file()


def _read_samples(folder: Path, split: str) -> tuple[tuple[str, ...], tuple[Sample, ...], dict[str, tuple[str, ...]]]:
    names = {number: " ".join(fields) for number, fields in _read_table(folder / CLASSES, 1).items()}
    if list(names) != [str(k) for k in range(1, len(names) + 1)]:
        raise AdvCAMError(f"{folder / CLASSES} should number its classes from 1 on, one a line")
    images = {number: fields[0] for number, fields in _read_table(folder / IMAGES, 1).items()}
    shares, labels, boxes = (_read_table(folder / name, n) for name, n in ((SPLIT, 1), (LABELS, 1), (BOXES, 4)))
    for path, table in ((folder / SPLIT, shares), (folder / LABELS, labels)):
        _require_lines(path, table, images)
    samples, listed = [], {}
    ids = image_ids(list(images.values()))
    for id, (number, file) in zip(ids, images.items(), strict=True):
        if shares[number][0] not in ("0", "1"):
            raise AdvCAMError(f"{folder / SPLIT}: image {number} is {shares[number][0]!r}; 1 is train and 0 is test")
        if shares[number][0] == SPLITS[split][0]:
            label = labels[number][0]
            if not 1 <= (whole(label) or 0) <= len(names):
                raise AdvCAMError(
                    f"{folder / LABELS}: the class of image {number} is {label!r}; there are 1 to {len(names)}"
                )
            samples.append(Sample(id, folder / "images" / file, (int(label) - 1,)))
            listed[number] = id
    if not samples:
        raise AdvCAMError(f"{folder / SPLIT} puts no image into {split}")
    _require_lines(folder / BOXES, boxes, listed)
    return tuple(names.values()), tuple(samples), {id: boxes[number] for number, id in listed.items()}


def _read_table(path: Path, columns: int) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for place, line in enumerate(read_lines(path, "list of CUB-200-2011"), start=1):
        number, *fields = line.split() or [""]
        if not number:
            continue
        if len(fields) != columns:
            raise AdvCAMError(f"{path}, line {place}: {line[:80]!r} is not a number and {columns} more")
        if number in table:
            raise AdvCAMError(f"{path} has {number} twice, the second time in line {place}; remove one")
        table[number] = tuple(fields)
    if not table:
        raise AdvCAMError(f"{path} is empty; unpack it again")
    return table


def _require_lines(path: Path, table: dict[str, tuple[str, ...]], numbers: Iterable[str]) -> None:
    numbers = list(numbers)
    missing = [number for number in numbers if number not in table]
    if missing:
        raise AdvCAMError(
            f"{path} has no line for {len(missing)} of {len(numbers)} images (number {few(missing)}); is it truncated?"
        )
