"""Step rules, clamps and stops; all tensors are ``(R, V, C, H, W)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.climbing.objective import TargetMinusOthers, target_logit, target_logits
from advcam_attr.climbing.state import ClimbState
from advcam_attr.types import AdvCAMError

_SAMPLE = (1, 2, 3, 4)


class _Sized:
    size: float

    def __post_init__(self) -> None:
        if not 0 < self.size < float("inf"):
            raise AdvCAMError(f"{type(self).__name__}: size must be above zero, got {self.size}")


@dataclass(frozen=True)
class LinfStep(_Sized):
    """ξ · g / max|g|: the largest change of a sample is ξ, in units of the normalised image (the released code)."""

    size: float = 0.08

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient / (gradient.abs().amax(_SAMPLE, keepdim=True) + 1e-12)


@dataclass(frozen=True)
class RawStep(_Sized):
    """ξ · g, the plain gradient (Eqs. 3 and 6)."""

    size: float = 0.008

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient


@dataclass(frozen=True)
class ClippedStep(_Sized):
    """ξ · range · clip(g / (w · rms(g)), -1, 1): large gradients count alike, whatever the image's scale.

    One pixel with a huge gradient cannot hold the others back, as it does in `LinfStep`.

    Attributes:
        size: ξ, the largest change, as a share of the clean sample's range (0.04 is ten grey levels of 256).
        width: w, how many root mean squares of the gradient make a full step.
    """

    size: float = 0.04
    width: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width < float("inf"):
            raise AdvCAMError(f"ClippedStep: width must be above zero, got {self.width}")

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        scale = self.width * gradient.square().mean(_SAMPLE, keepdim=True).sqrt() + 1e-30
        reach = clean.amax(_SAMPLE, keepdim=True) - clean.amin(_SAMPLE, keepdim=True)
        return self.size * reach * (gradient / scale).clamp(-1, 1)


@dataclass(frozen=True)
class RMSStep(_Sized):
    """ξ · g / rms(g): the root mean square of a sample's change is ξ."""

    size: float = 0.01

    def __call__(self, gradient: Tensor, clean: Tensor) -> Tensor:
        return self.size * gradient / (gradient.square().mean(_SAMPLE, keepdim=True).sqrt() + 1e-12)


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
    """The range of the sample before the step (the released code)."""

    def __call__(self, stepped: Tensor, before: Tensor, clean: Tensor) -> Tensor:
        return stepped.clamp(before.amin(_SAMPLE, keepdim=True), before.amax(_SAMPLE, keepdim=True))


@dataclass(frozen=True)
class CleanRange:
    """The range of each channel of the sample's clean image."""

    def __call__(self, stepped: Tensor, before: Tensor, clean: Tensor) -> Tensor:
        return stepped.clamp(clean.amin((1, 3, 4), keepdim=True), clean.amax((1, 3, 4), keepdim=True))


STEP_RULES = {"linf": LinfStep(), "clipped": ClippedStep(), "raw": RawStep(), "rms": RMSStep(), "sign": SignStep()}
CLAMPS = {"none": NoClamp(), "current": CurrentRange(), "clean": CleanRange()}


@dataclass(frozen=True)
class MarginGrowth:
    """Stop a sample when its margin over the highest other classes has grown by a share of its first value.

    How far a fixed number of steps goes depends on the net, the image and the step. The margin ``y_c - mean of the
    top_k highest others`` does not: doubling it means the same for every scale and offset of logits. The target's own
    logit must have risen in all views, too. Where the margin starts near zero or below, a tenth of
    ``y_c - mean of all`` takes its place.
    """

    growth: float = 0.5
    top_k: int = 5

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
        return TargetMinusOthers("mean", top_k=self.top_k).of(logits, state.target)


@dataclass(frozen=True)
class MapDrift:
    """Stop a sample when the cosine similarity of its map to that of the clean image falls below a value.

    The same number of steps moves the map of an object that fills the image little, and that of an object of a few
    cells far: the map, not the score, says how far a climb has gone.
    """

    similarity: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.similarity < 1:
            raise AdvCAMError(f"stop: the similarity must be between 0 and 1, got {self.similarity}")

    def __call__(self, state: ClimbState) -> Tensor:
        start, now = state.start_maps.flatten(1), state.maps.detach().flatten(1)
        return (start * now).sum(1) < self.similarity * start.norm(dim=1) * now.norm(dim=1)


STOPS = {"none": None, "margin": MarginGrowth(), "drift": MapDrift()}
