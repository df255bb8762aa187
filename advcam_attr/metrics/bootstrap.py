"""Bootstrap intervals over images for measures of pooled counts.

Images are drawn with replacement, their counts are pooled, and the measure is taken of the pool: a mean IoU is no mean
over images, so single images' values cannot be resampled instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: From pooled counts ``(S, ...)`` float64 of S draws to the value of each, ``(S,)``.
Statistic = Callable[[Tensor], Tensor]

#: The size of the weights of one batch of draws: 32 MiB of float64.
_BATCH = 1 << 22


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def bootstrap(
    counts: Tensor, statistic: Statistic, *, samples: int = 2000, level: float = 0.9, seed: int = 0
) -> Interval:
    """Return a measure of pooled counts with its percentile bootstrap interval over images.

    Args:
        counts: ``(N, ...)`` integers, one entry an image.
        statistic: the measure, e.g. `advcam_attr.metrics.segmentation.mean_iou` of counts ``(N, 4, K)``.
        samples: S, the number of draws of N images.
        level: the share of draws within the interval; 0.9 is from the 5th to the 95th percentile.
        seed: of the draws; the global random state is not used.
    """
    return _interval((counts,), lambda pools: statistic(pools[0]), samples, level, seed)


def paired_bootstrap(
    counts_a: Tensor,
    counts_b: Tensor,
    statistic: Statistic,
    *,
    samples: int = 2000,
    level: float = 0.9,
    seed: int = 0,
) -> Interval:
    """Return how much higher method a scores than method b, with its percentile bootstrap interval over images.

    Both methods get the same draws, so what makes images hard for both cancels. Counts are of the same images in the
    same order; options are those of `bootstrap`. With counts of all thresholds ``(N, T, 4, K)``, a statistic that takes
    the best over T includes the choice of the threshold in what varies.
    """
    if len(counts_a) != len(counts_b):
        raise AdvCAMError(f"methods to compare must have the same images, got {len(counts_a)} and {len(counts_b)}")
    return _interval(
        (counts_a, counts_b), lambda pools: statistic(pools[0]) - statistic(pools[1]), samples, level, seed
    )


def paired_order(ids_a: Sequence[str], ids_b: Sequence[str]) -> list[int]:
    """Return the places of the images of a in b, which must be the same images in any order."""
    if differing := set(ids_a) ^ set(ids_b):
        raise AdvCAMError(
            f"only results on the same images can be compared: {len(differing)} are in one alone, e.g. {min(differing)}"
        )
    places = {id: place for place, id in enumerate(ids_b)}
    return [places[id] for id in ids_a]


def pool(counts: Tensor, weights: Tensor) -> Tensor:
    """Sum images' counts ``(N, ...)`` with weights ``(S, N)``: ``(S, ...)`` float64, exact below 2⁵³."""
    flat = weights.double() @ counts.flatten(1).double().to(weights.device)
    return flat.reshape(len(weights), *counts.shape[1:])


def _interval(
    methods: Sequence[Tensor],
    difference: Callable[[list[Tensor]], Tensor],
    samples: int,
    level: float,
    seed: int,
) -> Interval:
    images = len(methods[0])
    if not images or samples < 1 or not 0 < level < 1:
        raise AdvCAMError(
            "a bootstrap needs an image, a sample and a level between 0 and 1: "
            f"got {images} images, samples={samples}, level={level}"
        )
    counts = [one.double() for one in methods]
    drawn = torch.cat([difference([pool(one, weights) for one in counts]) for weights in _draws(images, samples, seed)])
    value = float(difference([one.sum(0, keepdim=True, dtype=torch.float64) for one in counts]))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.double().nanquantile(ends).tolist()
    return Interval(value, low, high)


def _draws(images: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, samples, size := max(1, _BATCH // images)):
        drawn = torch.randint(images, (min(size, samples - first), images), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.float64)
        yield weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
