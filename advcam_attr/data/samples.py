"""What every segmentation data set looks like to the pipelines: samples, class names, and masks on demand."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from torch import Tensor

from advcam_attr.data.labels import few
from advcam_attr.data.masks import PixelMasks
from advcam_attr.types import AdvCAMError, Sample


@dataclass(frozen=True)
class SegmentationData:
    """One split of a data set.

    Attributes:
        name: of the data set, e.g. ``"voc"``.
        root: the folder it was read from.
        split: of it, e.g. ``"train_aug"``.
        classes: the names of the foreground classes; class k is k + 1 in label maps, 0 the background, 255 void.
        samples: in the order of the split's list.
        mask: reads a sample's true label map, ``(H, W)`` uint8; raises `NoMaskError` where there is none, and
            `AdvCAMError` where it is damaged.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    mask: Callable[[Sample], Tensor]


def without_missing(data: SegmentationData) -> tuple[SegmentationData, tuple[Sample, ...]]:
    """Leave out the samples whose photograph is not there.

    Folders are listed once, which is quick for a hundred thousand samples.

    Returns:
        The others, and those that were left out.
    """
    folders = {sample.image.parent for sample in data.samples}
    there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    missing = tuple(sample for sample in data.samples if sample.image.name not in there[sample.image.parent])
    if not missing:
        return data, ()
    gone = {sample.id for sample in missing}
    return replace(data, samples=tuple(sample for sample in data.samples if sample.id not in gone)), missing


#: First and last column and row that a box covers, ``x0, y0, x1, y1``, in pixels of the original image, from 0.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class LocalizationData:
    """One split of a data set whose images show one labelled class each.

    Images are to be read by `advcam_attr.data.images.read_stored_rgb`: boxes and sizes are of the stored pixels.

    Attributes:
        name: of the data set, e.g. ``"cub"``.
        root: the folder of the images.
        split: of it, e.g. ``"test"``.
        classes: K names.
        samples: in the order of the split's list; each has one label.
        boxes: the true boxes of an image, by id, one or more; empty where the split has none.
        sizes: height and width of the original image, by id; of all that have boxes or masks, and it may be of others.
        masks: the true pixels of an image, by id, where the data set has masks in place of boxes.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    boxes: Mapping[str, tuple[Box, ...]]
    sizes: Mapping[str, tuple[int, int]]
    masks: Mapping[str, PixelMasks] = field(default_factory=dict)


def clipped_box(x: float, y: float, x1: float, y1: float, size: tuple[int, int], where: str) -> Box:
    """A box from published corners: the far ones at most the image's last pixel, all cut off to whole numbers.

    A box without area, of which one row or column is left, is legal: it covers that row or column.

    Args:
        x, y, x1, y1: the corners.
        size: height and width of the image.
        where: what to call the box in errors.

    Raises:
        AdvCAMError: nothing of the box lies in the image, or a number is not finite or below 0.

    Example:
        >>> clipped_box(60.0, 27.0, 60.0 + 325.0, 27.0 + 304.0, (335, 500), "1")
        (60, 27, 385, 331)
        >>> clipped_box(200.0, 0.0, 500.0, 335.0, (335, 500), "2")
        (200, 0, 499, 334)
    """
    height, width = size
    if all(map(math.isfinite, (x, y, x1, y1))) and x >= 0 and y >= 0 and x1 >= x and y1 >= y:
        box = int(x), int(y), int(min(x1, width - 1)), int(min(y1, height - 1))
        if box[0] < width and box[1] < height:
            return box
    raise AdvCAMError(
        f"{where}: the box from {x:g}, {y:g} to {x1:g}, {y1:g} is not in the image of {width}x{height} pixels; is it "
        "of the original image?"
    )


def checked_box(box: Sequence[int], size: tuple[int, int], where: str) -> Box:
    """A box that is used as it is published.

    Raises:
        AdvCAMError: a corner is outside of the image, or the second corner before the first.

    Example:
        >>> checked_box([4, 5, 4, 5], (6, 6), "1")
        (4, 5, 4, 5)
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 <= x1 < size[1] and 0 <= y0 <= y1 < size[0]):
        raise AdvCAMError(
            f"{where}: the box {x0},{y0},{x1},{y1} (x0,y0,x1,y1) is not in the image of {size[1]}x{size[0]} pixels; "
            "is it of the original image?"
        )
    return x0, y0, x1, y1


def image_ids(paths: Sequence[str]) -> list[str]:
    """Ids that can name files, from the images' paths: their stems, or where these are not unique, the whole paths.

    Args:
        paths: relative, with slashes.

    Raises:
        AdvCAMError: a path comes twice.

    Example:
        >>> image_ids(["val/ILSVRC2012_val_00000001.JPEG"]), image_ids(["val2/0/0.jpeg", "val2/10/0.jpeg"])
        (['ILSVRC2012_val_00000001'], ['val2_0_0', 'val2_10_0'])
    """
    ids = [PurePosixPath(path).stem for path in paths]
    if len(set(ids)) < len(ids):
        ids = ["_".join(PurePosixPath(path).with_suffix("").parts) for path in paths]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(path for id, path in zip(ids, paths, strict=True) if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise AdvCAMError(f"the list of images names {twice} twice; remove one")
    return ids


def missing_images(samples: Iterable[Sample]) -> list[Sample]:
    """The samples whose image is not there; folders are listed once."""
    there: dict[Path, set[str]] = {}
    missing = []
    for sample in samples:
        folder = sample.image.parent
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if sample.image.name not in there[folder]:
            missing.append(sample)
    return missing


def require_images(samples: Sequence[Sample], split: str) -> None:
    """That all images of a split are there.

    Raises:
        AdvCAMError: some are not; the first are named.
    """
    missing = missing_images(samples)
    if missing:
        raise AdvCAMError(
            f"{len(missing)} of {len(samples)} images of {split} are not there ({few(s.image for s in missing)}); "
            "unpack them anew, or take them off the list"
        )


def per_class(data: LocalizationData, count: int) -> LocalizationData:
    """The first images of each class, for a cheaper search of hyper-parameters.

    Args:
        data: a split.
        count: of each class, in the order of the list; classes with fewer keep all.

    Raises:
        AdvCAMError: the count is below 1.
    """
    if count < 1:
        raise AdvCAMError(f"at least one image of each class is needed, got {count}")
    seen: dict[int, int] = {}
    kept = []
    for sample in data.samples:
        (label,) = sample.labels
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            kept.append(sample)
    return with_samples(data, kept)


def with_samples(data: LocalizationData, samples: Sequence[Sample]) -> LocalizationData:
    """A split of some of the samples only, with their boxes, sizes and masks."""
    ids = [sample.id for sample in samples]
    return LocalizationData(
        data.name,
        data.root,
        data.split,
        data.classes,
        tuple(samples),
        {id: data.boxes[id] for id in ids if id in data.boxes},
        {id: data.sizes[id] for id in ids if id in data.sizes},
        {id: data.masks[id] for id in ids if id in data.masks},
    )
