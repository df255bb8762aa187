"""Samples and where localization maps are in; pixels and maps that fit each other, and label maps of them, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcam_attr.data.images import read_rgb
from advcam_attr.data.pictures import to_bytes
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.pipelines.evaluation import MapReader
from advcam_attr.pipelines.label_stage import LabelStage
from advcam_attr.pipelines.masks import write_mask
from advcam_attr.refine.seeds import strided_size
from advcam_attr.types import AdvCAMError, ClassMaps, Sample


@dataclass(frozen=True)
class SeededImage:
    """An image and the localization maps of its classes.

    Attributes:
        sample: which.
        pixels: ``(3, H, W)`` uint8.
        maps: of the same size; of no class for an image without labels.
    """

    sample: Sample
    pixels: Tensor
    maps: ClassMaps


def read_seeded(seeds: MapReader, sample: Sample) -> SeededImage:
    """Read an image and its maps.

    Raises:
        AdvCAMError: one of them cannot be read, they differ in size, or the maps are not finite.
    """
    pixels = to_bytes(read_rgb(sample.image))
    size = (pixels.shape[1], pixels.shape[2])
    if not sample.labels and sample.id not in seeds:
        return SeededImage(
            sample, pixels, ClassMaps((), size, torch.zeros(0, *strided_size(size, 4)), torch.zeros(0, *size))
        )
    maps = seeds.read(sample.id)
    if tuple(maps.high_res.shape) != (len(maps.classes), *size):
        raise AdvCAMError(
            f"the maps of {sample.id} are of {maps.high_res.shape[2]} x {maps.high_res.shape[1]} pixels and its image "
            f"{sample.image} is of {size[1]} x {size[0]}; make the maps again from this image"
        )
    if not bool(maps.high_res.isfinite().all() and maps.cam.isfinite().all()):
        raise AdvCAMError(f"the maps of {sample.id} are not finite; make them anew")
    return SeededImage(sample, pixels, maps)


def seeded_stage(
    what: str,
    folder: Path,
    depends_on: Mapping[str, Any],
    seeds: MapReader,
    data: SegmentationData,
    make: Callable[[SeededImage], Tensor],
    write: Callable[[Path, Tensor, str], None] = write_mask,
) -> LabelStage[SeededImage]:
    """A stage whose label maps are made of images and their seeds.

    Args:
        what, folder, make, write: as in `advcam_attr.pipelines.label_stage.LabelStage`.
        depends_on: all that the label maps depend on besides the seeds and the data set.
        seeds: localization maps by image id; what they depend on is told by their ``settings``, if they have any.
        data: the images.
    """
    config = {**depends_on, "seeds": str(getattr(seeds, "settings", "")), "data": data.name}
    return LabelStage(what, folder, config, lambda sample: read_seeded(seeds, sample), make, write)
