"""Splits of data sets for segmentation and localization: samples with their masks or boxes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from torch import Tensor

from advcam_attr.data.labels import few
from advcam_attr.data.masks import PixelMasks
from advcam_attr.types import AdvCAMError, Instances, NoMaskError, Sample

#: First and last column and row of a box, ``x0, y0, x1, y1``, in pixels of the original image, 0-based and inclusive.
Box = tuple[int, int, int, int]


def no_instances(sample: Sample) -> Instances:
    """Raise `NoMaskError`: the data set has no instances."""
    raise NoMaskError(f"no instances of {sample.id}: its data set has none")


class MissingSplitError(AdvCAMError):
    """A split whose list, annotations or images are not there at all; one that is damaged is another error."""


@dataclass(frozen=True)
class SegmentationData:
    """One split of a segmentation data set.

    Attributes:
        classes: K names of the foreground classes; class k is k + 1 in label maps, 0 the background, 255 void.
        samples: in the order of the split's list.
        mask: reads the true label map ``(H, W)`` uint8 of a sample; raises `NoMaskError` where there is none, and
            another `AdvCAMError` where it is damaged.
        instances: reads the true instances of a sample; raises as ``mask`` does.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    mask: Callable[[Sample], Tensor]
    instances: Callable[[Sample], Instances] = no_instances


def find_root(
    title: str, root: str | Path, below: Iterable[str], holds: Callable[[Path], bool], looked_for: str
) -> Path:
    """Return the first of a root and the folders below it that holds a data set."""
    root = Path(root)
    for folder in (root, *(root / name for name in below)):
        if holds(folder):
            return folder
    hint = "" if root.is_dir() else "; there is no such folder"
    raise AdvCAMError(f"no {title} at {root}: looked for {looked_for}{hint}")


def without_missing(data: SegmentationData) -> tuple[SegmentationData, tuple[Sample, ...]]:
    """Return a split without the samples whose image file is missing, and these samples."""
    missing = tuple(missing_images(data.samples))
    if not missing:
        return data, ()
    ids = {sample.id for sample in missing}
    return replace(data, samples=tuple(sample for sample in data.samples if sample.id not in ids)), missing


@dataclass(frozen=True)
class LocalizationData:
    """One split of a data set with one label an image.

    Boxes and sizes refer to the stored pixels: read images by `advcam_attr.data.images.read_stored_rgb`.

    Attributes:
        samples: in the order of the split's list; each has one label.
        boxes: the true boxes by id, at least one each; empty where the split has none.
        sizes: height and width of the original image by id, at least of all images with boxes.
        masks: the true pixels by id, where the data set has masks instead of boxes.
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
    """Return a box from published corners: the far ones clipped to the image, all truncated to integers.

    A box without area covers one row or column; ``where`` names it in errors.
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
    """Return a published box unchanged; one that is not within the image raises `AdvCAMError`."""
    x0, y0, x1, y1 = box
    if not (0 <= x0 <= x1 < size[1] and 0 <= y0 <= y1 < size[0]):
        raise AdvCAMError(
            f"{where}: the box {x0},{y0},{x1},{y1} (x0,y0,x1,y1) is not in the image of {size[1]}x{size[0]} pixels; "
            "is it of the original image?"
        )
    return x0, y0, x1, y1


def image_ids(paths: Sequence[str]) -> list[str]:
    """Return ids that can name files: the stems of relative paths, or the whole paths where stems are not unique.

    Example:
        >>> image_ids(["val/ILSVRC2012_val_00000001.JPEG"]), image_ids(["val2/0/0.jpeg", "val2/10/0.jpeg"])
        (['ILSVRC2012_val_00000001'], ['val2_0_0', 'val2_10_0'])
    """
    ids = [PurePosixPath(path).stem for path in paths]
    if len(set(ids)) < len(ids):
        ids = ["_".join(PurePosixPath(path).with_suffix("").parts) for path in paths]
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        twice = next(path for n, (id, path) in enumerate(zip(ids, paths, strict=True)) if first.setdefault(id, n) < n)
        raise AdvCAMError(f"the list of images names {twice} twice; remove one")
    return ids


def missing_images(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples whose image file is missing; every folder is listed once."""
    there: dict[Path, set[str]] = {}
    missing = []
    for sample in samples:
        folder = sample.image.parent
        if folder not in there:
            try:
                there[folder] = set(os.listdir(folder))
            except OSError:  # it is missing, or its name is too long
                there[folder] = set()
        if sample.image.name not in there[folder]:
            missing.append(sample)
    return missing


def require_images(samples: Sequence[Sample], split: str) -> None:
    missing = missing_images(samples)
    if missing:
        raise AdvCAMError(
            f"{len(missing)} of {len(samples)} images of {split} are not there ({few(s.image for s in missing)}); "
            "unpack them again, or remove them from the list"
        )


def per_class(data: LocalizationData, count: int) -> LocalizationData:
    """Return the first ``count`` images of each class, e.g. for a cheaper search of hyper-parameters."""
    if count < 1:
        raise AdvCAMError(f"at least one image of each class is needed, got {count}")
    seen: dict[int, int] = {}
    part = []
    for sample in data.samples:
        (label,) = sample.labels
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            part.append(sample)
    return with_samples(data, part)


def with_samples(data: LocalizationData, samples: Sequence[Sample]) -> LocalizationData:
    """Return a split of some of the samples, with their boxes, sizes and masks."""
    ids = {sample.id for sample in samples}
    return replace(
        data,
        samples=tuple(samples),
        boxes={id: boxes for id, boxes in data.boxes.items() if id in ids},
        sizes={id: size for id, size in data.sizes.items() if id in ids},
        masks={id: masks for id, masks in data.masks.items() if id in ids},
    )
