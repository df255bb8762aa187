"""Counts of single images in; how far a pooled measure, or its difference between two methods, varies with images, out.

Images are drawn with replacement, their counts are pooled, and the measure is taken of the pool: a mean IoU is no mean
over images, so single images' values cannot be resampled instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: Pooled counts ``(S, ...)`` float64 of S draws, to a value of each, ``(S,)``.
Statistic = Callable[[Tensor], Tensor]

#: How many numbers the weights of one batch of draws may have: 32 MiB.
_BATCH = 1 << 22


class Interval(NamedTuple):
    """A value and its percentile interval."""

    value: float
    low: float
    high: float


def bootstrap(
    counts: Tensor, statistic: Statistic, *, samples: int = 2000, level: float = 0.9, seed: int = 0
) -> Interval:
    """The percentile bootstrap over images of a measure of pooled counts.

    Args:
        counts: ``(N, ...)`` integers, one row an image.
        statistic: the measure, e.g. `advcam_attr.metrics.segmentation.mean_iou` of counts ``(N, 4, K)``.
        samples: S, how many draws of N images.
        level: the share of draws within the interval; 0.9 is from the 5th to the 95th percentile.
        seed: of the draws; no global random state is used.

    Returns:
        The measure of all images, and its interval.

    Raises:
        AdvCAMError: there is no image, or ``samples`` or ``level`` make no sense.

    Example:
        >>> bootstrap(torch.tensor([[3], [3], [3]]), lambda pool: pool[:, 0])
        Interval(value=9.0, low=9.0, high=9.0)
    """
    _check(counts, samples, level)
    counts = counts.double()
    drawn = torch.cat([statistic(pool(counts, weights)) for weights in _draws(len(counts), samples, seed)])
    return _interval(float(statistic(_whole(counts))), drawn, level)


def paired_bootstrap(
    counts_a: Tensor,
    counts_b: Tensor,
    statistic: Statistic,
    *,
    samples: int = 2000,
    level: float = 0.9,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap over images of how much higher method a scores than method b.

    Both methods get the same draws, so what makes images hard for both cancels.

    Args:
        counts_a: ``(N, ...)`` integers, one row an image.
        counts_b: the same images in the same order.
        statistic: see `bootstrap`. With counts of all thresholds ``(N, T, 4, K)``, a statistic that takes the best over
            T includes the choice of the threshold in what varies.
        samples: see `bootstrap`.
        level: see `bootstrap`.
        seed: see `bootstrap`.

    Returns:
        The difference a − b over all images, and its interval.

    Raises:
        AdvCAMError: the methods have different numbers of images; else as `bootstrap`.

    Example:
        >>> a, b = torch.tensor([[3], [5]]), torch.tensor([[2], [4]])
        >>> difference, low, high = paired_bootstrap(a, b, lambda pool: pool[:, 0])
        >>> difference, low, high
        (2.0, 2.0, 2.0)
    """
    _check(counts_a, samples, level)
    if len(counts_a) != len(counts_b):
        raise AdvCAMError(f"methods to compare must have the same images, got {len(counts_a)} and {len(counts_b)}")
    counts_a, counts_b = counts_a.double(), counts_b.double()
    drawn = torch.cat(
        [
            statistic(pool(counts_a, weights)) - statistic(pool(counts_b, weights))
            for weights in _draws(len(counts_a), samples, seed)
        ]
    )
    return _interval(float(statistic(_whole(counts_a)) - statistic(_whole(counts_b))), drawn, level)


def pool(counts: Tensor, weights: Tensor) -> Tensor:
    """Sum images' counts ``(N, ...)`` as often as ``(S, N)`` weights say: ``(S, ...)`` float64, exact below 2⁵³."""
    flat = weights.double() @ counts.flatten(1).double().to(weights.device)
    return flat.reshape(len(weights), *counts.shape[1:])


def _draws(images: int, samples: int, seed: int) -> Iterator[Tensor]:
    """How often each image is drawn, ``(S, N)`` float64, a batch of draws at a time."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, samples, size := max(1, _BATCH // images)):
        drawn = torch.randint(images, (min(size, samples - first), images), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.float64)
        yield weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def _whole(counts: Tensor) -> Tensor:
    return counts.sum(0, keepdim=True, dtype=torch.float64)


def _interval(value: float, drawn: Tensor, level: float) -> Interval:
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.double().nanquantile(ends).tolist()
    return Interval(value, low, high)


def _check(counts: Tensor, samples: int, level: float) -> None:
    if not len(counts) or samples < 1 or not 0 < level < 1:
        raise AdvCAMError(
            "a bootstrap needs an image, a sample and a level between 0 and 1: "
            f"got {len(counts)} images, samples={samples}, level={level}"
        )
