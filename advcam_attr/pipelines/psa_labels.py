"""PSA's label scores and images in; files of the scores, and images with affinity labels to train on, out.

The scores of an image, of its labels by the low and by the high power, cost two CRFs; they are made once and kept as
one grey PNG, ``scores/<id>.png``, the maps below each other, in 8 bits where PSA keeps float32. A label is the
strongest of scores averaged over a cell, so the rounding matters only where two of these are within 1/255.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from advcam_attr.data.images import read_rgb
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.transforms import RandomCropOrPad, to_input
from advcam_attr.networks.affinitynet import AffinityNet
from advcam_attr.pipelines.masks import mask_path, write_png
from advcam_attr.pipelines.psa_settings import PSASettings
from advcam_attr.refine.psa import affinity_labels
from advcam_attr.types import AdvCAMError


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
