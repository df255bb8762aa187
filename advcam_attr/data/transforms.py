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
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from advcam_attr.data.images import MEAN, STD, normalised, to_bytes
from advcam_attr.types import VOID, AdvCAMError


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


#: AdvCAM's scales for VOC (the authors' issue 9).
SEGMENTATION_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class SegmentationTrain:
    """The augmentation under which segmentation nets train.

    Randomness comes from torch's generator, which data loaders seed anew for every item.

    Args:
        crop: side of the square in pixels; 321 for VOC, 481 for COCO. Where a scaled image is smaller, it is padded.
        scales: of which one is drawn.
        mean, std: of each channel; subtracted and divided by.

    Raises:
        AdvCAMError: a crop below 1, or scales that are none.

    Example:
        >>> image, labels = Image.new("RGB", (40, 30)), torch.ones(30, 40, dtype=torch.uint8)
        >>> x, y = SegmentationTrain(crop=64, scales=(1.0,))(image, labels)
        >>> x.shape, y.shape, int((y == 1).sum()), int((y == 255).sum()) == 64 * 64 - 30 * 40
        (torch.Size([3, 64, 64]), torch.Size([64, 64]), 1200, True)
    """

    def __init__(
        self,
        crop: int = 321,
        scales: Sequence[float] = SEGMENTATION_SCALES,
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
        """A picture and its labels ``(H, W)`` uint8 to ``(3, crop, crop)`` float32 and ``(crop, crop)`` uint8."""
        pixels, mask = self.joint(tv_tensors.Image(to_input(image, *self.normalisation)), tv_tensors.Mask(labels))
        return pixels.as_subclass(Tensor).contiguous(), mask.as_subclass(Tensor).contiguous()


class RandomScaleOf(nn.Module):
    """Resize an image (bilinear, not smoothed) and its labels (nearest) by one of several factors.

    Args:
        scales: the factors; sides are rounded down, to 1 pixel at least.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)

    def forward(self, image: Tensor, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """``(3, H, W)`` and ``(H, W)`` to the same at another size."""
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        size = [max(1, int(side * scale)) for side in image.shape[-2:]]
        return (
            v2.functional.resize(image, size, InterpolationMode.BILINEAR, antialias=False),
            v2.functional.resize(labels, size, InterpolationMode.NEAREST_EXACT),
        )


class PadRightAndBelow(nn.Module):
    """Pad an image with 0 and its labels with void, to the right and below, to a square's side at least.

    Args:
        size: the side, in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """``(3, H, W)`` and ``(H, W)`` to the same with sides of ``size`` or more."""
        height, width = image.shape[-2:]
        padding = [0, 0, max(0, self.size - width), max(0, self.size - height)]
        return v2.functional.pad(image, padding, fill=0), v2.functional.pad(labels, padding, fill=VOID)


class PairedAugmentation(nn.Module):
    """Resize to a random long side, mirror half of the time, and cut a random square: CCT's augmentation.

    The photograph is resized by PIL's bicubic filter, its labels by the nearest pixel. What a photograph is too small
    for is filled with the mean colour and with void; it then lies at a random place in the square.

    Departures from the released code: nearest pixels are those of the cells' centres (as PIL's), not of their corners,
    so that labels are not shifted by half a pixel; and filling comes on all sides, not right and below only. Effect:
    small.

    Args:
        crop: side of the square in pixels.
        long_side: least and greatest length of the longer side in pixels; each integer is as likely.
        mean, std: the normalisation.

    Raises:
        AdvCAMError: lengths below 1, or the least above the greatest.

    Example:
        >>> augment = PairedAugmentation(crop=64, long_side=(50, 80))
        >>> image, labels = augment(Image.new("RGB", (100, 80)), torch.zeros(80, 100, dtype=torch.uint8))
        >>> image.shape, labels.shape
        (torch.Size([3, 64, 64]), torch.Size([64, 64]))
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

    def forward(self, picture: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A picture of ``W x H`` pixels and labels ``(H, W)`` uint8 to ``(3, S, S)`` float32 and ``(S, S)`` uint8."""
        side = int(torch.randint(self.long_side[0], self.long_side[1] + 1, ()))
        scale = side / max(picture.size)
        size = [max(1, int(length * scale + 0.5)) for length in (picture.height, picture.width)]
        resized = v2.functional.resize(picture, size, InterpolationMode.BICUBIC)
        mask = v2.functional.resize(tv_tensors.Mask(labels[None]), size, InterpolationMode.NEAREST_EXACT)
        image, mask = self.placed(tv_tensors.Image(to_input(resized, self.mean, self.std)), mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)[0]
