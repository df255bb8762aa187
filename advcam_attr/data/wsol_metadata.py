"""The metadata folders of Choe et al. ("Evaluating WSOL right") in; CUB, ImageNet and OpenImages for localization, out.

A folder ``metadata/<CUB|ILSVRC|OpenImages>/<train|val|test>`` holds lists that name images by their paths: CUBV2 is
CUB's ``val``, ImageNetV2 is ILSVRC's, and OpenImages30k has masks in place of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advcam_attr.data.labels import few
from advcam_attr.data.masks import PixelMasks
from advcam_attr.data.samples import Box, LocalizationData, checked_box, image_ids
from advcam_attr.types import AdvCAMError, Sample

#: The data sets by the names of their folders, and how many classes the published ones have.
CLASSES = {"CUB": 200, "ILSVRC": 1000, "OpenImages": 100}

#: The splits: training with labels, search of hyper-parameters with boxes or masks, and the test.
SPLITS = ("train", "val", "test")

#: How many images the published lists of each split name.
PUBLISHED = {"CUB": (5994, 1000, 5794), "ILSVRC": (1281167, 10000, 50000), "OpenImages": (29819, 2500, 5000)}

IDS, LABELS, SIZES, TRUTH = "image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"


def read_wsol_metadata(
    metadata: str | Path,
    images: str | Path,
    split: str = "test",
    *,
    masks: str | Path | None = None,
    classes: Sequence[str] | None = None,
    proxy: bool = False,
) -> LocalizationData:
    """Read a split from a metadata folder. No image is looked at.

    Boxes are taken as they are listed, in the order ``x0,y0,x1,y1``, all of an image; labels are 0-based. A split
    without ``localization.txt`` has none of them, one with masks has `LocalizationData.masks`.

    Args:
        metadata: a data set's folder, e.g. ``metadata/CUB``.
        images: the folder that the lists' paths start from, e.g. ``dataset/CUB``.
        split: ``train``, ``val`` or ``test``.
        masks: the folder that the masks' paths start from; ``images`` if it is not given.
        classes: K names; else the names of the images' folders where these are the classes, and numbers for others.
        proxy: read ``image_ids_proxy.txt``, the part of ImageNet's training images for cheap searches.

    Raises:
        AdvCAMError: a list is missing, has no line for an image or one that cannot be read; a label is not among the
            classes, or a box is not in its image.

    Example:
        >>> data = read_wsol_metadata("metadata/CUB", "dataset/CUB", "val")  # doctest: +SKIP
        >>> len(data.samples), data.samples[0].image  # doctest: +SKIP
        (1000, PosixPath('dataset/CUB/001.Black_footed_Albatross/30107316117.jpg'))
    """
    folder, root = Path(metadata) / split, Path(images)
    if split not in SPLITS:
        raise AdvCAMError(f"metadata have no split {split!r}; there are {', '.join(SPLITS)}")
    list_file = folder / ("image_ids_proxy.txt" if proxy else IDS)
    paths = [line[0] for line in _lines(list_file, 1)]
    labels = _labels(folder / LABELS, paths)
    ids = image_ids(paths)
    samples = tuple(Sample(id, root / path, (labels[path],)) for id, path in zip(ids, paths, strict=True))
    names = tuple(classes) if classes is not None else _names(Path(metadata).name, paths, labels)
    highest = max(labels[path] for path in paths)
    if highest >= len(names):
        raise AdvCAMError(f"{folder / LABELS} has a class {highest}, but there are {len(names)}, from 0 on")
    by_path = dict(zip(paths, ids, strict=True))
    sizes_file, truth_file = folder / SIZES, folder / TRUTH
    sizes = _sizes(sizes_file, by_path) if sizes_file.is_file() else {}
    if not truth_file.is_file():
        return LocalizationData(_name(metadata), root, split, names, samples, {}, sizes)
    if not sizes:
        raise AdvCAMError(f"no such list: {sizes_file}; boxes and masks need the sizes of their images")
    rows: dict[str, list[list[str]]] = {path: [] for path in paths}
    for path, *fields in _lines(truth_file, 3, 5):
        if path in rows:
            rows[path].append(fields)
    _require(truth_file, [path for path, found in rows.items() if not found], len(paths))
    if any(len(fields) == 2 for found in rows.values() for fields in found):
        above = root if masks is None else Path(masks)
        files = {by_path[path]: _masks(above, found, f"{truth_file}, {path}") for path, found in rows.items()}
        return LocalizationData(_name(metadata), root, split, names, samples, {}, sizes, files)
    boxes = {by_path[p]: _boxes(found, sizes[by_path[p]], f"{truth_file}, {p}") for p, found in rows.items()}
    return LocalizationData(_name(metadata), root, split, names, samples, boxes, sizes)


def find_metadata(root: str | Path) -> Path:
    """A root whose ``train``, ``val`` or ``test`` holds lists of images or of their labels.

    Raises:
        AdvCAMError: none of them does.
    """
    root = Path(root)
    if any((root / split / name).is_file() for split in SPLITS for name in (IDS, LABELS)):
        return root
    raise AdvCAMError(f"no lists at {root}: looked for {IDS} and {LABELS} in {', '.join(SPLITS)}")


def _name(metadata: str | Path) -> str:
    return {"CUB": "cub", "ILSVRC": "imagenet", "OpenImages": "openimages"}.get(Path(metadata).name, "wsol")


def _lines(path: Path, *columns: int) -> list[list[str]]:
    """The lines of a list, each of one of some numbers of fields with commas between them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such list: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AdvCAMError(f"cannot read {path}: it must be a text file") from error
    found = []
    for place, line in enumerate(lines, start=1):
        if line.strip():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) not in columns or not fields[0]:
                raise AdvCAMError(
                    f"{path}, line {place}: {line[:80]!r} is not {' or '.join(map(str, columns))} fields with commas "
                    "between them"
                )
            found.append(fields)
    if not found:
        raise AdvCAMError(f"{path} is empty; it should have a line for each image")
    return found


