"""A traced forward in; the classifier head as class activation mapping sees it, out.

The search walks the data flow back from the logits. As long as tensors are vectors (one number a channel) it is in
the *tail*; the first operation that has a spatial grid on its input is the head's reduction. If that is a mean over
the grid, and nothing else of the image reaches the logits beside it, the tensor it reads is the one to map, and the
operations of the tail say whether the class weights are exact. Otherwise class activation mapping does not exist for
this net, and the search goes on to the last grid on which Grad-CAM can work.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from advcam_attr.heads.trace import (
    MEANS,
    RESHAPES,
    Call,
    Grid,
    Layout,
    Trace,
    as_grid,
    is_vector,
    tail_effects,
    tensors_in,
)
from advcam_attr.types import AdvCAMError

Exactness = Literal["exact", "linearised", "none"]

_MIXERS = {"scaled_dot_product_attention", "softmax", "multi_head_attention_forward", "_native_multi_head_attention"}
_PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}
_SELECTIONS = {"__getitem__", "select", "unbind", "split", "chunk", "narrow"}
_RESIDUAL = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "add", "add_", "__add__", "__iadd__", "cat"}


_CAM: dict[Exactness, str] = {
    "exact": "exact: the mean of a class's map plus a constant is its logit",
    "linearised": "linearised: the class weights are the derivative of the logit, for each image its own",
    "none": "there is none; base grad_cam, layer_cam and grad_cam++ work on this grid",
}


@dataclass(frozen=True)
class Site:
    """Where a tensor is found again in a later forward: the n-th call of a function, and which side of it."""

    name: str
    occurrence: int
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Head:
    """What a classifier's head looks like to class activation mapping.

    Attributes:
        kind: the head in words, e.g. ``"NCHW mean -> linear"``.
        exactness: ``"exact"``: the mean of a class map plus a constant is the logit; ``"linearised"``: the class
            weights are the derivative of the logit (norms after the pool with their scale frozen); ``"none"``: there
            is no class activation map, Grad-CAM's family works on ``layer``.
        layer: the outermost module that returns the mapped tensor, or None if no module does.
        layout: the order of its dimensions; L is h·w tokens.
        grid: (h, w) of the map.
        channels: C.
        classes: K.
        stride: image pixels a grid cell, (vertical, horizontal).
        prefix: tokens before the grid's (class and register tokens).
        note: why it is so, one line.
        site: where the tensor is found again.
    """

    kind: str
    exactness: Exactness
    layer: str | None
    layout: Layout
    grid: tuple[int, int]
    channels: int
    classes: int
    stride: tuple[float, float]
    prefix: int
    note: str
    site: Site

    def __str__(self) -> str:
        lines = {
            "head": f"{self.kind}, {self.classes} classes",
            "layer": f"{self.layer or 'between modules'} ({self.layout})",
            "grid": f"{self.grid[0]} x {self.grid[1]} cells of {self.channels} channels, "
            f"stride {self.stride[0]:g} x {self.stride[1]:g}",
            "CAM": _CAM[self.exactness],
        }
        if self.exactness != "exact":
            lines["note"] = self.note
        return "\n".join(f"{name:<11} {text}" for name, text in lines.items())

    @property
    def advice(self) -> str | None:
        """What to use where class activation mapping is refused."""
        return None if self.exactness != "none" else 'base="grad_cam" (or "layer_cam", "grad_cam++") works on this grid'


def _mean_layout(call: Call) -> Layout | None:
    """The layout whose whole grid this call averages, or None if it is not such a mean."""
    source = call.source
    if source is None or call.name not in MEANS or source.ndim not in (3, 4):
        return None
    if call.name == "mean":
        dim = call.kwargs.get("dim", call.args[1:] if len(call.args) > 1 else ())
        flat = dim if isinstance(dim, int) else next((d for d in dim if isinstance(d, (tuple, list))), None)
        dims = dim if flat is None else flat
        if isinstance(dims, int):
            dims = (dims,)
        axes = {int(d) % source.ndim for d in dims if isinstance(d, int) and not isinstance(d, bool)}
        layouts: dict[tuple[int, frozenset[int]], Layout] = {
            (4, frozenset({2, 3})): "NCHW",
            (4, frozenset({1, 2})): "NHWC",
            (3, frozenset({1})): "NLC",
            (3, frozenset({2})): "NCL",
        }
        return layouts.get((source.ndim, frozenset(axes)))
    if any(size != 1 for size in call.out.shape[2:]) or call.out.shape[1] != source.shape[1]:
        return None
    if call.name.startswith("avg_pool") and not _plain_average(call):
        return None
    return "NCHW" if source.ndim == 4 else "NCL"


def _plain_average(call: Call) -> bool:
    """Whether an ``avg_pool`` with one output cell weighs every input cell alike: no padding, all cells read."""
    names = ("kernel_size", "stride", "padding")
    given = dict(zip(names, call.args[1:], strict=False)) | dict(call.kwargs)
    assert call.source is not None
    spatial = call.source.shape[2:]

    def each(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
        return (value,) * len(spatial) if isinstance(value, int) else tuple(value) * (len(spatial) // len(value))

    return each(given["kernel_size"]) == tuple(spatial) and not any(each(given.get("padding", 0)))


@dataclass(frozen=True)
class _Reduction:
    call: Call
    layout: Layout | None
    tail: tuple[Call, ...]
    reason: str | None
    others: int


def _walk_back(trace: Trace, logits: Tensor) -> _Reduction:
    """Go back from the logits through the tail to the first call that reads a grid.

    Where several means reach the logits, the latest is taken: it reads the deepest features.
    """
    made = trace.made_by(logits)
    if made is None or made < 0:
        raise AdvCAMError(
            "the logits cannot be traced back to the image: is the model scripted, compiled or quantized? "
            "Pass the eager module it was made from"
        )
    image = (trace.image.shape[2], trace.image.shape[3])
    pending, seen, collapsed = [-made], {made}, False
    tail: list[Call] = []
    reductions: list[Call] = []
    while pending:
        call = trace.calls[-heapq.heappop(pending)]
        sources = [t for t in tensors_in((call.args, call.kwargs)) if trace.made_by(t) is not None]
        regroups = call.name in RESHAPES and is_vector(call.out) and not any(as_grid(t, image) for t in sources)
        if (not all(is_vector(t) for t in sources) and not regroups) or -1 in call.parents:
            reductions.append(call)
            if _mean_layout(call) is None:
                break
            continue
        collapsed |= call.name in MEANS
        tail.append(call)
        for parent in call.parents:
            if parent not in seen:
                seen.add(parent)
                heapq.heappush(pending, -parent)
    odd = next((call for call in reductions if _mean_layout(call) is None), None)
    split = next(
        (c for c in reductions if c.source is not None and c.source.ndim == 3 and _partly_reduced(trace, c.source)),
        None,
    )
    if odd is None and split is not None:
        staged = "the grid is pooled in two stages, one side after the other"
        return _Reduction(split, None, tuple(reversed(tail)), staged, len(reductions) - 1)
    reason = (
        None
        if odd is None
        else _why_not_a_mean(odd, image)
        + ("; the grid that it pools is a single cell (is the image too small?)" if collapsed else "")
    )
    if any(-1 in call.parents for call in reductions):
        raise AdvCAMError(
            f"no grid of features is left of an image of {image[0]}x{image[1]}: the net reduces it to a single cell; "
            "use a larger image"
        )
    call = odd or reductions[0]
    return _Reduction(call, _mean_layout(call), tuple(reversed(tail)), reason, len(reductions) - 1)


def _why_not_a_mean(call: Call, image: tuple[int, int]) -> str:
    if call.name in _SELECTIONS or (
        call.name == "conv1d" and call.source is not None and not as_grid(call.source, image)
    ):
        return "the logits read a class token, not a mean over the grid"
    if call.name in ("flatten", "view", "reshape"):
        return "the grid is flattened into the classifier: every position has its own weights"
    if call.name in _MIXERS | _PRODUCTS or call.name in ("sum", "mul"):
        return "the grid is pooled by attention or unequal weights, not by a mean"
    if call.name in ("conv2d", "conv1d"):
        return "a convolution as large as the grid replaces the pooling: every position has its own weights"
    if "max" in call.name:
        return "the grid is pooled by a maximum, not by a mean"
    return f"the grid is reduced by {call.name}, not by a mean"


def _kind(layout: Layout, tail: tuple[Call, ...], others: int) -> tuple[str, Exactness, str]:
    effects = tail_effects(tail)
    names = [c.name for c in tail if c.name not in RESHAPES and "dropout" not in c.name]
    where = {"NCHW": "NCHW mean", "NHWC": "NHWC mean", "NLC": "token mean", "NCL": "token mean"}[layout]
    kind = f"{where} -> {' -> '.join(names)}" if names else f"class maps -> {where}"
    if "nonlinear" in effects:
        return kind, "linearised", "a non-linear tail: class weights are the derivative of the logit, image by image"
    if others:
        note = f"the logits also read {others} other pooled tensors, whose share has no place on the map"
        return f"last of {others + 1} pools: {kind}", "linearised", note
    if "norm" in effects:
        return kind, "linearised", "a norm after the pool: class weights with the norm's scale frozen"
    return kind, "exact", "mean(class map) + constant == logit"


def _finish(trace: Trace, grid: Grid, tensor: Tensor, site: Site, kind: str, exactness: Exactness, note: str) -> Head:
    height, width = trace.image.shape[2:]
    h, w = grid.grid
    return Head(
        kind, exactness, trace.emitter_of(tensor), grid.layout, grid.grid, grid.channels, trace.output.shape[1],
        (height / h, width / w), grid.prefix, note, site,
    )  # fmt: skip


def _grad_cam_grid(trace: Trace, logits: Tensor, reason: str) -> tuple[Grid, Tensor, Site]:
    """The last tensor over the grid through which every position still reaches the logits.

    Between a class token and the last attention positions do not mix, so that all but the class token's own have no
    effect: the search starts before the last call that mixes positions.
    """
    image = (trace.image.shape[2], trace.image.shape[3])
    mixer = _last_mixer(trace, trace.calls[trace.producer[id(logits)]], image, of_token="class token" in reason)
    if mixer is not None:
        attention = mixer.name in _MIXERS | _PRODUCTS
        makers = [trace.calls[p] for p in mixer.parents if p >= 0 and not attention]
        for call in [*sorted(makers, key=lambda c: -c.index), *_ancestors(trace, mixer)]:
            grid = as_grid(call.out, image) if isinstance(call.out, Tensor) else None
            if grid is not None and not _is_flattening(call) and (not attention or call.name in _RESIDUAL):
                return grid, call.out, Site(call.name, call.occurrence, "output")
    raise AdvCAMError(
        f"no grid of features over the image was found ({reason}): "
        "pass layer= the module whose output has one, shaped (N, C, h, w), (N, h, w, C) or (N, tokens, C)"
    )


def _is_flattening(call: Call) -> bool:
    """Whether a call only lays the grid of an (N, C, h, w) tensor out in a row: then that tensor is mapped."""
    source = call.source
    if source is None or source.ndim != 4 or call.out.ndim != 3 or call.name not in RESHAPES:
        return False
    _, channels, h, w = source.shape
    return tuple(call.out.shape[1:]) == (channels, h * w)


def _partly_reduced(trace: Trace, tensor: Tensor) -> bool:
    """Whether a tensor (N, L, C) or (N, C, L) is what is left of a grid of which one side is reduced already."""
    made = trace.made_by(tensor)
    while made is not None and made >= 0:
        call = trace.calls[made]
        source = call.source
        if source is None or not isinstance(call.out, Tensor) or call.name in _SELECTIONS:
            return False
        if call.out.numel() != source.numel():
            image = (trace.image.shape[2], trace.image.shape[3])
            return source.ndim == 4 and as_grid(source, image) is not None
        if source.ndim == 4 or not call.parents:
            return False
        made = call.parents[0]
    return False


def _last_mixer(trace: Trace, start: Call, image: tuple[int, int], of_token: bool) -> Call | None:
    """The latest call before the logits that mixes the grid's positions (with a class token, if that is read)."""
    calls = [start, *_ancestors(trace, start)]
    attention = [c for c in calls if c.name in _MIXERS or (c.name in _PRODUCTS and len(c.parents) > 1)]
    if of_token and attention:
        return attention[0]
    for call in calls:
        if call in attention:
            return call
        source = call.source
        if source is None or not isinstance(call.out, Tensor) or as_grid(source, image) is None:
            continue
        collapses = is_vector(call.out) and call.name not in _SELECTIONS
        kernel = call.args[1].shape[2:] if call.name == "conv2d" and len(call.args) > 1 else ()
        resizes = call.out.ndim == source.ndim == 4 and call.out.shape[2:] != source.shape[2:]
        if collapses or "max" in call.name or any(size > 1 for size in kernel) or resizes:
            return call
    return None


