"""A photograph and its label map in; what segmentation nets train on, both scaled, padded, cut and mirrored alike, out.

The values are deeplab-pytorch's: one of several scales (the image bilinear without smoothing, as OpenCV's; labels
nearest), sides rounded down; padding to the right and below, of the mean colour and of void; a random square; mirrored
half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from advcam_attr.data.masks import VOID
from advcam_attr.data.pictures import MEAN, STD
from advcam_attr.data.transforms import to_input
from advcam_attr.types import AdvCAMError

#: AdvCAM's scales for VOC (the authors' issue 9).
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


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
        scales: Sequence[float] = SCALES,
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