def _labels(path: Path, images: Sequence[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for image, label in _lines(path, 2):
        if not label.isdecimal():
            raise AdvCAMError(f"{path}: the class of {image} is {label!r}; classes are numbers from 0 on")
        labels[image] = int(label)
    _require(path, [image for image in images if image not in labels], len(images))
    return labels


def _sizes(path: Path, ids: dict[str, str]) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    for image, *fields in _lines(path, 3):
        if image in ids:
            if not all(field.isdecimal() and int(field) for field in fields):
                raise AdvCAMError(f"{path}: the width and height of {image} are {' and '.join(fields)}")
            width, height = map(int, fields)
            sizes[ids[image]] = height, width
    _require(path, [image for image, id in ids.items() if id not in sizes], len(ids))
    return sizes


def _boxes(rows: Sequence[Sequence[str]], size: tuple[int, int], where: str) -> tuple[Box, ...]:
    try:
        corners = [[int(field) for field in fields] for fields in rows]
    except ValueError as error:
        raise AdvCAMError(f"{where}: boxes are four whole numbers, x0,y0,x1,y1") from error
    return tuple(checked_box(box, size, where) for box in corners)


def _masks(root: Path, rows: Sequence[Sequence[str]], where: str) -> PixelMasks:
    """The masks of an image; the first of its lines names what is ignored, too."""
    if any(len(fields) != 2 for fields in rows):
        raise AdvCAMError(f"{where}: lines of masks name a mask and what is ignored, which may be empty")
    ignored = next((fields[1] for fields in rows if fields[1]), None)
    return PixelMasks(tuple(root / fields[0] for fields in rows), None if ignored is None else root / ignored)


def _require(path: Path, missing: Sequence[str], count: int) -> None:
    if missing:
        raise AdvCAMError(f"{path} has no line for {len(missing)} of {count} images ({few(missing)}); is it cut off?")


def _names(data_set: str, paths: Sequence[str], labels: dict[str, int]) -> tuple[str, ...]:
    """The images' folders where each is of one class and each class has one; else the classes' numbers."""
    folders: dict[int, set[str]] = {}
    for path in paths:
        folders.setdefault(labels[path], set()).add(Path(path).parent.name)
    count = CLASSES.get(data_set, max(folders) + 1)
    names = [next(iter(found)) for found in folders.values()]
    if any(len(found) > 1 for found in folders.values()) or len(set(names)) < len(names):
        return tuple(map(str, range(count)))
    return tuple(next(iter(folders.get(k, {str(k)}))) for k in range(count))
