"""Seeds and images in; PSA's label scores on disk, and from them images with affinity labels to train on, out.

The scores of an image, of its labels by the low and by the high power, cost two CRFs; they are made once and kept as
one grey PNG, ``scores/<id>.png``, the maps below each other, in 8 bits where PSA keeps float32. A label is the
strongest of scores averaged over a cell, so the rounding matters only where two of these are within 1/255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from advcam_attr.data.images import read_rgb
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.transforms import RandomCropOrPad, to_input
from advcam_attr.engine.prefetch import prefetched
from advcam_attr.networks.affinitynet import AffinityNet
from advcam_attr.pipelines.evaluation import MapReader
from advcam_attr.pipelines.masks import mask_path, png_settings, write_png
from advcam_attr.pipelines.psa_settings import PSASettings
from advcam_attr.refine.confident import psa_scores
from advcam_attr.refine.psa import affinity_labels
from advcam_attr.types import AdvCAMError, ClassMaps, Sample


@dataclass(frozen=True)
class SeededImage:
    """An image and the localization maps of its classes, which fit it.

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
    pixels = torch.from_numpy(np.array(read_rgb(sample.image))).permute(2, 0, 1).contiguous()
    size = (pixels.shape[1], pixels.shape[2])
    if not sample.labels and sample.id not in seeds:
        return SeededImage(sample, pixels, ClassMaps((), size, torch.zeros(0, 0, 0), torch.zeros(0, *size)))
    maps = seeds.read(sample.id)
    if tuple(maps.high_res.shape) != (len(maps.classes), *size):
        raise AdvCAMError(
            f"the maps of {sample.id} are of {maps.high_res.shape[2]} x {maps.high_res.shape[1]} pixels and its image "
            f"{sample.image} of {size[1]} x {size[0]}; make the maps again from this image"
        )
    if not bool(maps.high_res.isfinite().all()):
        raise AdvCAMError(f"the maps of {sample.id} are not finite; make them anew")
    return SeededImage(sample, pixels, maps)


def read_all(
    seeds: MapReader, samples: Sequence[Sample], workers: int
) -> Iterator[tuple[Sample, SeededImage | AdvCAMError]]:
    """Read images and maps ahead, in threads; those that cannot be read come as their errors."""

    def read(sample: Sample) -> SeededImage | AdvCAMError:
        try:
            return read_seeded(seeds, sample)
        except AdvCAMError as error:
            return error

    yield from zip(samples, prefetched(read, samples, workers=workers), strict=True)


def make_scores(
    settings: PSASettings, seeds: MapReader, samples: Sequence[Sample], folder: Path, digest: str, device: torch.device
) -> list[tuple[str, str]]:
    """Make the label scores of a share of the images, those that are there left out.

    Args:
        settings: the powers and the CRF are read.
        seeds: maps by image id.
        samples: of the share.
        folder: of the scores.
        digest: of what they depend on; scores of another are made anew.
        device: of the CRFs.

    Returns:
        Id and reason of the images whose scores could not be made.
    """
    todo = [s for s in samples if settings.overwrite or png_settings(mask_path(folder, s.id)) != digest]
    failed = []
    for sample, read in read_all(seeds, todo, settings.workers):
        if isinstance(read, AdvCAMError):
            failed.append((sample.id, str(read)))
            continue
        low, high = psa_scores(read.maps, read.pixels.to(device), settings.alphas, settings.crf)
        write_scores(mask_path(folder, sample.id), torch.cat([low, high]), digest)
    return failed


def write_scores(path: Path, scores: Tensor, digest: str = "") -> None:
    """Write scores in [0, 1], ``(S, H, W)``, as a grey PNG of ``S · H`` rows, rounded to 8 bits."""
    rows = (scores * 255).round().to("cpu", torch.uint8).flatten(0, 1)
    write_png(path, Image.fromarray(rows.numpy()), digest)


def read_scores(path: Path, size: tuple[int, int]) -> Tensor:
    """Read what `write_scores` wrote.

    Args:
        path: the file.
        size: the image's height and width.

    Returns:
        ``(S, H, W)`` float32.

    Raises:
        AdvCAMError: the file is missing, damaged, or of an image of another size.
    """
    try:
        with Image.open(path) as image:
            rows = np.array(image)
    except FileNotFoundError as error:
        raise AdvCAMError(f"there are no label scores {path}: make them first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise AdvCAMError(f"cannot read the label scores {path}: damaged? remove it and make them again") from error
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.shape[1] != size[1] or rows.shape[0] % (2 * size[0]):
        raise AdvCAMError(f"the label scores {path} do not fit their image of {size[1]} x {size[0]}; remove the file")
    return torch.from_numpy(rows).float().div(255).reshape(-1, *size)


class AffinityItems:
    """Images and affinity labels by index: jittered, normalised, cut and mirrored together with their scores.

    Images are not rescaled. Outside of an image its input is zero, the mean colour, and no label is sure.

    Args:
        settings: the crop and the jitter are read.
        net: which the images are for.
        data: the images; their masks are not read.
        folder: of the scores.
    """

    def __init__(self, settings: PSASettings, net: AffinityNet, data: SegmentationData, folder: Path) -> None:
        self.samples, self.folder = data.samples, folder
        self.mean, self.std, self.stride = net.mean, net.std, net.stride
        brightness, contrast, saturation, hue = settings.jitter
        self.jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
        self.placed = v2.Compose([RandomCropOrPad(settings.crop), v2.RandomHorizontalFlip(0.5)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image ``(3, S, S)`` and its labels ``(S / stride, S / stride)`` uint8, with S the crop."""
        sample = self.samples[index]
        picture = read_rgb(sample.image)
        scores = read_scores(mask_path(self.folder, sample.id), (picture.height, picture.width))
        image = to_input(self.jitter(picture), self.mean, self.std)
        placed = self.placed(torch.cat([image, scores]))
        low, high = placed[3:].chunk(2)
        return placed[:3], affinity_labels(low, high, self.stride)
