"""Photographs in; the inputs of classifiers, for training and validation, out.

The values are those of IRN's and AdvCAM's classifier: the photograph's long side is drawn from 320..640 pixels
(bicubic), then it is normalised, mirrored half of the time, and cut or padded to 512 x 512 pixels. Padding comes after
normalisation, so that it is of the mean colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from advcam_attr.data.pictures import MEAN, STD, normalised, to_bytes
from advcam_attr.types import AdvCAMError


def classifier_train(
    crop: int = 512,
    long_side: tuple[int, int] = (320, 640),
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> v2.Compose:
    """The augmentation under which seed classifiers train: a picture in, ``(3, crop, crop)`` float32 out.

    Randomness comes from torch's generator, which data loaders seed anew in every worker.

    Args:
        crop: side of the square in pixels.
        long_side: least and greatest length of the picture's longer side, in pixels; each integer is as likely.
        mean: of each channel, which is subtracted.
        std: of each channel, which is divided by.

    Raises:
        AdvCAMError: lengths below 1, or the least above the greatest.

    Example:
        >>> classifier_train(crop=64)(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 64, 64])
    """
    return v2.Compose(
        [
            RandomLongSide(*long_side),
            v2.Lambda(partial(to_input, mean=mean, std=std)),
            v2.RandomHorizontalFlip(0.5),
            RandomCropOrPad(crop),
        ]
    )


def classifier_val(crop: int = 512, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """What seed classifiers are validated on: the picture's top left square, as it is; ``(3, crop, crop)`` float32.

    Example:
        >>> classifier_val(crop=64)(Image.new("RGB", (100, 40), "white"))[0, [39, 40], 0]
        tensor([2.2489, 0.0000])
    """
    return v2.Compose([v2.Lambda(partial(to_input, mean=mean, std=std)), TopLeftCropOrPad(crop)])


def to_input(image: Image.Image, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """A picture as a net takes it, ``(3, H, W)`` float32.

    Example:
        >>> to_input(Image.new("RGB", (4, 2), "white"), mean=(0.5,) * 3, std=(0.5,) * 3).shape
        torch.Size([3, 2, 4])
    """
    return normalised(to_bytes(image), mean, std)


class RandomLongSide(nn.Module):
    """Resize a picture so that its longer side is a random whole number of pixels (bicubic).

    Args:
        least: the shortest that it may become.
        greatest: the longest that it may become, which may be drawn too.
    """

    def __init__(self, least: int, greatest: int) -> None:
        super().__init__()
        if not 1 <= least <= greatest:
            raise AdvCAMError(f"the long side is drawn from {least} to {greatest}; the first must be the smaller")
        self.least, self.greatest = least, greatest

    def forward(self, image: Image.Image) -> Image.Image:
        """The picture, both sides at least 1 pixel."""
        side = int(torch.randint(self.least, self.greatest + 1, ()))
        width, height = (max(1, int(length)) for length in np.round(np.array(image.size) * (side / max(image.size))))
        return v2.functional.resize(image, [height, width], InterpolationMode.BICUBIC)


class TopLeftCropOrPad(nn.Module):
    """The top left square of an image, with zeros right and below where it is too small.

    Args:
        size: side of the square in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise AdvCAMError(f"the crop must be at least 1 pixel, got {size}")
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """``(..., H, W)`` to ``(..., size, size)``."""
        top, left = (self.begin(length) for length in image.shape[-2:])
        return _window(image, top, left, self.size)

    def begin(self, length: int) -> int:
        """Where the window begins along a side; below 0 where the image begins within it."""
        return 0


class RandomCropOrPad(TopLeftCropOrPad):
    """A random square of an image; along a side that is too short for it, the image at a random place within zeros.

    Args:
        size: side of the square in pixels.
    """

    def begin(self, length: int) -> int:
        """Any place in which the window and the image overlap as far as they can."""
        slack = length - self.size
        return int(torch.randint(min(slack, 0), max(slack, 0) + 1, ()))


def _window(image: Tensor, top: int, left: int, size: int) -> Tensor:
    """The square that begins at a pixel, which may lie outside; what lies outside is 0."""
    cropped = image[..., max(top, 0) : top + size, max(left, 0) : left + size]
    above, before = max(-top, 0), max(-left, 0)
    below, after = size - above - cropped.shape[-2], size - before - cropped.shape[-1]
    return F.pad(cropped, (before, after, above, below))
