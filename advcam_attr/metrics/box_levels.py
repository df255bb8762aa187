"""A map's grey levels and the true boxes in; the best overlap of any of its boxes at every level, out.

What lies above a threshold depends on the threshold only through the grey level ``int(threshold * M)``, M the map's
highest, and it changes only at levels that some pixel has. So at most 255 binary images stand for all thresholds, with
nothing lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from advcam_attr.types import AdvCAMError

#: The levels at which something can lie above: 0 to 254.
LEVELS = 255

#: Grey levels ``(H, W)`` uint8 and a level, to the boxes x0, y0, x1, y1 of what is brighter; at least one.
BoxesAbove = Callable[[np.ndarray, int], Sequence[tuple[int, int, int, int]]]


def box_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes whose ends are their last pixels.

    Args:
        boxes: ``(M, 4)`` x0, y0, x1, y1, integers.
        truth: ``(G, 4)``.

    Returns:
        ``(M, G)`` float64 in [0, 1].

    Example:
        >>> box_iou(np.array([[1, 2, 5, 6], [0, 0, 0, 0]]), np.array([[3, 1, 4, 5]])) * 27
        array([[8.],
               [0.]])
    """
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.maximum(high - low + 1, 0).prod(2)
    return common / (_areas(boxes)[:, None] + _areas(truth) - common)


def best_ious(grey: np.ndarray, truth: np.ndarray, boxes_above: BoxesAbove) -> np.ndarray:
    """The best intersection over union of any box with any true one, at every level.

    Only levels that some pixel has are looked at.

    Args:
        grey: ``(H, W)`` uint8.
        truth: ``(G, 4)`` integers on the map's grid, see `check_truth`.
        boxes_above: finds the boxes at a level: `advcam_attr.refine.boxes.boxes_above`, or ``largest_box_above``.

    Returns:
        ``(255,)`` float64; 0 at levels that the map does not reach, but for the first.

    Raises:
        AdvCAMError: as `check_truth`.

    Example:
        >>> whole = lambda grey, level: [(0, 0, 1, 0)] if level < 3 else [(1, 0, 1, 0)]
        >>> best_ious(np.array([[3, 5]], np.uint8), np.array([[1, 0, 1, 0]]), whole)[:6]
        array([0.5, 0.5, 0.5, 1. , 1. , 0. ])
    """
    check_truth(truth, grey.shape)
    top = max(int(grey.max()), 1)
    there = np.bincount(grey.ravel(), minlength=LEVELS + 1) > 0
    there[0] = True
    levels = np.flatnonzero(there[:top])
    found = [boxes_above(grey, int(level)) for level in levels]
    begin = np.cumsum([0, *map(len, found[:-1])])
    boxes = np.fromiter(chain.from_iterable(chain.from_iterable(found)), np.int64).reshape(-1, 4)
    each = np.maximum.reduceat(box_iou(boxes, truth).max(1), begin)
    best = np.zeros(LEVELS)
    best[:top] = each[np.cumsum(there[:top]) - 1]
    return best


def check_truth(truth: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """True boxes that lie on a map's grid.

    Args:
        truth: ``(G, 4)`` integers; a box of one pixel is a box.
        size: the map's height and width.

    Returns:
        The same array.

    Raises:
        AdvCAMError: no box, or one that is upside down or outside.
    """
    if truth.ndim != 2 or truth.shape[1:] != (4,) or not len(truth) or truth.dtype.kind not in "iu":
        raise AdvCAMError(f"true boxes must be (G, 4) integers, at least one, got {truth.dtype} of shape {truth.shape}")
    x0, y0, x1, y1 = truth.T
    wrong = (x0 < 0) | (y0 < 0) | (x1 < x0) | (y1 < y0) | (x1 >= size[1]) | (y1 >= size[0])
    if wrong.any():
        box = ", ".join(map(str, truth[wrong][0].tolist()))
        raise AdvCAMError(f"the true box {box} does not lie on a map of {size[1]} x {size[0]} pixels")
    return truth


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
