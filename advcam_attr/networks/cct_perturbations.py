"""The seven feature perturbations of cross-consistency training.

Ouali, Hudelot and Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
section 3.3. Random numbers come from torch's generators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from advcam_attr.types import AdvCAMError

#: Left, top, right and bottom of a contour's points, all within it.
Box = tuple[int, int, int, int]

#: Contours of at most so many points are ignored (the released code).
LEAST_POINTS = 50


@dataclass(frozen=True)
class Guide:
    """The main decoder's prediction, which guides perturbations; ``foreground`` is ``(N, H, W)`` bool, detached."""

    foreground: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Guide:
        return cls(scores.detach().argmax(1) > 0)

    def resized(self, x: Tensor) -> Tensor:
        """Return the foreground on the grid of features ``(N, C, h, w)``, by the nearest pixel: ``(N, 1, h, w)``."""
        return F.interpolate(self.foreground[:, None].to(x.dtype), x.shape[2:], mode="nearest")

    @cached_property
    def boxes(self) -> list[list[Box]]:
        return [contour_boxes(mask) for mask in self.foreground.cpu().numpy()]


def contour_boxes(mask: np.ndarray, least_points: int = LEAST_POINTS) -> list[Box]:
    """Return the boxes around the outer contours of a mask ``(H, W)`` that have more than some number of points.

    Points are corners: a rectangle has four, however large it is, and a ragged outline of the same size has many.
    """
    cv2 = require_opencv()
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    points = [contour.reshape(-1, 2) for contour in contours if len(contour) > least_points]
    return [(*(int(v) for v in p.min(0)), *(int(v) for v in p.max(0))) for p in points]  # type: ignore[misc]


def require_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise AdvCAMError(
            "guided cut-out needs OpenCV: pip install 'advcam_attr[semi]' (opencv-python-headless), or train without "
            "cut-out decoders"
        ) from error
    return cv2


Perturbation = Callable[[Tensor, Guide, nn.Module], Tensor]


@dataclass(frozen=True)
class VirtualAdversarial:
    """I-VAT: move each image's features by ε along the direction in which its decoder's prediction changes most.

    The direction is that of Miyato et al. (2018): the gradient of KL(p(x) || p(x + ξ d)) by d, where d is drawn in ±1/2
    and normalized.

    Departure from the released code: the direction is computed in float64, and normalized whatever its gradient's
    length. In float32, ξ = 1e-6 spread over all features is lost in rounding, so that the gradient is noise; and its
    length is below the 1e-8 that the released code adds before dividing by it, so that the features hardly move.

    Attributes:
        xi: ξ, the length of the trial step.
        epsilon: ε, the length of the perturbation.
        iterations: of power iteration.
    """

    xi: float = 1e-6
    epsilon: float = 2.0
    iterations: int = 1

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        return x + self.epsilon * self.direction(x.detach(), decoder).to(x.dtype)

    def direction(self, x: Tensor, decoder: nn.Module) -> Tensor:
        """Return the unit vector of each image, ``(N, C, h, w)`` float64; the decoder's weights get no gradient."""
        start, weights = x.double(), {name: p.detach().double() for name, p in decoder.named_parameters()}
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            clean = functional_call(decoder, weights, (start,)).softmax(1)
            d = _unit(torch.rand(x.shape, dtype=x.dtype, device=x.device).double() - 0.5)
            for _ in range(self.iterations):
                d.requires_grad_(True)
                moved = functional_call(decoder, weights, (start + self.xi * d,)).log_softmax(1)
                distance = F.kl_div(moved, clean, reduction="sum")
                d = _unit(torch.autograd.grad(distance, d)[0])
        return d


def _unit(d: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True)
    return d / torch.where(length > 0, length, 1)


@dataclass(frozen=True)
class SpatialDropout:
    """DropOut: zero whole channels of an image with probability p, and divide the others by 1 - p."""

    p: float = 0.5

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        return F.dropout2d(x, self.p)


@dataclass(frozen=True)
class GuidedCutout:
    """G-CutOut: zero a random window, ``erase`` times as wide and high, within the box of every predicted object."""

    erase: float = 0.4

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        masks = torch.ones(guide.foreground.shape)
        for mask, boxes in zip(masks, guide.boxes, strict=True):
            for left, top, right, bottom in boxes:
                x0, x1 = self._window(left, right)
                y0, y1 = self._window(top, bottom)
                mask[y0:y1, x0:x1] = 0
        return x * F.interpolate(masks[:, None], x.shape[2:], mode="nearest").to(x)

    def _window(self, first: int, last: int) -> tuple[int, int]:
        length = last - first
        begin = first + int(torch.randint(int(length * (1 - self.erase)) + 1, ()))
        return begin, begin + int(length * self.erase)


@dataclass(frozen=True)
class ContextMask:
    """Con-Msk: zero the predicted background."""

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        return x * guide.resized(x)


@dataclass(frozen=True)
class ObjectMask:
    """Obj-Msk: zero the predicted foreground."""

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        return x * (1 - guide.resized(x))


@dataclass(frozen=True)
class FeatureDrop:
    """F-Drop: zero the most active locations, those whose mean over channels is at least γ times the image's highest.

    γ is drawn once for the batch. 0.7 is the paper's lower end; one version of the released code has 0.6.

    Attributes:
        low, high: the range of γ.
    """

    low: float = 0.7
    high: float = 0.9

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        activity = x.mean(1, keepdim=True)
        gamma = self.low + float(torch.rand(())) * (self.high - self.low)
        return x * (activity < gamma * activity.amax((2, 3), keepdim=True))


@dataclass(frozen=True)
class FeatureNoise:
    """F-Noise: x + x · n, with n uniform in ± ``bound``, of an image's shape, shared by the batch."""

    bound: float = 0.3

    def __call__(self, x: Tensor, guide: Guide, decoder: nn.Module) -> Tensor:
        noise = (2 * torch.rand(x.shape[1:], dtype=x.dtype, device=x.device) - 1) * self.bound
        return x * noise + x


#: The perturbations by name, with the released code's numbers.
PERTURBATIONS: dict[str, Perturbation] = {
    "vat": VirtualAdversarial(),
    "dropout": SpatialDropout(),
    "cutout": GuidedCutout(),
    "context_mask": ContextMask(),
    "object_mask": ObjectMask(),
    "feature_drop": FeatureDrop(),
    "feature_noise": FeatureNoise(),
}
