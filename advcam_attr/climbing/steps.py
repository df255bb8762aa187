"""Gradients in, steps out; stepped images in, valid images out. All are ``(R, V, C, H, W)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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