def _ancestors(trace: Trace, call: Call) -> list[Call]:
    """The calls that ``call`` depends on, the latest first."""
    seen: set[int] = set()
    stack = [p for p in call.parents if p >= 0]
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack.extend(p for p in trace.calls[index].parents if p >= 0)
    return [trace.calls[i] for i in sorted(seen, reverse=True)]


def logits_of(output: object) -> Tensor:
    """The logits ``(N, K)`` in a model's output.

    Raises:
        AdvCAMError: the output is not one tensor of that shape.
    """
    if not isinstance(output, Tensor):
        size = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
        raise AdvCAMError(
            f"the model returned a {type(output).__name__}{size}, not logits: wrap it in a module that returns the "
            "tensor (N, classes)"
        )
    if output.ndim != 2:
        raise AdvCAMError(f"the model returned a tensor of shape {tuple(output.shape)}, not logits (N, classes)")
    return output


def find_head(trace: Trace, layer: str | None = None) -> Head:
    """Find the head of a traced classifier.

    Args:
        trace: from `record`.
        layer: the name of a module whose output is to be mapped instead of the tensor that is found.

    Raises:
        AdvCAMError: no grid can be mapped, or ``layer`` is not a module on the way to the logits.
    """
    logits = logits_of(trace.output)
    reduction = _walk_back(trace, logits)
    image = (trace.image.shape[2], trace.image.shape[3])
    pooled = reduction.call.source
    if reduction.reason is None and pooled is not None:
        grid = as_grid(pooled, image, prefer=reduction.layout)
        if grid is None:
            raise AdvCAMError(
                f"the pooled tensor {tuple(pooled.shape)} is no grid over an image of {image[0]}x{image[1]}"
            )
        kind, exactness, note = _kind(grid.layout, reduction.tail, reduction.others)
        site = Site(reduction.call.name, reduction.call.occurrence, "input")
        head = _finish(trace, grid, pooled, site, kind, exactness, note)
        if layer is None or any(tensor is pooled for _, tensor in trace.emitters.get(layer, [])):
            return head
    if layer is not None:
        return _override(trace, layer, reduction, image)
    grid, tensor, site = _grad_cam_grid(trace, logits, reduction.reason or "")
    return _finish(trace, grid, tensor, site, "no class activation map", "none", reduction.reason or "")


