"""A sample in; its picture at several scales, as the nets of segmentation see it, out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advcam_attr.data.images import read_rgb
from advcam_attr.types import AdvCAMError


def scaled_pictures(path: Path, scales: Sequence[float], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """An image file at several scales, resized as an 8-bit picture by PIL's bicubic filter (the released code).

    Args:
        path: the file.
        scales: factors; both sides are multiplied and rounded.
        size: height and width that the picture should have.

    Returns:
        One a scale, ``(3, H s, W s)``, uint8: 8 bits travel to the accelerator, where `normalized_pictures` goes on.

    Raises:
        AdvCAMError: the file cannot be read, or is of another size.
    """
    picture = read_rgb(path)
    if (picture.height, picture.width) != tuple(size):
        raise AdvCAMError(
            f"{path} is {picture.height} x {picture.width}, and was {size[0]} x {size[1]} when the run began: remove "
            "sizes.json from the run folder if the images have changed"
        )
    return tuple(_bytes(_resized(picture, scale)) for scale in scales)


def normalized_pictures(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit pictures ``(N, 3, H, W)`` to what the net takes: ``(value / 255 - mean) / std``, float32.

    Example:
        >>> normalized_pictures(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3).flatten()
        tensor([2., 2., 2.])
    """
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=pictures.device)[:, None, None] for v in (mean, std))
    return (pictures.float() / 255 - shift) / scale


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture if (width, height) == picture.size else picture.resize((width, height), Image.Resampling.BICUBIC)


def _bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
