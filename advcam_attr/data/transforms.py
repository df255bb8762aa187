"""Image transforms of every training and evaluation, on PIL images and label maps.

Random numbers come from torch's generator, which data loaders seed in every worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from advcam_attr.data.images import MEAN, STD, normalised, to_bytes
from advcam_attr.types import VOID, AdvCAMError


def to_input(image: Image.Image, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Convert an RGB image to a normalised network input ``(3, H, W)`` float32."""
    return normalised(to_bytes(image), mean, std)


def classifier_train(
    crop: int = 512,
    long_side: tuple[int, int] = (320, 640),
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> v2.Compose:
    """Return the training augmentation of seed classifiers, from an RGB image to ``(3, crop, crop)`` float32.

    As in IRN's and AdvCAM's code: random long side (bicubic), normalisation, horizontal flip, random crop. Padding
    follows the normalisation, so it has the mean colour. ``long_side`` holds the shortest and the longest length of the
    longer side in pixels; every integer is equally likely.
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
    """Return the validation transform of seed classifiers: the top left ``crop`` x ``crop`` pixels, not resized."""
    return v2.Compose([v2.Lambda(partial(to_input, mean=mean, std=std)), TopLeftCropOrPad(crop)])


def wsol_train(
    resize: int = 256, crop: int = 224, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """Return the training augmentation for localization: resize to a square, random crop, horizontal flip.

    Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020): images become squares
    (bilinear) whatever their aspect ratio. Sides are in pixels.
    """
    if not 1 <= crop <= resize:
        raise AdvCAMError(f"a crop of {crop} pixels does not fit into a square of {resize}")
    return v2.Compose(
        [
            v2.Resize((resize, resize)),
            v2.RandomCrop(crop),
            v2.RandomHorizontalFlip(0.5),
            v2.Lambda(partial(to_input, mean=mean, std=std)),
        ]
    )


def wsol_eval(size: int = 224, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Return the evaluation transform for localization: the whole image resized to a square (bilinear), no crop."""
    return v2.Compose([v2.Resize((size, size)), v2.Lambda(partial(to_input, mean=mean, std=std))])


class RandomLongSide(nn.Module):
    """Resize an image so that its longer side has a random integer length between two bounds (bicubic)."""

    def __init__(self, least: int, greatest: int) -> None:
        super().__init__()
        if not 1 <= least <= greatest:
            raise AdvCAMError(f"long_side is {least}, {greatest}; both must be positive, the smaller one first")
        self.least, self.greatest = least, greatest

    def forward(self, image: Image.Image) -> Image.Image:
        side = int(torch.randint(self.least, self.greatest + 1, ()))
        width, height = (max(1, int(length)) for length in np.round(np.array(image.size) * (side / max(image.size))))
        return v2.functional.resize(image, [height, width], InterpolationMode.BICUBIC)


class TopLeftCropOrPad(nn.Module):
    """Crop the top left square of ``size`` pixels a side; pad with zeros to the right and below."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise AdvCAMError(f"the crop must be at least 1 pixel, got {size}")
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        top, left = (self.offset(length) for length in image.shape[-2:])
        window = image[..., max(top, 0) : top + self.size, max(left, 0) : left + self.size]
        above, before = max(-top, 0), max(-left, 0)
        below, after = self.size - above - window.shape[-2], self.size - before - window.shape[-1]
        return F.pad(window, (before, after, above, below))

    def offset(self, length: int) -> int:
        """Return where the crop begins along a side; a negative number pads before the image."""
        return 0


class RandomCropOrPad(TopLeftCropOrPad):
    """Crop a random square; an image that is too short along a side lies at a random place within zeros."""

    def offset(self, length: int) -> int:
        """Draw where the crop begins, with the largest possible overlap of crop and image."""
        slack = length - self.size
        return int(torch.randint(min(slack, 0), max(slack, 0) + 1, ()))


class SegmentationTrain:
    """Training augmentation of segmentation networks: random scale (one of ``scales``), random crop, horizontal flip.

    The crop's side is 321 pixels for VOC, 481 for COCO; smaller images are padded.
    """

    def __init__(
        self,
        crop: int,
        scales: Sequence[float],
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        if crop < 1 or not scales or not min(scales) > 0:
            raise AdvCAMError(f"segmentation: the crop must be at least 1 and scales above 0, got {crop}, {scales}")
        self.normalisation = tuple(mean), tuple(std)
        self.joint = v2.Compose(
            [
                RandomScaleOf(scales),
                PadRightAndBelow(crop),
                v2.RandomCrop(crop),
                v2.RandomHorizontalFlip(0.5),
            ]
        )

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment an RGB image and its label map ``(H, W)`` uint8 to ``(3, crop, crop)`` and ``(crop, crop)``."""
        pixels, mask = self.joint(tv_tensors.Image(to_input(image, *self.normalisation)), tv_tensors.Mask(labels))
        return pixels.as_subclass(Tensor).contiguous(), mask.as_subclass(Tensor).contiguous()


class RandomScaleOf(nn.Module):
    """Resize an image (bilinear, not antialiased) and its label map (nearest) by one of several factors.

    Sides are rounded down, to at least 1 pixel.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)

    def forward(self, image: Tensor, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        size = [max(1, int(side * scale)) for side in image.shape[-2:]]
        return (
            v2.functional.resize(image, size, InterpolationMode.BILINEAR, antialias=False),
            v2.functional.resize(labels, size, InterpolationMode.NEAREST_EXACT),
        )


class PadRightAndBelow(nn.Module):
    """Pad an image with 0 and its label map with void, to the right and below, to at least ``size`` pixels a side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        padding = [0, 0, max(0, self.size - width), max(0, self.size - height)]
        return v2.functional.pad(image, padding, fill=0), v2.functional.pad(labels, padding, fill=VOID)


class PairedAugmentation(nn.Module):
    """CCT's augmentation: random long side, horizontal flip and random crop of an image and its label map.

    The image is resized by PIL's bicubic filter, the labels by the nearest pixel. Images smaller than the crop lie at a
    random place in it; the rest has the mean colour and void labels.

    Differences from the released code, both small in effect: nearest pixels are those of the cells' centres (as in
    PIL), not of their corners, so labels are not shifted by half a pixel; padding is on all sides, not only to the
    right and below. Arguments are those of `classifier_train`.
    """

    def __init__(
        self, crop: int, long_side: tuple[int, int], mean: Sequence[float] = MEAN, std: Sequence[float] = STD
    ) -> None:
        super().__init__()
        least, greatest = long_side
        if not 1 <= least <= greatest or crop < 1:
            raise AdvCAMError(f"a crop of {crop} and a long side from {least} to {greatest}: the first must be smaller")
        self.long_side, self.mean, self.std = (least, greatest), mean, std
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: VOID}
        self.placed = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomCrop(crop, pad_if_needed=True, fill=fill)])

    def forward(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment an RGB image and its label map ``(H, W)`` uint8 to ``(3, S, S)`` float32 and ``(S, S)`` uint8."""
        side = int(torch.randint(self.long_side[0], self.long_side[1] + 1, ()))
        scale = side / max(image.size)
        size = [max(1, int(length * scale + 0.5)) for length in (image.height, image.width)]
        resized = v2.functional.resize(image, size, InterpolationMode.BICUBIC)
        mask = v2.functional.resize(tv_tensors.Mask(labels[None]), size, InterpolationMode.NEAREST_EXACT)
        x, mask = self.placed(tv_tensors.Image(to_input(resized, self.mean, self.std)), mask)
        return x.as_subclass(Tensor), mask.as_subclass(Tensor)[0]
