"""Cells of a feature map over the image: their centres by receptive-field arithmetic along a trace.

Each strided convolution, pool, pad or resize of the forward maps the centres of its input's cells to those of its
output's (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016); all other calls keep them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from advcam_attr.heads.head import Head
from advcam_attr.heads.trace import Call, Trace, is_vector
from advcam_attr.types import Cells

_ORDER = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
}
_RESIZES = {"interpolate", "upsample", "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_unshuffle", "pixel_shuffle"}
#: Calls whose output's cells lie where the arithmetic cannot tell.
_UNKNOWN = {"conv_transpose2d", "unfold", "fold", "grid_sample"}


def cells_of(trace: Trace, head: Head) -> Cells:
    """Return the cells of a head's grid; whole blocks of pixels where the forward cannot be followed.

    Patch merging by reshapes is not followed, for example: the centres of blocks are the right ones there.
    """
    size, grid = (trace.image.shape[2], trace.image.shape[3]), head.grid
    found = _found(trace, head)
    if found is None or not all(map(_covers, found.offset, found.stride, grid, size)):
        return whole_cells(grid, size)
    return found


def whole_cells(grid: tuple[int, int], size: tuple[int, int]) -> Cells:
    """Return cells that are blocks of pixels, the first at the first pixel.

    Their side is a power of two if the grid is the image's size divided by one, rounded up or down; otherwise the grid
    is stretched over the image.
    """
    powers = [2**k for k in range(8)]
    up = next((s for s in powers if all(-(-side // s) == n for side, n in zip(size, grid, strict=True))), None)
    down = next((s for s in powers if all(side // s == n for side, n in zip(size, grid, strict=True))), None)
    power = up or down
    height, width = (side / n if power is None else float(power) for side, n in zip(size, grid, strict=True))
    return Cells(((height - 1) / 2, (width - 1) / 2), (height, width))


def blocks_of(cells: Cells, grid: tuple[int, int], size: tuple[int, int]) -> Cells:
    """Return cells of the same stride as blocks of pixels, the first at the first pixel.

    Axes on which the grid lost cells at the border, by convolutions without padding, keep their centres.
    """
    counts = [(side // stride, -(-side // stride)) for side, stride in zip(size, cells.stride, strict=True)]
    moved = [
        (stride - 1) / 2 if n in both else offset
        for n, both, offset, stride in zip(grid, counts, cells.offset, cells.stride, strict=True)
    ]
    return Cells((moved[0], moved[1]), cells.stride)


def _covers(offset: float, stride: float, count: int, side: int) -> bool:
    """Whether cells lie over an image of this side, as those of an arithmetic that missed no step do."""
    middle = offset + stride * (count - 1) / 2
    return abs(middle - (side - 1) / 2) < stride and offset > -stride and stride * (count - 1) < side + stride


def _found(trace: Trace, head: Head) -> Cells | None:
    known: dict[int, Cells | None] = {-1: Cells((0.0, 0.0), (1.0, 1.0))}
    for call in trace.calls:
        before = _common([known.get(parent) for parent in call.parents])
        if (call.name, call.occurrence) == (head.site.name, head.site.occurrence) and head.site.side == "input":
            return before
        known[call.index] = None if before is None else _after(call, before)
        if (call.name, call.occurrence) == (head.site.name, head.site.occurrence):
            return known[call.index]
    return None


def _common(cells: Sequence[Cells | None]) -> Cells | None:
    """The mean over joined paths, of those on the finest grid: keys may be coarser than the queries, and a gate is."""
    there = [one for one in cells if one is not None]
    if not there:
        return None
    finest = [one for one in there if one.stride == min(one.stride for one in there)]
    means = (math.fsum(one.offset[axis] for one in finest) / len(finest) for axis in (0, 1))
    return Cells((next(means), next(means)), finest[0].stride)


def _after(call: Call, before: Cells) -> Cells | None:
    out, source = call.out, call.source
    if call.name in _UNKNOWN or (isinstance(out, Tensor) and is_vector(out)):
        return None
    if not isinstance(out, Tensor) or source is None or out.ndim != 4 or source.ndim != 4:
        return before
    if call.name in _ORDER:
        return _strided(call, before)
    if call.name == "pad":
        sides = list(call.args[1] if len(call.args) > 1 else call.kwargs["pad"])
        left, above = (sides[2:3] + sides[4:5]) if len(sides) == 6 else (sides[0:1] + [*sides, 0, 0][2:3])
        return _moved(before, (-above, -left), (1, 1))
    if call.name in _RESIZES:
        ratios = source.shape[2] / out.shape[2], source.shape[3] / out.shape[3]
        return _moved(before, ((ratios[0] - 1) / 2, (ratios[1] - 1) / 2), ratios)
    if call.name == "__getitem__" and isinstance(call.args[1], tuple):
        steps = [(s.start or 0, s.step) for s in call.args[1] if isinstance(s, slice) and s.step not in (None, 1)]
        if len(steps) == 2:
            return _moved(before, (steps[0][0], steps[1][0]), (steps[0][1], steps[1][1]))
    return before


def _strided(call: Call, before: Cells) -> Cells:
    given: dict[str, Any] = dict(zip(_ORDER[call.name], call.args, strict=False)) | dict(call.kwargs)
    kernel = given["weight"].shape[2:] if "weight" in given else _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or (1 if "weight" in given else tuple(kernel)))
    dilation = _pair(given.get("dilation", 1))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = given.get("padding", 0)
    first = [span // 2 for span in spans] if padding == "same" else _pair(0 if padding == "valid" else padding)
    return _moved(before, (spans[0] / 2 - first[0], spans[1] / 2 - first[1]), stride)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _moved(before: Cells, by: tuple[float, float], factor: tuple[float, float]) -> Cells:
    """Cells whose first centre is moved by so many cells, and whose distance is so many times as large."""
    offset = before.offset[0] + before.stride[0] * by[0], before.offset[1] + before.stride[1] * by[1]
    return Cells(offset, (before.stride[0] * factor[0], before.stride[1] * factor[1]))
