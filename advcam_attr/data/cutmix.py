"""CutMix: paste patches of other images of the batch and mix the labels by area (Yun et al., ICCV 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class CutMix:
    """How batches are mixed, with λ ~ Beta(``beta``, ``beta``), the share of the image's own pixels."""

    beta: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta) and 0 <= self.probability <= 1):
            raise AdvCAMError(
                f"CutMix takes a positive beta and a probability in 0..1, got {self.beta} and {self.probability}"
            )


@dataclass(frozen=True)
class Cut:
    """A patch: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def share(self, height: int, width: int) -> float:
        """Return λ, the share of an image that the patch leaves uncovered."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / (height * width)


def draw_cut(cutmix: CutMix, height: int, width: int, rng: np.random.Generator) -> Cut | None:
    """Draw the patch of a batch, or None where the batch is not mixed.

    With λ ~ Beta(β, β), the patch has ``int(√(1 - λ) · side)`` pixels a side, is centred at a random pixel, and is
    clipped to the image.
    """
    if rng.random() >= cutmix.probability:
        return None
    ratio = math.sqrt(1 - rng.beta(cutmix.beta, cutmix.beta))
    y, x = (int(rng.integers(side)) for side in (height, width))
    half_y, half_x = (int(side * ratio) // 2 for side in (height, width))
    return Cut(max(y - half_y, 0), min(y + half_y, height), max(x - half_x, 0), min(x + half_x, width))


def mixed(images: Tensor, labels: Tensor, num_classes: int, cut: Cut, order: Tensor) -> tuple[Tensor, Tensor]:
    """Paste the patch of other images and mix the one-hot labels by area: ``(N, 3, H, W)``, targets ``(N, K)``.

    With these targets, cross-entropy is ``λ CE(y_a) + (1 - λ) CE(y_b)``. ``order`` holds the index of the image that
    each gets its patch from, ``(N,)``.
    """
    x = images.clone()
    rows, columns = slice(cut.top, cut.bottom), slice(cut.left, cut.right)
    x[:, :, rows, columns] = images[order][:, :, rows, columns]
    own = F.one_hot(labels, num_classes).float()
    share = cut.share(*images.shape[2:])
    return x, share * own + (1 - share) * own[order]


def mixed_batches(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, cutmix: CutMix | None, seeds: Iterable[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images ``(N, 3, H, W)`` and labels ``(N,)`` with targets ``(N, K)``, mixed by CutMix if given.

    Seeds are those of each batch's patch and order; ranks that share a batch share the first.
    """
    for (images, labels), (patch, order) in zip(batches, seeds, strict=False):
        height, width = images.shape[2:]
        cut = None if cutmix is None else draw_cut(cutmix, height, width, np.random.default_rng(patch))
        if cut is None:
            yield images, F.one_hot(labels, num_classes).float()
        else:
            places = torch.from_numpy(np.random.default_rng(order).permutation(len(images)))
            yield mixed(images, labels, num_classes, cut, places)
