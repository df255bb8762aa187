"""Pooled pixel counts of classes in; intersection over union, precision, recall, F1 and noise out.

All functions take ``(..., 4, K)`` counts, the `marginals` of confusion matrices, and work on any leading dimensions:
thresholds, images, bootstrap samples. Counts are pooled first and divided last, as PASCAL VOC does.

A class *occurs* when the truth or the prediction has a pixel of it. A class that does not occur has no measure (NaN)
and is left out of means. One that occurs on one side only has intersection, precision, recall and F1 of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: The rows of `marginals`.
HITS, TRUTH, PREDICTED, ON_BACKGROUND = range(4)


@dataclass(frozen=True)
class Scores:
    """Means over classes, as shares of 1; NaN where there is nothing to average.

    Attributes:
        mean_iou: mean intersection over union.
        precision: mean precision.
        recall: mean recall.
        f1_of_means: the harmonic mean of mean precision and mean recall, as in Table XI (VOC).
        mean_f1: the mean of the classes' F1, as in Table XIII (COCO).
        noise: the share of the pixels predicted as foreground that are truly background, as in Fig. 11b.
    """

    mean_iou: float
    precision: float
    recall: float
    f1_of_means: float
    mean_f1: float
    noise: float


def marginals(counts: Tensor) -> Tensor:
    """What all measures are read from.

    Args:
        counts: confusion matrices ``(..., K, K)``, rows for the truth, class 0 the background.

    Returns:
        ``(..., 4, K)`` for each class: pixels found (`HITS`), true pixels (`TRUTH`), predicted pixels (`PREDICTED`),
        and predicted pixels that are truly background (`ON_BACKGROUND`; 0 for the background itself).

    Example:
        >>> marginals(torch.tensor([[5, 2], [1, 3]])).tolist()
        [[5, 3], [7, 4], [6, 5], [0, 2]]
    """
    on_background = counts[..., 0, :].clone()
    on_background[..., 0] = 0
    return torch.stack(
        [counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2), on_background],
        dim=-2,
    )


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, ``(..., K)`` float64, from `marginals` ``(..., 4, K)``."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return hits / (truth + predicted - hits)


def precision(counts: Tensor) -> Tensor:
    """The share of each class's predicted pixels that are right, ``(..., K)`` float64."""
    return _share(counts, PREDICTED)


def recall(counts: Tensor) -> Tensor:
    """The share of each class's true pixels that are found, ``(..., K)`` float64."""
    return _share(counts, TRUTH)


def f1(counts: Tensor) -> Tensor:
    """The harmonic mean of each class's precision and recall, ``(..., K)`` float64."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return 2 * hits / (truth + predicted)


def mean_iou(counts: Tensor) -> Tensor:
    """The mean of `iou` over the classes that occur, ``(...)`` float64.

    Example:
        >>> mean_iou(marginals(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])))
        tensor(0.5000, dtype=torch.float64)
    """
    return iou(counts).nanmean(-1)


def mean_precision(counts: Tensor) -> Tensor:
    """The mean of `precision` over the classes that occur, ``(...)`` float64."""
    return precision(counts).nanmean(-1)


def mean_recall(counts: Tensor) -> Tensor:
    """The mean of `recall` over the classes that occur, ``(...)`` float64."""
    return recall(counts).nanmean(-1)


def mean_f1(counts: Tensor) -> Tensor:
    """The mean of the classes' F1, ``(...)`` float64: the F1 of the paper's Table XIII (COCO)."""
    return f1(counts).nanmean(-1)


def f1_of_means(counts: Tensor) -> Tensor:
    """The harmonic mean of mean precision and mean recall, ``(...)`` float64: the F1 of the paper's Table XI (VOC).

    Example:
        >>> counts = marginals(torch.tensor([[2, 2], [0, 4]]))
        >>> round(float(f1_of_means(counts)), 4), round(float(mean_f1(counts)), 4)
        (0.7895, 0.7333)
    """
    p, r = mean_precision(counts), mean_recall(counts)
    return torch.where(p + r == 0, 0.0, 2 * p * r / (p + r))


def noise(counts: Tensor) -> Tensor:
    """The share of each foreground class's predicted pixels that are truly background, ``(..., K)`` float64.

    NaN for the background, and for classes that are nowhere predicted.
    """
    shares = counts[..., ON_BACKGROUND, :].double() / counts[..., PREDICTED, :].double()
    shares[..., 0] = float("nan")
    return shares


def pooled_noise(counts: Tensor) -> Tensor:
    """The share of all pixels predicted as foreground that are truly background, ``(...)`` float64 (Fig. 11b)."""
    return _pooled_noise(counts[..., 1:])


def scores(counts: Tensor, classes: Sequence[int] | None = None) -> Scores:
    """All means of one cut.

    Args:
        counts: `marginals` ``(4, K)``.
        classes: the labels to average over, the background's 0 among them if it should count; all by default.

    Returns:
        The means; the noise is pooled over the foreground classes among ``classes``.

    Example:
        >>> scores(marginals(torch.tensor([[6, 2], [0, 4]])), classes=[1]).precision
        0.6666666666666666
    """
    labels = list(range(counts.shape[-1])) if classes is None else list(classes)
    chosen = counts[:, labels]
    foreground = counts[:, [label for label in labels if label != 0]]
    return Scores(
        mean_iou=float(mean_iou(chosen)),
        precision=float(mean_precision(chosen)),
        recall=float(mean_recall(chosen)),
        f1_of_means=float(f1_of_means(chosen)),
        mean_f1=float(mean_f1(chosen)),
        noise=float(_pooled_noise(foreground)),
    )


def _share(counts: Tensor, of: int) -> Tensor:
    counts = counts.double()
    occurs = counts[..., TRUTH, :] + counts[..., PREDICTED, :] > 0
    shares = counts[..., HITS, :] / counts[..., of, :].clamp(min=1)
    return torch.where(occurs, shares, float("nan"))


def _pooled_noise(foreground: Tensor) -> Tensor:
    totals = foreground.double().sum(-1)
    return totals[..., ON_BACKGROUND] / totals[..., PREDICTED]
