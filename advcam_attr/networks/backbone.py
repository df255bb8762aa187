"""Backbone: the network that another one is built on, with its weights, output stride and normalization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from advcam_attr.types import AdvCAMError

#: How an output stride is lowered: strides are set to 1, and with ``dilation`` the convolutions behind them dilated.
StrideMode = Literal["removal", "dilation"]


@dataclass(frozen=True)
class Backbone:
    """A backbone by name, and how it is prepared.

    Attributes:
        name: ``timm/NAME``, ``torchvision/NAME``, or a name that the network on top defines.
        model_args: keyword arguments of the model as its weights need them, e.g. ``{"num_classes": 1001}``.
        checkpoint: weights of the backbone and of its own classifier; None takes the published pretrained ones.
        random_weights: leave the weights as initialized.
        stride: the output stride, at most the backbone's own. ``"auto"`` is the network's default (IRN's CAM net 16,
            DeepLab 8, ...), None the backbone's own.
        stride_mode: ``"removal"`` sets the last strides to 1 (IRN); ``"dilation"`` also dilates the convolutions behind
            them, as timm's ``output_stride`` does. ``"auto"`` is the network's default.
        train_from: the first module that is trained, e.g. ``"layer3"``; None is the network's default.
        mean, std: the normalization, by channel, for RGB in [0, 1]; None is the backbone's own.
    """

    name: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    stride: int | Literal["auto"] | None = "auto"
    stride_mode: StrideMode | Literal["auto"] = "auto"
    train_from: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.random_weights:
            raise AdvCAMError("a checkpoint and random weights exclude each other: give one of the two")
        if isinstance(self.stride, int) and self.stride < 1:
            raise AdvCAMError(f"the output stride must be positive, got {self.stride}; null keeps the backbone's own")
        if self.stride_mode not in ("auto", *get_args(StrideMode)):
            raise AdvCAMError(f"stride_mode is 'removal' or 'dilation', not {self.stride_mode!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, channels(name, getattr(self, name)))

    @classmethod
    def of(cls, value: Backbone | str, *, stride: int | None = 16, stride_mode: StrideMode = "removal") -> Backbone:
        """Return a backbone from its name or itself, with a network's defaults in place of ``"auto"``."""
        backbone = Backbone(value) if isinstance(value, str) else value
        return replace(
            backbone,
            stride=stride if backbone.stride == "auto" else backbone.stride,
            stride_mode=stride_mode if backbone.stride_mode == "auto" else backbone.stride_mode,
        )

    @property
    def max_stride(self) -> int | None:
        """The output stride that is not exceeded; None for the backbone's own."""
        return self.stride if isinstance(self.stride, int) else None

    @property
    def is_timm(self) -> bool:
        return self.name.startswith("timm/")

    def without_weights(self, mean: Sequence[float], std: Sequence[float]) -> Backbone:
        """Return the same without the source of its weights, and with the normalization that was found."""
        return replace(self, checkpoint=None, random_weights=False, mean=tuple(mean), std=tuple(std))

    def require_unused(self, network: str, *names: str) -> None:
        """Raise if one of these settings, which a network has no use for, is given."""
        for name in names:
            if getattr(self, name) not in (None, "auto"):
                raise AdvCAMError(f"{network} has no use for {name}={getattr(self, name)!r}; leave it out")


def channels(what: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return one number for each of three channels, or None."""
    if values is None:
        return None
    if len(values) not in (1, 3) or not all(math.isfinite(v) for v in values) or (what == "std" and min(values) <= 0):
        needed = "positive numbers" if what == "std" else "numbers"
        raise AdvCAMError(f"{what} takes one or three finite {needed}, got {' '.join(map(str, values))}")
    return tuple(float(v) for v in values) * (3 // len(values))
