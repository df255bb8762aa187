"""Search for the reduction that pools a classifier's grid, back from the logits.

As long as tensors hold one position of the image the search is in the head's tail; the first call that reads several is
its reduction.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from advcam_attr.heads.axes import REDUCERS, Axes, axes_kept
from advcam_attr.heads.coordinates import Grid
from advcam_attr.heads.head import Reason
from advcam_attr.heads.trace import MEANS, RESHAPES, Call, Trace, tensors_in
from advcam_attr.types import AdvCAMError

MIXERS = {"scaled_dot_product_attention", "softmax", "multi_head_attention_forward", "_native_multi_head_attention"}
PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}
SELECTIONS = {"__getitem__", "select", "unbind", "split", "chunk", "narrow"}


def _averaged(call: Call) -> set[int] | None:
    """The axes of its source that a call averages with equal weights; None if it is no such mean."""
    source = call.source
    if source is None or call.name not in MEANS:
        return None
    if call.name == "mean":
        return set(range(source.ndim)).difference(*axes_kept(call))
    spatial = range(source.ndim - int(call.name[-2]), source.ndim)
    gone = {axis for axis in spatial if call.out.shape[axis] == 1}
    kept = all(call.out.shape[axis] == source.shape[axis] for axis in spatial if axis not in gone)
    plain = not call.name.startswith("avg_pool") or _plain_average(call)
    return gone if kept and plain else None


def _pools_one_cell(call: Call) -> bool:
    averaged = _averaged(call)
    return call.source is not None and bool(averaged) and all(call.source.shape[axis] == 1 for axis in averaged or ())


def _mean_over(call: Call, axes: Axes) -> Grid | None:
    """The grid that this call averages, or one side of, if it does nothing else."""
    averaged, grid = _averaged(call), None if call.source is None else axes.grid(call.source)
    if averaged is None or grid is None or call.source is None:
        return None
    shape = call.source.shape
    places = {axis for axis, letter in enumerate(grid.layout) if letter in "HWL"}
    whole = math.prod(shape[axis] for axis in places) == math.prod(grid.grid)
    return grid if whole and all(axis in places or shape[axis] == 1 for axis in averaged) else None


def _plain_average(call: Call) -> bool:
    """Whether an ``avg_pool`` to one cell weighs all cells equally, without padding."""
    names = ("kernel_size", "stride", "padding")
    given = dict(zip(names, call.args[1:], strict=False)) | dict(call.kwargs)
    assert call.source is not None
    spatial = call.source.shape[2:]

    def each(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
        return (value,) * len(spatial) if isinstance(value, int) else tuple(value) * (len(spatial) // len(value))

    return each(given["kernel_size"]) == tuple(spatial) and not any(each(given.get("padding", 0)))


@dataclass(frozen=True)
class Reduction:
    """The call that reads a grid and returns none, and the grid if that is its mean."""

    call: Call
    grid: Grid | None
    first: Call
    tail: tuple[Call, ...]
    reason: Reason | None
    note: str
    others: int


def find_reduction(trace: Trace, axes: Axes, logits: Tensor) -> Reduction:
    """Follow the tail to the first call that reads a grid; of several means, the latest."""
    made = maker(trace, logits)
    pending, seen = [-made], {made}
    tail: list[Call] = []
    reductions: list[Call] = []
    odd: Call | None = None
    while pending and odd is None:
        call = trace.calls[-heapq.heappop(pending)]
        if -1 in call.parents or any(axes.spread(t) for t in tensors_in((call.args, call.kwargs))):
            odd = _not_a_mean(trace, axes, call)
            if odd is not None and reductions and _reads_before(trace, odd, reductions[0]):
                odd = None if _why_not_a_mean(odd) is not Reason.CLASS_TOKEN else odd
            reductions.append(call)
            continue
        tail.append(call)
        for parent in call.parents:
            if parent not in seen:
                seen.add(parent)
                heapq.heappush(pending, -parent)
    if any(-1 in call.parents for call in reductions):
        height, width = trace.image.shape[2:]
        raise AdvCAMError(
            f"no grid of features is left of an image of {height}x{width}: the net reduces it to a single cell; "
            "use a larger image"
        )
    reason = None if odd is None else _why_not_a_mean(odd)
    note = "" if reason is None else reason.value
    if odd is not None and reason is Reason.OTHER:
        note = f"the grid is reduced by {odd.name}, not by a mean"
    if odd is not None and any(_pools_one_cell(call) for call in tail):
        note += "; the grid that it pools is a single cell (is the image too small?)"
    after = {reductions[0].index}
    for call in reversed(tail):
        if after.intersection(call.parents):
            after.add(call.index)
    tail = [call for call in tail if call.index in after or odd is not None]
    first = _first_stage(trace, axes, reductions[0])
    grid = None if odd or first.source is None else axes.grid(first.source)
    return Reduction(odd or reductions[0], grid, first, tuple(reversed(tail)), reason, note, len(reductions) - 1)


def _not_a_mean(trace: Trace, axes: Axes, call: Call) -> Call | None:
    """The call that keeps a reduction from being the mean over a grid; None if it is one."""
    for before in [call, *_line(trace, call)]:  # a grid that was flattened: back to the call that did it
        if before.source is None or not axes.spread(before.source) or axes.grid(before.source):
            if before is not call and before.source is not None and axes.grid(before.source):
                return before
            break
    first = _first_stage(trace, axes, call)
    return None if _mean_over(first, axes) and _mean_over(call, axes) else first if first is not call else call


def _reads_before(trace: Trace, call: Call, mean: Call) -> bool:
    """Whether a call reads only features that were made before those that ``mean`` pools."""
    pooled = next((before for before in _line(trace, mean) if before.name not in RESHAPES), None)
    return pooled is not None and pooled not in [call, *ancestors(trace, call)]


def _line(trace: Trace, call: Call) -> Iterator[Call]:
    """The calls before this one, from source to source."""
    while call.source is not None and trace.made_by(call.source) is not None and call.parents[0] >= 0:
        call = trace.calls[call.parents[0]]
        yield call


def _first_stage(trace: Trace, axes: Axes, call: Call) -> Call:
    """The first of the calls that reduce a grid one side after the other; the call itself if it reduces both."""
    first = call
    for before in _line(trace, call):
        source = before.source
        if before.name in RESHAPES:
            continue
        one_side = source is not None and (before.name in REDUCERS or before.name in MEANS)
        if not one_side or axes.directions(before.source) <= axes.directions(first.source):
            break
        first = before
    return first


def _why_not_a_mean(call: Call) -> Reason:
    if call.name in SELECTIONS:
        return Reason.CLASS_TOKEN
    if call.name in ("flatten", "view", "reshape"):
        return Reason.FLATTENED
    if call.name in MIXERS | PRODUCTS or call.name in ("sum", "mul", "linear"):
        return Reason.WEIGHTED
    if call.name in ("conv2d", "conv1d"):
        return Reason.CONVOLUTION
    return Reason.MAXIMUM if "max" in call.name else Reason.OTHER


def maker(trace: Trace, logits: Tensor) -> int:
    made = trace.made_by(logits)
    if made is None or made < 0:
        raise AdvCAMError(
            "the logits cannot be traced back to the image: is the model scripted, compiled or quantized? "
            "Pass the eager module it was made from"
        )
    return made


def ancestors(trace: Trace, call: Call) -> list[Call]:
    seen: set[int] = set()
    stack = [p for p in call.parents if p >= 0]
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack.extend(p for p in trace.calls[index].parents if p >= 0)
    return [trace.calls[i] for i in sorted(seen, reverse=True)]
