"""The folder of CUB-200-2011 in; its splits, with one class and one box an image, out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advcam_attr.data.images import stored_size
from advcam_attr.data.labels import few
from advcam_attr.data.samples import Box, LocalizationData, clipped_box, image_ids, require_images
from advcam_attr.types import AdvCAMError, Sample

#: The splits, what ``train_test_split.txt`` calls them, and how many photographs the published ones have.
SPLITS = {"train": ("1", 5994), "test": ("0", 5794)}

IMAGES, LABELS, BOXES, SPLIT, CLASSES = (
    "images.txt", "image_class_labels.txt", "bounding_boxes.txt", "train_test_split.txt", "classes.txt",
)  # fmt: skip


def read_cub(root: str | Path, split: str = "test") -> LocalizationData:
    """Read a split of CUB-200-2011 from its published files, which are joined by the images' numbers.

    A box ``x y width height`` becomes ``x, y, min(x + width, W - 1), min(y + height, H - 1)``: no pixel is taken off
    for counting from 1, and none for the last column, as in the lists of Choe et al. Numbers that are not whole, which
    the published file does not have, are cut off. Labels are the file's less 1.

    Args:
        root: the folder of ``images.txt``, or the one above ``CUB_200_2011``.
        split: ``train`` or ``test``.

    Returns:
        The split, with all names of ``classes.txt``; ids are the photographs' names.

    Raises:
        AdvCAMError: a file is missing or damaged, has no line for an image, or names one twice; a photograph is not
            there; a box is not in its image.

    Example:
        >>> data = read_cub("CUB_200_2011", "test")  # doctest: +SKIP
        >>> data.samples[0].id, data.boxes[data.samples[0].id]  # doctest: +SKIP
        ('Black_Footed_Albatross_0046_18', ((60, 27, 385, 331),))
    """
    if split not in SPLITS:
        raise AdvCAMError(f"CUB-200-2011 has no split {split!r}; there are {', '.join(SPLITS)}")
    folder = find_cub(root)
    classes, samples, numbers = read_samples(folder, split)
    require_images(samples, f"CUB-200-2011 {split}")
    sizes = {sample.id: stored_size(sample.image) for sample in samples}
    listed = read_table(folder / BOXES, 4)
    require_lines(folder / BOXES, listed, numbers)
    boxes = {
        sample.id: (cub_box(listed[number], sizes[sample.id], f"{folder / BOXES}, image {number}"),)
        for number, sample in zip(numbers, samples, strict=True)
    }
    return LocalizationData("cub", folder / "images", split, classes, samples, boxes, sizes)


def cub_box(fields: Sequence[str], size: tuple[int, int], where: str) -> Box:
    """A box as it is used, from its line.

    Args:
        fields: x, y, width and height.
        size: height and width of the image.
        where: what to call the box in errors.

    Raises:
        AdvCAMError: the fields are not numbers, or nothing of the box lies in the image.

    Example:
        >>> cub_box(["60.0", "27.0", "325.0", "304.0"], (335, 500), "image 1")
        (60, 27, 385, 331)
    """
    try:
        x, y, width, height = (float(field) for field in fields)
    except ValueError as error:
        raise AdvCAMError(f"{where}: {' '.join(fields)!r} are not the four numbers of a box") from error
    return clipped_box(x, y, x + width, y + height, size, where)


def find_cub(root: str | Path) -> Path:
    """The folder of CUB's lists: a root, or ``CUB_200_2011`` in it.

    Raises:
        AdvCAMError: there is none.
    """
    root = Path(root)
    for folder in (root, root / "CUB_200_2011"):
        if (folder / IMAGES).is_file() and (folder / SPLIT).is_file():
            return folder
    raise AdvCAMError(
        f"no CUB-200-2011 at {root}: looked for {IMAGES} and {SPLIT}, in it and in CUB_200_2011"
        + ("" if root.is_dir() else "; there is no such folder")
    )


def read_samples(folder: Path, split: str) -> tuple[tuple[str, ...], tuple[Sample, ...], list[str]]:
    """The classes, the samples of a split, and the samples' numbers in CUB's lists; no photograph is looked for.

    Raises:
        AdvCAMError: as `read_cub`.
    """
    classes = _classes(folder / CLASSES)
    images = {number: fields[0] for number, fields in read_table(folder / IMAGES, 1).items()}
    shares, labels = read_table(folder / SPLIT, 1), read_table(folder / LABELS, 1)
    for path, table in ((folder / SPLIT, shares), (folder / LABELS, labels)):
        require_lines(path, table, list(images))
    ids = image_ids(list(images.values()))
    samples, numbers = [], []
    for id, (number, file) in zip(ids, images.items(), strict=True):
        if shares[number][0] not in ("0", "1"):
            raise AdvCAMError(f"{folder / SPLIT}: image {number} is {shares[number][0]!r}; 1 is train and 0 is test")
        if shares[number][0] == SPLITS[split][0]:
            label = labels[number][0]
            if not label.isdecimal() or not 1 <= int(label) <= len(classes):
                raise AdvCAMError(
                    f"{folder / LABELS}: the class of image {number} is {label!r}; there are 1 to {len(classes)}"
                )
            samples.append(Sample(id, folder / "images" / file, (int(label) - 1,)))
            numbers.append(number)
    if not samples:
        raise AdvCAMError(f"{folder / SPLIT} puts no image into {split}")
    return classes, tuple(samples), numbers


def _classes(path: Path) -> tuple[str, ...]:
    names = {number: " ".join(fields) for number, fields in read_table(path, 1).items()}
    if list(names) != [str(k) for k in range(1, len(names) + 1)]:
        raise AdvCAMError(f"{path} should number its classes from 1 on, one a line")
    return tuple(names.values())


def read_table(path: Path, columns: int) -> dict[str, tuple[str, ...]]:
    """A list of CUB: what follows an image's number, by number.

    Raises:
        AdvCAMError: the file is missing, empty, not text, has a line of other columns, or a number twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such list of CUB-200-2011: {path}; unpack it anew") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AdvCAMError(f"cannot read {path}: it must be a text file") from error
    table: dict[str, tuple[str, ...]] = {}
    for place, line in enumerate(lines, start=1):
        number, *fields = line.split() or [""]
        if not number:
            continue
        if len(fields) != columns:
            raise AdvCAMError(f"{path}, line {place}: {line[:80]!r} is not a number and {columns} more")
        if number in table:
            raise AdvCAMError(f"{path} has {number} twice, the second time in line {place}; remove one")
        table[number] = tuple(fields)
    if not table:
        raise AdvCAMError(f"{path} is empty; unpack it anew")
    return table


def require_lines(path: Path, table: dict[str, tuple[str, ...]], numbers: list[str]) -> None:
    """That a list has a line for each image; it may have more.

    Raises:
        AdvCAMError: it has not.
    """
    missing = [number for number in numbers if number not in table]
    if missing:
        raise AdvCAMError(
            f"{path} has no line for {len(missing)} of {len(numbers)} images (number {few(missing)}); is it cut off?"
        )
