"""Regularizers, subtracted from the objective, and the masks of activated cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advcam_attr.climbing.state import ClimbState
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class RestrictHighAttributions:
    """Keep activated cells at their first value: λ ‖M ⊙ |CAM(x) − CAM(x⁰)|‖₁ (Eq. 7).

    At the clean image the term and its gradient are zero.

    Attributes:
        weight: λ. The paper's 7 is in the released code's units: class maps divided by the number of positive class
            weights, summed over the cells.
        reduce: over the cells: ``"sum"`` as in the paper (λ depends on the grid), or ``"mean"`` (it does not, and a
            CAM's change is in units of the logit).
    """

    weight: float = 7.0
    reduce: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise AdvCAMError(f"regularizer: the weight must not be negative, got {self.weight}")
        if self.reduce not in ("sum", "mean"):
            raise ValueError(f'reduce must be "sum" or "mean", got {self.reduce!r}')

    def __call__(self, state: ClimbState) -> Tensor:
        change = (state.maps - state.start_maps).abs() * state.mask
        return self.weight * (change.sum((1, 2)) if self.reduce == "sum" else change.mean((1, 2)))


REGULARIZERS = {"restrict": RestrictHighAttributions()}


@dataclass(frozen=True)
class ThresholdMask:
    """Cells above τ (``threshold``, exclusive) times the sample's current peak (Eq. 5)."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise AdvCAMError(f"mask: the threshold must be in [0, 1), got {self.threshold}")

    def __call__(self, maps: Tensor) -> Tensor:
        peak = maps.amax((1, 2), keepdim=True)
        return (maps > self.threshold * peak) & (peak > 0)


@dataclass(frozen=True)
class NoMask:
    """No cells but a saliency map's background, if one is given."""

    def __call__(self, maps: Tensor) -> Tensor:
        return torch.zeros_like(maps, dtype=torch.bool)


MASKS = {"threshold": ThresholdMask(), "none": NoMask()}
