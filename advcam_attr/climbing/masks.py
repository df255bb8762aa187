"""Maps in; where they may not change any more, out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class ThresholdMask:
    """Cells above a share of the row's current peak (Eq. 5).

    Attributes:
        threshold: τ, the share; strictly above counts.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise AdvCAMError(f"mask: the threshold must be in [0, 1), got {self.threshold}")

    def __call__(self, maps: Tensor) -> Tensor:
        peak = maps.amax((1, 2), keepdim=True)
        return (maps > self.threshold * peak) & (peak > 0)


@dataclass(frozen=True)
class NoMask:
    """No cell: only a saliency map's background, if one is given."""

    def __call__(self, maps: Tensor) -> Tensor:
        return torch.zeros_like(maps, dtype=torch.bool)


MASKS = {"threshold": ThresholdMask(), "none": NoMask()}
