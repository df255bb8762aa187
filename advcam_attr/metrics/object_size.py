"""True pixel counts of images in; the size of each class's objects, and the smallest and largest classes, out."""

from __future__ import annotations

import torch
from torch import Tensor


def object_sizes(truth: Tensor) -> Tensor:
    """The mean number of pixels that a class has in the images in which it occurs.

    The paper orders COCO's classes by the mean size of their true objects (Fig. 14, Table XIII); how it is measured is
    not known. Label maps do not tell objects of one class apart, so here it is the class's pixels per image, which can
    be had from any label map. Void pixels count for nothing. Whole pixels are counted (not shares of the image), so
    images should be of about one size, as those of VOC and COCO are.

    Args:
        truth: ``(N, K)`` pixels of each class in each image.

    Returns:
        ``(K,)`` float64; NaN for a class that occurs in no image.

    Example:
        >>> object_sizes(torch.tensor([[90, 10, 0], [60, 40, 0], [100, 0, 0]]))
        tensor([83.3333, 25.0000,     nan], dtype=torch.float64)
    """
    return truth.sum(0, dtype=torch.float64) / (truth > 0).sum(0)


def smallest_and_largest(sizes: Tensor, count: int = 10) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The foreground labels of the smallest and of the largest objects (Table XIII: ten of each).

    Args:
        sizes: `object_sizes` ``(K,)``, the background's first.
        count: how many of each; half of the classes that occur where those are fewer than twice as many.

    Returns:
        The labels of the smallest, the smallest first, and of the largest, the largest first; of equals, the lower
        label counts as the smaller. No label is in both.

    Example:
        >>> smallest_and_largest(torch.tensor([1000.0, 50, 20, 70, float("nan")]), count=1)
        ((2,), (3,))
    """
    known = [label for label in range(1, len(sizes)) if not torch.isnan(sizes[label])]
    count = min(count, len(known) // 2)
    ascending = sorted(known, key=lambda label: float(sizes[label]))
    return tuple(ascending[:count]), tuple(ascending[::-1][:count])
