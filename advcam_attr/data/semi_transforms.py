"""A photograph and its label map in; both resized, mirrored and cut alike for semi-supervised training, out."""

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
