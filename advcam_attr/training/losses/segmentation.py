"""Losses of segmentation nets."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.training.losses.classification import Loss
from advcam_attr.types import VOID


def resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label maps by the pixel at each cell's centre (PIL's nearest, as in deeplab-pytorch).

    From ``(N, H, W)`` uint8 to ``(N, h, w)`` int64.
    """
    return F.interpolate(labels[:, None], list(size), mode="nearest-exact")[:, 0].long()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels that are not void; 0 if all are.

    Logits are ``(N, K, h, w)``, labels ``(N, h, w)`` integers in 0..K - 1 or 255.

    Example:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp_min(1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, least: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of the foreground's pixels plus that of the background's, as in DSRG.

    Each mean is over one image (0 without pixels), and the sum is averaged over images. Void pixels are ignored.
    AdvCAM's authors call theirs "similar to DSRG" (their issue 9). Shapes are those of `cross_entropy`. ``least`` is a
    lower limit of probabilities, about 1e-5 in DSRG, below which there is no gradient.

    Example:
        >>> balanced_cross_entropy(torch.zeros(1, 2, 1, 4), torch.tensor([[[1, 0, 0, 255]]]))
        tensor(1.3863)
    """
    known = labels != VOID
    target = labels.masked_fill(~known, 0)
    losses = -logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    if least > 0:
        losses = losses.clamp_max(-math.log(least))

    def mean(part: Tensor) -> Tensor:
        return torch.where(part, losses, 0).sum((1, 2)) / part.sum((1, 2)).clamp_min(1)

    return (mean(known & (target > 0)) + mean(known & (target == 0))).mean()


def summed_over_grids(loss: Loss) -> Loss:
    """Return the sum of a loss over several logits, with the labels resized to each grid (deeplab-pytorch's MSC)."""

    def total(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        losses = [loss(logits, resized_labels(labels, logits.shape[2:])) for logits in outputs]
        return torch.stack(losses).sum()

    return total


#: Losses of segmentation nets: logits ``(N, K, h, w)`` and labels ``(N, h, w)``, 255 for void, to a scalar.
SEGMENTATION_LOSSES: dict[str, Loss] = {
    "balanced": balanced_cross_entropy,
    "balanced_clamped": functools.partial(balanced_cross_entropy, least=1e-5),
    "cross_entropy": cross_entropy,
}
