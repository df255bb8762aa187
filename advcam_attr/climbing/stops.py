"""A step's state in; which rows have climbed far enough, out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.climbing.objective import TargetMinusOthers, target_logit, target_logits
from advcam_attr.climbing.state import ClimbState
from advcam_attr.types import AdvCAMError


def never(state: ClimbState) -> Tensor:
    """No row stops before its last step (the paper)."""
    return torch.zeros_like(state.target, dtype=torch.bool)


@dataclass(frozen=True)
class MarginGrowth:
    """A row stops when its margin over the strongest other classes has grown by a share of what it was.

    How far a fixed number of steps goes depends on the net, on the image and on the step. The margin
    ``y_c - mean of the k strongest others`` does not: doubling it means the same for every scale and offset of logits.
    A row also stops only where the target's own logit has risen in all views. Where the margin starts near zero or
    below, a tenth of ``y_c - mean of all`` takes its place.

    Attributes:
        growth: by what share of itself the margin grows.
        strongest: k.
    """

    growth: float = 0.5
    strongest: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.growth < float("inf"):
            raise AdvCAMError(f"stop: the growth of the margin must be above zero, got {self.growth}")

    def __call__(self, state: ClimbState) -> Tensor:
        start, now = (self._margin(logits, state) for logits in (state.start_logits, state.logits.detach()))
        lead = target_logit(state.start_logits, state.target) - state.start_logits.mean(2).sum(1)
        unit = torch.maximum(start, 0.1 * lead.abs())
        risen = target_logits(state.logits.detach(), state.target) > target_logits(state.start_logits, state.target)
        return (now >= start + self.growth * unit) & risen.all(1)

    def _margin(self, logits: Tensor, state: ClimbState) -> Tensor:
        return TargetMinusOthers("mean", strongest=self.strongest).of(logits, state.target)


STOPS = {"never": never, "margin": MarginGrowth()}
