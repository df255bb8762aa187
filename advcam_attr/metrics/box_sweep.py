"""Best overlaps of a map's boxes with true boxes at every grey level, level by level or in two union-find sweeps.

The boxes of all levels are those of two families of nested components: the bright ones (8 neighbours), which grow and
merge as the level falls, and the dark ones that do not touch the map's edge (4 neighbours: holes, whose contours are
the bright pixels around them), which do so as it rises. Each sweep adds pixels in the order of their grey level to a
union-find, and scores a component's box where it has changed. Both ways give the same overlaps, bit for bit. The sweep
is plain Python that Numba compiles at its first use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from advcam_attr.types import AdvCAMError

#: The number of levels that a pixel of 8 bits can exceed: 0 to 254.
LEVELS = 255

#: From grey levels ``(H, W)`` uint8 and a level to the boxes x0, y0, x1, y1 of what is brighter; at least one.
BoxesAbove = Callable[[np.ndarray, int], Sequence[tuple[int, int, int, int]]]

#: Values ``(H, W)`` uint8, true boxes, whether components are holes, and the best overlaps, updated in place.
Sweep = Callable[[np.ndarray, np.ndarray, bool, np.ndarray], None]


def box_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the IoU ``(M, G)`` of boxes ``(M, 4)`` and ``(G, 4)`` whose ends are their last pixels."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.maximum(high - low + 1, 0).prod(2)
    areas, true_areas = ((some[:, 2:] - some[:, :2] + 1).prod(1) for some in (boxes, truth))
    return common / (areas[:, None] + true_areas - common)


def check_truth(truth: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return true boxes ``(G, 4)``, which must be at least one and lie on a map of this height and width."""
    if truth.ndim != 2 or truth.shape[1:] != (4,) or not len(truth) or truth.dtype.kind not in "iu":
        raise AdvCAMError(f"true boxes must be (G, 4) integers, at least one, got {truth.dtype} of shape {truth.shape}")
    x0, y0, x1, y1 = truth.T
    wrong = (x0 < 0) | (y0 < 0) | (x1 < x0) | (y1 < y0) | (x1 >= size[1]) | (y1 >= size[0])
    if wrong.any():
        box = ", ".join(map(str, truth[wrong][0].tolist()))
        raise AdvCAMError(f"the true box {box} does not lie on a map of {size[1]} x {size[0]} pixels")
    return truth


