"""Gradients in, steps out; stepped images in, valid images out. All are ``(R, V, C, H, W)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.climbing.objective import TargetMinusOthers, target_logit, target_logits
from advcam_attr.climbing.state import ClimbState
from advcam_attr.types import AdvCAMError

_ROW = (1, 2, 3, 4)


class _Sized:
    """A step rule whose size must be above zero."""

    size: float

    def __post_init__(self) -> None:
        if not 0 < self.size < float("inf"):
            raise AdvCAMError(f"{type(self).__name__}: size must be above zero, got {self.size}")


@dataclass(frozen=True)
class MaxNormStep(_Sized):
    """ξ · g / max|g|, the largest change of a row's pixels being ξ (the released code).

    Attributes:
        size: ξ, in units of the normalised image.
    """

    size: float = 0.08

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient / (gradient.abs().amax(_ROW, keepdim=True) + 1e-12)


@dataclass(frozen=True)
class RawStep(_Sized):
    """ξ · g, the gradient as it is (Eqs. 3 and 6)."""

    size: float = 0.008

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient


@dataclass(frozen=True)
class ClippedStep(_Sized):
    """ξ · range · clip(g / (w · rms(g)), -1, 1): large gradients count alike, and the image's scale does not matter.

    One pixel with a huge gradient cannot make the rest stand still, as it does where the maximum sets the step.

    Attributes:
        size: ξ, the largest change, as a share of the clean row's range (0.04 is ten grey levels of a full picture).
        width: w, how many root mean squares of the gradient make a full step.
    """

    size: float = 0.04
    width: float = 10.0

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        scale = self.width * gradient.square().mean(_ROW, keepdim=True).sqrt() + 1e-30
        reach = clean.amax(_ROW, keepdim=True) - clean.amin(_ROW, keepdim=True)
        return self.size * reach * (gradient / scale).clamp(-1, 1)


@dataclass(frozen=True)
class L2Step(_Sized):
    """ξ · g / rms(g): the root mean square of a row's change is ξ."""

    size: float = 0.01

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient / (gradient.square().mean(_ROW, keepdim=True).sqrt() + 1e-12)


@dataclass(frozen=True)
class SignStep(_Sized):
    """ξ · sign(g): every pixel moves by ξ."""

    size: float = 0.008

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient.sign()


@dataclass(frozen=True)
class NoClamp:
    """Images may take any value (the paper)."""

    def __call__(self, stepped: Tensor, before: Tensor, clean: Tensor) -> Tensor:
        return stepped


@dataclass(frozen=True)
class CurrentRange:
    """Between the smallest and the largest value of the row before the step (the released code)."""

    def __call__(self, stepped: Tensor, before: Tensor, clean: Tensor) -> Tensor:
        return stepped.clamp(before.amin(_ROW, keepdim=True), before.amax(_ROW, keepdim=True))


@dataclass(frozen=True)
class CleanRange:
    """Between the smallest and the largest value of each channel of the row's clean image."""

    def __call__(self, stepped: Tensor, before: Tensor, clean: Tensor) -> Tensor:
        return stepped.clamp(clean.amin((1, 3, 4), keepdim=True), clean.amax((1, 3, 4), keepdim=True))


STEP_RULES = {"max": MaxNormStep(), "clipped": ClippedStep(), "raw": RawStep(), "l2": L2Step(), "sign": SignStep()}
CLAMPS = {"none": NoClamp(), "current": CurrentRange(), "clean": CleanRange()}


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
