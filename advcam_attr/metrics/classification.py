"""Average precision of multi-label classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the average precision of each class, ``(K,)`` float64, NaN for classes that no image shows.

    AP = Σ (recall_n - recall_{n-1}) · precision_n over the distinct scores from the highest on (scikit-learn's
    definition), without interpolation; images of equal score enter together, so their order does not matter.

    Args:
        scores: ``(N, K)``; only their order counts.
        labels: ``(N, K)``, 1 where the image shows the class, else 0.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise AdvCAMError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both be (N, K)")
    if bool(scores.isnan().any()):
        raise AdvCAMError("scores hold NaN; the classifier gives no order")
    if not len(scores):
        return torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    return torch.stack([_of_class(scores[:, k], labels[:, k]) for k in range(scores.shape[1])])


def _of_class(scores: Tensor, labels: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    scores, hits = scores[order], labels[order].double().cumsum(0)
    ends = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    hits = hits[ends]
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return (gained * hits / (ends + 1)).sum() / hits[-1]


class AveragePrecision:
    """Accumulate scores and labels of K classes into their average precision.

    Example:
        >>> metric = AveragePrecision(2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[1, 0], [0, 0]]))
        >>> metric.per_class(), metric.mean()
        (tensor([1., nan], dtype=torch.float64), 1.0)
    """

    def __init__(self, num_classes: int) -> None:
        self.scores = torch.zeros(0, num_classes)
        self.labels = torch.zeros(0, num_classes, dtype=torch.bool)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores and labels of images, ``(N, K)`` each."""
        if scores.shape != labels.shape or scores.shape[1:] != self.scores.shape[1:]:
            raise AdvCAMError(
                f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} are not (N, {self.scores.shape[1]})"
            )
        self.scores = torch.cat([self.scores, scores.detach().float().cpu()])
        self.labels = torch.cat([self.labels, labels.detach().cpu() > 0])

    def merge(self, other: AveragePrecision) -> None:
        self.update(other.scores, other.labels)

    def per_class(self) -> Tensor:
        """Return the average precision of each class, ``(K,)`` float64; NaN for classes that no image shows."""
        return average_precision(self.scores, self.labels)

    def mean(self) -> float:
        """Return the mean over the classes that some image shows (mAP); NaN where there is none."""
        return float(self.per_class().nanmean())