def _outputs(trace: Trace, layer: str) -> list[tuple[int, Tensor]]:
    outputs = trace.emitters.get(layer)
    if not outputs:
        raise AdvCAMError(f"layer {layer!r} is not used in the forward of this model (or returns nothing of the image)")
    return outputs


def output_site(trace: Trace, layer: str) -> Site:
    """Where a module's last output is found again.

    Raises:
        AdvCAMError: the module takes no part in the forward, or no single call makes its output.
    """
    made, tensor = _outputs(trace, layer)[-1]
    if made < 0 or next(iter(tensors_in(trace.calls[made].out))) is not tensor:
        raise AdvCAMError(f"the output of layer {layer!r} is the image, or one of several of one call; name another")
    return Site(trace.calls[made].name, trace.calls[made].occurrence, "output")


def _override(trace: Trace, layer: str, reduction: _Reduction, image: tuple[int, int]) -> Head:
    outputs = _outputs(trace, layer)
    on_path = {c.index for c in _ancestors(trace, trace.calls[trace.producer[id(trace.output)]])}
    for made, tensor in reversed(outputs):
        grid = as_grid(tensor, image)
        if grid is None:
            continue
        if made not in on_path:
            raise AdvCAMError(f"the output of layer {layer!r} does not reach the logits")
        maker = trace.calls[trace.producer[id(tensor)]]
        pooled = reduction.call.source if reduction.reason is None else None
        right = trace.emitter_of(pooled) if pooled is not None else None
        note = f"layer {layer!r} is not the tensor that is pooled" + (f": that is {right!r}" if right else "")
        return _finish(trace, grid, tensor, Site(maker.name, maker.occurrence, "output"), "chosen layer", "none", note)
    shapes = ", ".join(str(tuple(t.shape)) for _, t in outputs)
    raise AdvCAMError(f"the output of layer {layer!r}, {shapes}, is no grid of features over the image")
