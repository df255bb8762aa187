"""Logits of one or several grids and a label map in; a loss out. A table of names."""

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
    """Label maps on another grid, each cell that of the pixel at its centre (PIL's nearest, as in deeplab-pytorch).

    Args:
        labels: ``(N, H, W)`` uint8.
        size: h and w.

    Returns:
        ``(N, h, w)`` int64.

    Example:
        >>> resized_labels(torch.arange(6, dtype=torch.uint8)[None, None], (1, 2))
        tensor([[[1, 4]]])
    """
    return F.interpolate(labels[:, None], list(size), mode="nearest-exact")[:, 0].long()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of ``-ln p(label)`` over the pixels of the batch that are not void; 0 where all are.

    Args:
        logits: ``(N, K, h, w)``.
        labels: ``(N, h, w)`` integers, in 0..K - 1 or 255.

    Example:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp_min(1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, least: float = 0.0) -> Tensor:
    """The mean of ``-ln p(label)`` over the foreground's pixels plus that over the background's, as in DSRG.

    Of each image on its own, then the mean over images. A part without pixels counts 0, void pixels are in neither.
    AdvCAM's authors call theirs "similar to DSRG" (their issue 9).

    Args:
        logits: ``(N, K, h, w)``.
        labels: ``(N, h, w)`` int64, in 0..K - 1 or 255.
        least: what probabilities are clamped to; about 1e-5 in DSRG. Below it there is no gradient: a pixel that is
            surely wrong stays so. The logarithm is computed of logits here, and needs no clamp.

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
    """A loss of several logits: the sum of the loss of each, with the labels on its grid (deeplab-pytorch's MSC).

    Example:
        >>> labels = torch.ones(1, 8, 8, dtype=torch.uint8)
        >>> summed_over_grids(cross_entropy)((torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)), labels)
        tensor(1.3863)
    """

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
