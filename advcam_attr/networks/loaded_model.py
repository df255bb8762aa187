"""A classifier with its preprocessing and class names, and the request for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn


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
