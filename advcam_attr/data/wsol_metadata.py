"""The lists of Choe et al. ("Evaluating WSOL right"): CUB, ImageNet and OpenImages for localization.

A folder ``metadata/<CUB|ILSVRC|OpenImages>/<train|val|test>`` holds lists that name images by their paths: CUBV2 is
CUB's ``val``, ImageNetV2 is ILSVRC's, and OpenImages30k has masks instead of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advcam_attr.data.labels import few, whole
from advcam_attr.data.masks import PixelMasks
from advcam_attr.data.samples import Box, LocalizationData, MissingSplitError, checked_box, image_ids
from advcam_attr.reading import read_lines
from advcam_attr.types import AdvCAMError, Sample

#: The data sets by the names of their folders, and the numbers of their published classes.
CLASSES = {"CUB": 200, "ILSVRC": 1000, "OpenImages": 100}

#: Class numbers are below this.
_MOST_CLASSES = 100_000

#: The splits: training with labels, search of hyper-parameters with boxes or masks, and the test.
SPLITS = ("train", "val", "test")

#: Numbers of images of the published lists, by split.
PUBLISHED = {"CUB": (5994, 1000, 5794), "ILSVRC": (1281167, 10000, 50000), "OpenImages": (29819, 2500, 5000)}

IDS, LABELS, SIZES, TRUTH = "image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"

_NAMES = {"CUB": "cub", "ILSVRC": "imagenet", "OpenImages": "openimages"}


def read_wsol_metadata(
    metadata: str | Path,
    images: str | Path,
    split: str = "test",
    *,
    masks: str | Path | None = None,
    classes: Sequence[str] | None = None,
    proxy: bool = False,
) -> LocalizationData:
    """Read a split from a metadata folder, without looking at the images.

    Boxes are taken as listed, in the order ``x0,y0,x1,y1``; labels are 0-based. A split with masks has
    `LocalizationData.masks`; one without ``localization.txt``, or with an empty one, has neither. Sizes are needed only
    where there are boxes; the published ``image_sizes.txt`` of some splits are empty.

    Args:
        metadata: a data set's folder, e.g. ``metadata/CUB``.
        images: the folder of the lists' paths, e.g. ``dataset/CUB``.
        split: ``train``, ``val`` or ``test``.
        masks: the folder of the masks' paths; default: ``images``.
        classes: K names; default: the names of the images' folders where these are the classes, else numbers.
        proxy: read ``image_ids_proxy.txt``, the part of ImageNet's training images for cheap searches.

    Raises:
        AdvCAMError: a list is missing, malformed or has no line for an image; a label is not among the classes, or a
            box is not in its image.
    """
    folder, root = Path(metadata) / split, Path(images)
    if split not in SPLITS:
        raise AdvCAMError(f"metadata have no split {split!r}; there are {', '.join(SPLITS)}")
    if not folder.is_dir():
        raise MissingSplitError(f"no such folder: {folder}; it should hold {IDS} and {LABELS}")
    list_file = folder / ("image_ids_proxy.txt" if proxy else IDS)
    paths = [line[0] for line in _read(list_file, 1)]
    if not paths:
        raise AdvCAMError(f"{list_file} is empty; it should have a line for each image")
    labels = _labels(folder / LABELS, paths)
    ids = image_ids(paths)
    samples = tuple(Sample(id, root / path, (labels[path],)) for id, path in zip(ids, paths, strict=True))
    names = tuple(classes) if classes is not None else _class_names(Path(metadata).name, paths, labels)
    highest = max(labels.values())
    if highest >= len(names):
        raise AdvCAMError(f"{folder / LABELS} has a class {highest}, but there are {len(names)}, from 0 on")
    by_path = dict(zip(paths, ids, strict=True))
    sizes_file, truth_file = folder / SIZES, folder / TRUTH
    sizes = {by_path[path]: size for path, size in _sizes(sizes_file, paths).items()}
    data = LocalizationData(_NAMES.get(Path(metadata).name, "wsol"), root, split, names, samples, {}, sizes)
    listed = _read(truth_file, 3, 5) if truth_file.is_file() else []
    if not listed:
        return data
    rows: dict[str, list[list[str]]] = {path: [] for path in paths}
    for path, *fields in listed:
        if path in rows:
            rows[path].append(fields)
    _require(truth_file, [path for path, of in rows.items() if not of], len(paths))
    if any(len(fields) == 2 for of in rows.values() for fields in of):
        above = root if masks is None else Path(masks)
        files = {by_path[path]: _masks(above, of, f"{truth_file}, {path}") for path, of in rows.items()}
        return replace(data, masks=files)
    if not sizes:
        raise AdvCAMError(f"no such list, or an empty one: {sizes_file}; boxes need the sizes of their images")
    boxes = {by_path[p]: _boxes(of, sizes[by_path[p]], f"{truth_file}, {p}") for p, of in rows.items()}
    return replace(data, boxes=boxes)


def find_metadata(root: str | Path) -> Path:
    """Return the root if its ``train``, ``val`` or ``test`` holds lists of images or of their labels."""
    root = Path(root)
    if any((root / split / name).is_file() for split in SPLITS for name in (IDS, LABELS)):
        return root
    raise AdvCAMError(f"no lists at {root}: looked for {IDS} and {LABELS} in {', '.join(SPLITS)}")


def _read(path: Path, *columns: int) -> list[list[str]]:
    found = []
    for place, line in enumerate(read_lines(path, "list"), start=1):
        if line.strip():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) not in columns or not fields[0]:
                raise AdvCAMError(
                    f"{path}, line {place}: {line[:80]!r} is not {' or '.join(map(str, columns))} fields with commas "
                    "between them"
                )
            found.append(fields)
    return found


def _fields(path: Path, images: Sequence[str], columns: int) -> dict[str, list[str]]:
    wanted = set(images)
    found = {image: fields for image, *fields in _read(path, columns) if image in wanted}
    _require(path, [image for image in images if image not in found], len(images))
    return found


def _labels(path: Path, images: Sequence[str]) -> dict[str, int]:
    labels = {}
    for image, (label,) in _fields(path, images, 2).items():
        number = whole(label)
        if number is None or number >= _MOST_CLASSES:
            raise AdvCAMError(f"{path}: the class of {image} is {label!r}; classes are numbers from 0 on")
        labels[image] = number
    return labels


def _sizes(path: Path, images: Sequence[str]) -> dict[str, tuple[int, int]]:
    if not path.is_file() or not _read(path, 3):
        return {}
    sizes = {}
    for image, fields in _fields(path, images, 3).items():
        width, height = map(whole, fields)
        if not (width and height):
            raise AdvCAMError(f"{path}: the width and height of {image} are {' and '.join(fields)}")
        sizes[image] = height, width
    return sizes


def _boxes(rows: Sequence[Sequence[str]], size: tuple[int, int], where: str) -> tuple[Box, ...]:
    try:
        corners = [[int(field) for field in fields] for fields in rows]
    except ValueError as error:
        raise AdvCAMError(f"{where}: boxes are four whole numbers, x0,y0,x1,y1") from error
    return tuple(checked_box(box, size, where) for box in corners)


def _masks(root: Path, rows: Sequence[Sequence[str]], where: str) -> PixelMasks:
    """Return the masks of an image; one of its lines, the first in the published list, names the ignored pixels."""
    if any(len(fields) != 2 for fields in rows):
        raise AdvCAMError(f"{where}: lines of masks name a mask and a mask of ignored pixels, which may be empty")
    ignored = next((fields[1] for fields in rows if fields[1]), None)
    return PixelMasks(tuple(root / fields[0] for fields in rows), None if ignored is None else root / ignored)


def _require(path: Path, missing: Sequence[str], count: int) -> None:
    if missing:
        raise AdvCAMError(f"{path} has no line for {len(missing)} of {count} images ({few(missing)}); is it truncated?")


def _class_names(data_set: str, paths: Sequence[str], labels: dict[str, int]) -> tuple[str, ...]:
    """Return the images' folders where these are in one-to-one relation to the classes; else the classes' numbers."""
    folders: dict[int, set[str]] = {}
    for path in paths:
        folders.setdefault(labels[path], set()).add(Path(path).parent.name)
    count = CLASSES.get(data_set, max(folders) + 1)
    names = [next(iter(found)) for found in folders.values()]
    if any(len(found) > 1 for found in folders.values()) or len(set(names)) < len(names):
        return tuple(map(str, range(count)))
    return tuple(next(iter(folders.get(k, {str(k)}))) for k in range(count))
