"""What every segmentation data set looks like to the pipelines: samples, class names, and masks on demand."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from advcam_attr.types import Sample


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
