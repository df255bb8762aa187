"""A classifier with its preprocessing and class names, and the request for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

#: How far, as a share of the image's side, a transform may depart from a resized crop in `seen_part`.
_AFFINE = 0.02


@dataclass(frozen=True)
class Preprocessing:
    """The model's preprocessing.

    Attributes:
        transform: an RGB image to a normalized tensor ``(3, H, W)``.
        mean, std: the normalization, by channel; None if it is unknown (a transform of the user's own).
        size: (H, W) of the tensor; None if it depends on the image.
    """

    transform: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: tuple[int, int] | None


def seen_part(
    transform: Callable[[Image.Image], Tensor], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Return the part of an image that a transform keeps: left, top, right and bottom in pixels.

    The transform is probed with two images, black and white, and one whose red and green grow from left to right and
    from top to bottom. A transform that does anything but crop, pad and resize gives None.

    Args:
        transform: an RGB image to a tensor ``(3, h, w)``, each channel a linear function of its own.
        size: height and width of the image.

    Example:
        >>> halves = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, :, :20].float()
        >>> [round(side) for side in seen_part(halves, (30, 40))]
        [0, 0, 20, 30]
    """
    height, width = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.round(255 * (np.arange(width) + 0.5) / width)
    ramp[..., 1] = np.round(255 * (np.arange(height) + 0.5) / height)[:, None]
    black, white = (transform(Image.new("RGB", (width, height), (v, v, v))).double() for v in (0, 255))
    probed = transform(Image.fromarray(ramp)).double()
    if probed.ndim != 3 or probed.shape != black.shape or len(probed) != 3 or probed.numel() == 0:
        return None
    gain = (white - black).amax((1, 2), keepdim=True)
    places = (probed - black) / gain.clamp_min(1e-12)
    across, down = _side(places[0]), _side(places[1].T)
    if across is None or down is None:
        return None
    return across[0] * width, down[0] * height, across[1] * width, down[1] * height


def _side(places: Tensor) -> tuple[float, float] | None:
    """Where the columns of ``(h, w)`` shares of a side begin and end, by a line through the middle of them."""
    width = places.shape[1]
    middle = slice(width // 4, width - width // 4) if width >= 8 else slice(None)
    x = torch.arange(width, dtype=places.dtype)[middle] + 0.5
    y = places[places.shape[0] // 2, middle]
    if len(x) == 1:
        return (0.0, 1.0)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    start = float(y.mean() - slope * x.mean())
    straight = float((slope * x + start - y).abs().max()) < _AFFINE
    return (start, start + slope * width) if straight and slope > 0 else None


@dataclass(frozen=True)
class LoadedModel:
    """A classifier, ready for use.

    Attributes:
        name: the specification it was loaded by.
        model: in eval mode, on the CPU, float32 (a factory's model stays where and as the factory made it).
        preprocessing: from the model's own data configuration.
        class_names: by index, or None if unknown.
        weights: their source: ``"pretrained"``, ``"random"``, ``"factory"`` or the checkpoint's path.
        fixed_size: whether the model is published for images of one size only.
        num_classes: K, or None if unknown.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    weights: str
    fixed_size: bool
    num_classes: int | None = None

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.preprocessing.transform(image)

    def display(self, x: Tensor) -> Tensor:
        """Return the images in [0, 1] that inputs ``(..., 3, H, W)`` show.

        The normalization is inverted; if it is unknown, each image is stretched from its minimum to its maximum.
        """
        if self.preprocessing.mean is None or self.preprocessing.std is None:
            low, high = x.amin((-3, -2, -1), keepdim=True), x.amax((-3, -2, -1), keepdim=True)
            return (x - low) / (high - low).clamp_min(1e-12)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        return (x * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class Request:
    """What is requested besides the model's name; None for the model's own."""

    args: Mapping[str, Any]
    pretrained: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    input_size: int | None

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        return (3, self.input_size, self.input_size) if self.input_size else None
