"""A picture in; it at another scale, as 8-bit values, or normalised as a net takes it, out.

Nothing here needs torchvision, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: Of RGB values in 0..1, over ImageNet.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize_to(image: Image.Image, scale: float) -> Image.Image:
    """A picture scaled (bicubic), its sides rounded as IRN does: halves to the even number.

    Args:
        image: 8-bit, of ``W x H`` pixels.
        scale: above 0.

    Raises:
        AdvCAMError: nothing would be left of it.

    Example:
        >>> resize_to(Image.new("RGB", (333, 375)), 0.5).size
        (166, 188)
    """
    width, height = (int(side) for side in np.round(np.array(image.size) * scale))
    if min(width, height) < 1:
        raise AdvCAMError(f"an image of {image.size[0]}x{image.size[1]} pixels cannot be scaled by {scale:g}")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB picture as it is, ``(3, H, W)`` uint8.

    Example:
        >>> to_bytes(Image.new("RGB", (2, 1), "red")).tolist()
        [[[255, 255]], [[0, 0]], [[0, 0]]]
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised(pictures: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """8-bit pictures ``(..., 3, H, W)`` to what a net takes: ``(value / 255 - mean) / std``, float32.

    Args:
        pictures: uint8, on any device.
        mean, std: of each channel, or one for all.

    Example:
        >>> normalised(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3).flatten()
        tensor([2., 2., 2.])
    """
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=pictures.device)[:, None, None] for v in (mean, std))
    return (pictures.float() / 255 - shift) / scale
