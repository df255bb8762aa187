"""A sample and where localization maps are in; its pixels and its maps, which fit each other, out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.data.images import read_rgb
from advcam_attr.data.pictures import to_bytes
from advcam_attr.pipelines.evaluation import MapReader
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