def best_ious(grey: np.ndarray, truth: np.ndarray, boxes_above: BoxesAbove) -> np.ndarray:
    """Return the best IoU of any box with any true one at every level, ``(255,)`` float64.

    Args:
        grey: ``(H, W)`` uint8. Levels that it does not exceed have 0, except for level 0.
        truth: ``(G, 4)`` integers on the map's grid.
        boxes_above: `advcam_attr.refine.boxes.boxes_above`, or ``largest_box_above``.
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


def available() -> bool:
    return find_spec("numba") is not None


def best_ious_by_union_find(grey: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return run_sweeps(compiled_sweep(), grey, truth)


@functools.cache
def compiled_sweep() -> Sweep:
    """Return the sweep compiled by Numba; it releases the GIL."""
    try:
        import numba
    except ImportError as error:
        raise AdvCAMError("the union-find needs Numba: pip install 'advcam_attr[fast]', or leave it out") from error
    return make_sweep(numba.njit(nogil=True))


def run_sweeps(sweep: Sweep, grey: np.ndarray, truth: np.ndarray) -> np.ndarray:
    truth = check_truth(truth, grey.shape).astype(np.int64)
    best = np.zeros(LEVELS)
    if not grey.any():
        best[0] = box_iou(np.zeros((1, 4), np.int64), truth).max()
        return best
    sweep(grey, truth, False, best)
    of_holes = np.zeros(LEVELS)
    sweep(LEVELS - grey, truth, True, of_holes)
    return np.maximum(best, of_holes[::-1])


def make_sweep(jit: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Sweep:
    """Return the sweep with its parts decorated by ``jit``: Numba's, or the identity for plain Python.

    A pixel is labelled with the component that it joined. For each component there are ``parent``, the component it
    belongs to now; ``box``, first and last row and column; ``overlap``, the best IoU of that box; and ``since``, the
    value at which the overlap last changed (0 while that value is still being added). An overlap that holds since v and
    changes at u < v is that of levels u to v - 1.
    """

    @jit
    def root_of(parent: Any, component: int) -> int:
        while parent[component] != component:
            parent[component] = parent[parent[component]]
            component = parent[component]
        return component

    @jit
    def components_around(label: Any, pixel: int, row: int, holes: bool, near: Any) -> int:
        """Write the labels around a pixel to ``near``, one for neighbours that touch each other; return the number."""
        north, south, west, east = label[pixel - row], label[pixel + row], label[pixel - 1], label[pixel + 1]
        count = 0
        if north >= 0:
            near[count] = north
            count += 1
        if south >= 0 and south != north:
            near[count] = south
            count += 1
        if holes or (north < 0 and south < 0):
            if west >= 0:
                near[count] = west
                count += 1
            if east >= 0 and east != west:
                near[count] = east
                count += 1
        if not holes:
            if north < 0 and west < 0 and label[pixel - row - 1] >= 0:
                near[count] = label[pixel - row - 1]
                count += 1
            if north < 0 and east < 0 and label[pixel - row + 1] >= 0:
                near[count] = label[pixel - row + 1]
                count += 1
            if south < 0 and west < 0 and label[pixel + row - 1] >= 0:
                near[count] = label[pixel + row - 1]
                count += 1
            if south < 0 and east < 0 and label[pixel + row + 1] >= 0:
                near[count] = label[pixel + row + 1]
                count += 1
        return count

    @jit
    def span(box: Any, component: int) -> int:
        return box[component, 2] + box[component, 3] - box[component, 0] - box[component, 1]

    @jit
    def overlap_of(box: Any, component: int, truth: Any, holes: bool, height: int, width: int) -> float:
        """Return the best IoU of the box of a component's contour; 0 for a hole that touches the edge."""
        y0, x0, y1, x1 = box[component, 0], box[component, 1], box[component, 2] + 1, box[component, 3] + 1
        if holes:
            if y0 == 0 or x0 == 0 or y1 == height or x1 == width:
                return 0.0
            y0, x0, y1, x1 = y0 - 1, x0 - 1, y1 + 1, x1 + 1
        y1, x1 = min(y1, height - 1), min(x1, width - 1)
        area = (y1 - y0 + 1) * (x1 - x0 + 1)
        best = 0.0
        for i in range(len(truth)):
            across = min(x1, truth[i, 2]) - max(x0, truth[i, 0]) + 1
            down = min(y1, truth[i, 3]) - max(y0, truth[i, 1]) + 1
            if across > 0 and down > 0:
                common = across * down
                whole = area + (truth[i, 2] - truth[i, 0] + 1) * (truth[i, 3] - truth[i, 1] + 1) - common
                best = max(best, common / whole)
        return best

    @jit
    def raise_to(best: Any, low: int, end: int, overlap: float) -> None:
        for level in range(low, end):
            if overlap > best[level]:
                best[level] = overlap

    @jit
    def by_value(values: Any) -> tuple[Any, Any]:
        """Return the pixels sorted by value (a stable counting sort), and where each value begins."""
        flat = values.ravel()
        begin = np.zeros(LEVELS + 2, np.int64)
        for value in flat:
            begin[int(value) + 1] += 1
        begin = np.cumsum(begin)
        place, order = begin.copy(), np.empty(len(flat), np.int32)
        for pixel in range(len(flat)):
            order[place[flat[pixel]]] = pixel
            place[flat[pixel]] += 1
        return order, begin

    @jit
    def sweep(values: Any, truth: Any, holes: bool, best: Any) -> None:
        height, width = values.shape
        row = width + 2
        order, begin = by_value(values)
        label = np.full((height + 2) * row, -1, np.int32)
        parent, count = np.empty(len(order), np.int32), 0
        box = np.empty((len(order), 4), np.int32)
        overlap = np.empty(len(order), np.float64)
        since, marked = np.empty(len(order), np.int16), np.empty(len(order), np.int16)
        near, changed = np.empty(8, np.int32), np.empty(len(order), np.int32)
        for value in range(LEVELS, 0, -1):
            changes = 0
            for place in range(begin[value], begin[value + 1]):
                y = order[place] // width
                x = order[place] - y * width
                pixel = (y + 1) * row + x + 1
                found = components_around(label, pixel, row, holes, near)
                if found == 0:
                    label[pixel] = parent[count] = changed[changes] = count
                    box[count, 0], box[count, 1], box[count, 2], box[count, 3] = y, x, y, x
                    since[count], marked[count], overlap[count] = 0, value, 0.0
                    count, changes = count + 1, changes + 1
                    continue
                root = root_of(parent, near[0])
                top, left, bottom, right = y, x, y, x
                for i in range(1, found):
                    other = root_of(parent, near[i])
                    if other == root:
                        continue
                    if span(box, root) < span(box, other):
                        root, other = other, root
                    parent[other] = root
                    raise_to(best, value, since[other], overlap[other])
                    top, left = min(top, box[other, 0]), min(left, box[other, 1])
                    bottom, right = max(bottom, box[other, 2]), max(right, box[other, 3])
                label[pixel] = root
                if top < box[root, 0] or left < box[root, 1] or bottom > box[root, 2] or right > box[root, 3]:
                    box[root, 0], box[root, 1] = min(top, box[root, 0]), min(left, box[root, 1])
                    box[root, 2], box[root, 3] = max(bottom, box[root, 2]), max(right, box[root, 3])
                    if marked[root] != value:
                        marked[root], changed[changes] = value, root
                        changes += 1
            for i in range(changes):
                root = changed[i]
                if parent[root] == root:
                    new = overlap_of(box, root, truth, holes, height, width)
                    if since[root] == 0 or new != overlap[root]:
                        raise_to(best, value, since[root], overlap[root])
                        overlap[root], since[root] = new, value
        for root in range(count):
            if parent[root] == root:
                raise_to(best, 0, since[root], overlap[root])

    return sweep
