"""Search for the classifier head in a traced forward.

The search walks the data flow back from the logits. As long as tensors are vectors (one number per channel) it is in
the *tail*; the first operation with a spatial grid on its input is the head's reduction. If that is a mean over the
grid, and nothing else of the image reaches the logits, its input is the tensor to map, and the operations of the tail
decide whether the class weights are exact. Otherwise there is no class activation map, and the search continues to the
last grid on which Grad-CAM works.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from torch import Tensor

from advcam_attr.heads.head import Exactness, Head, Reason
from advcam_attr.heads.trace import (
    MEANS,
    RESHAPES,
    Call,
    Grid,
    Layout,
    Site,
    Trace,
    as_grid,
    is_vector,
    tail_effects,
    tensors_in,
)
from advcam_attr.types import AdvCAMError

_MIXERS = {"scaled_dot_product_attention", "softmax", "multi_head_attention_forward", "_native_multi_head_attention"}
_PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}
_SELECTIONS = {"__getitem__", "select", "unbind", "split", "chunk", "narrow"}
_RESIDUAL = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "add", "add_", "__add__", "__iadd__", "cat"}


def _mean_layout(call: Call) -> Layout | None:
    """The layout whose grid this call averages, if it is such a mean."""
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
    """Whether an ``avg_pool`` to one cell weighs all cells equally, without padding."""
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
    reason: Reason | None
    note: str
    others: int


def _walk_back(trace: Trace, logits: Tensor) -> _Reduction:
    """Follow the tail to the first call that reads a grid; of several means, the latest."""
    made = _maker(trace, logits)
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
        staged = Reason.TWO_STAGES
        return _Reduction(split, None, tuple(reversed(tail)), staged, staged.value, len(reductions) - 1)
    reason = None if odd is None else _why_not_a_mean(odd, image)
    note = "" if reason is None else reason.value
    if odd is not None and reason is Reason.OTHER:
        note = f"the grid is reduced by {odd.name}, not by a mean"
    if odd is not None and collapsed:
        note += "; the grid that it pools is a single cell (is the image too small?)"
    if any(-1 in call.parents for call in reductions):
        raise AdvCAMError(
            f"no grid of features is left of an image of {image[0]}x{image[1]}: the net reduces it to a single cell; "
            "use a larger image"
        )
    call = odd or reductions[0]
    return _Reduction(call, _mean_layout(call), tuple(reversed(tail)), reason, note, len(reductions) - 1)


def _maker(trace: Trace, logits: Tensor) -> int:
    made = trace.made_by(logits)
    if made is None or made < 0:
        raise AdvCAMError(
            "the logits cannot be traced back to the image: is the model scripted, compiled or quantized? "
            "Pass the eager module it was made from"
        )
    return made


def _why_not_a_mean(call: Call, image: tuple[int, int]) -> Reason:
    if call.name in _SELECTIONS or (
        call.name == "conv1d" and call.source is not None and not as_grid(call.source, image)
    ):
        return Reason.CLASS_TOKEN
    if call.name in ("flatten", "view", "reshape"):
        return Reason.FLATTENED
    if call.name in _MIXERS | _PRODUCTS or call.name in ("sum", "mul"):
        return Reason.WEIGHTED
    if call.name in ("conv2d", "conv1d"):
        return Reason.CONVOLUTION
    if "max" in call.name:
        return Reason.MAXIMUM
    return Reason.OTHER


def _kind(layout: Layout, tail: tuple[Call, ...], others: int) -> tuple[str, Exactness, Reason]:
    effects = tail_effects(tail)
    names = [c.name for c in tail if c.name not in RESHAPES and "dropout" not in c.name]
    where = {"NCHW": "NCHW mean", "NHWC": "NHWC mean", "NLC": "token mean", "NCL": "token mean"}[layout]
    kind = f"{where} -> {' -> '.join(names)}" if names else f"class maps -> {where}"
    if "nonlinear" in effects:
        return kind, "linearised", Reason.NONLINEAR
    if others:
        return f"last of {others + 1} pools: {kind}", "linearised", Reason.SEVERAL_POOLS
    if "norm" in effects:
        return kind, "linearised", Reason.NORM
    return kind, "exact", Reason.AFFINE


def _finish(
    trace: Trace,
    grid: Grid,
    mapped: tuple[int, Tensor],
    site: Site,
    kind: str,
    exactness: Exactness,
    reason: Reason,
    note: str = "",
) -> Head:
    height, width = trace.image.shape[2:]
    h, w = grid.grid
    return Head(
        kind, exactness, trace.emitter_of(*mapped), grid.layout, grid.grid, grid.channels, trace.output.shape[1],
        (height / h, width / w), grid.prefix, reason, note or reason.value, site,
    )  # fmt: skip


def _grad_cam_grid(trace: Trace, logits: Tensor, reason: Reason, note: str) -> tuple[Grid, Call]:
    """The last call whose result is over the grid and through which every position still reaches the logits.

    After the last attention before a class token only the token's position has an effect: the search starts before the
    last call that mixes positions.
    """
    image = (trace.image.shape[2], trace.image.shape[3])
    mixer = _last_mixer(trace, trace.calls[_maker(trace, logits)], image, of_token=reason is Reason.CLASS_TOKEN)
    if mixer is not None:
        attention = mixer.name in _MIXERS | _PRODUCTS
        makers = [trace.calls[p] for p in mixer.parents if p >= 0 and not attention]
        for call in [*sorted(makers, key=lambda c: -c.index), *_ancestors(trace, mixer)]:
            grid = as_grid(call.out, image) if isinstance(call.out, Tensor) else None
            if grid is not None and not _is_flattening(call) and (not attention or call.name in _RESIDUAL):
                return grid, call
    raise AdvCAMError(
        f"no grid of features over the image was found ({note}): "
        "pass layer= the module whose output has one, shaped (N, C, h, w), (N, h, w, C) or (N, tokens, C)"
    )


def _is_flattening(call: Call) -> bool:
    source = call.source
    if source is None or source.ndim != 4 or call.out.ndim != 3 or call.name not in RESHAPES:
        return False
    _, channels, h, w = source.shape
    return tuple(call.out.shape[1:]) == (channels, h * w)


def _partly_reduced(trace: Trace, tensor: Tensor) -> bool:
    """Whether a tensor (N, L, C) or (N, C, L) is a grid with one side already reduced."""
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
    """The latest call that mixes the grid's positions (with a class token, if that is read)."""
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
    seen: set[int] = set()
    stack = [p for p in call.parents if p >= 0]
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack.extend(p for p in trace.calls[index].parents if p >= 0)
    return [trace.calls[i] for i in sorted(seen, reverse=True)]


def logits_of(output: object) -> Tensor:
    """Return a model's output if it is logits ``(N, K)``."""
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
        layer: name of the module to map in place of the tensor that is found.
    """
    logits = logits_of(trace.output)
    if layer is None:
        return _found(trace, logits)[0]
    try:
        found, pooled = _found(trace, logits)
    except AdvCAMError:  # a chosen layer needs a grid and a gradient, whatever the logits are made of
        return _override(trace, layer, None)
    if pooled is not None and any(m == pooled[0] and t is pooled[1] for m, t in trace.emitters.get(layer, [])):
        return found
    return _override(trace, layer, None if pooled is None else found.layer)


def _found(trace: Trace, logits: Tensor) -> tuple[Head, tuple[int, Tensor] | None]:
    """The head, and the pooled tensor with the call that made it, if it is pooled by a mean."""
    reduction = _walk_back(trace, logits)
    image = (trace.image.shape[2], trace.image.shape[3])
    source = reduction.call.source
    if reduction.reason is None and source is not None:
        grid = as_grid(source, image, prefer=reduction.layout)
        if grid is None:
            raise AdvCAMError(
                f"the pooled tensor {tuple(source.shape)} is no grid over an image of {image[0]}x{image[1]}"
            )
        kind, exactness, reason = _kind(grid.layout, reduction.tail, reduction.others)
        note = reason.value
        if reason is Reason.SEVERAL_POOLS:
            note = note.replace("other pooled", f"{reduction.others} other pooled")
        pooled = trace.maker_of_source(reduction.call), source
        site = trace.site(reduction.call, "input")
        return _finish(trace, grid, pooled, site, kind, exactness, reason, note), pooled
    reason = reduction.reason or Reason.OTHER
    grid, call = _grad_cam_grid(trace, logits, reason, reduction.note)
    made, site = (call.index, call.out), trace.site(call, "output")
    return _finish(trace, grid, made, site, "no class activation map", "none", reason, reduction.note), None


def _outputs(trace: Trace, layer: str) -> list[tuple[int, Tensor]]:
    outputs = trace.emitters.get(layer)
    if not outputs:
        raise AdvCAMError(f"layer {layer!r} is not used in the forward of this model (or returns nothing of the image)")
    return outputs


def layers_to_pool(trace: Trace, count: int = 6) -> list[str]:
    """Return the outermost layers whose output is a grid that reaches the logits, the last first."""
    image = (trace.image.shape[2], trace.image.shape[3])
    names: list[str] = []
    for call in _ancestors(trace, trace.calls[_maker(trace, trace.output)]):
        if isinstance(call.out, Tensor) and as_grid(call.out, image) is not None:
            names += [name] if (name := trace.emitter_of(call.index, call.out)) and name not in names else []
    return sorted(names, key=lambda name: name.count("."))[:count]


def output_site(trace: Trace, layer: str) -> Site:
    """Return the site of a module's last output."""
    return _module_site(trace, layer, *_outputs(trace, layer)[-1])


def _module_site(trace: Trace, layer: str, made: int, tensor: Tensor) -> Site:
    if made < 0 or next(iter(tensors_in(trace.calls[made].out))) is not tensor:
        raise AdvCAMError(f"the output of layer {layer!r} is the image, or one of several of one call; name another")
    return trace.site(trace.calls[made], "output")


def _override(trace: Trace, layer: str, pooled: str | None) -> Head:
    outputs = _outputs(trace, layer)
    image = (trace.image.shape[2], trace.image.shape[3])
    on_path = {c.index for c in _ancestors(trace, trace.calls[_maker(trace, trace.output)])}
    for made, tensor in reversed(outputs):
        grid = as_grid(tensor, image)
        if grid is None:
            continue
        site = _module_site(trace, layer, made, tensor)
        if made not in on_path:
            raise AdvCAMError(f"the output of layer {layer!r} does not reach the logits")
        note = f"layer {layer!r} is not the tensor that is pooled" + (f": that is {pooled!r}" if pooled else "")
        return _finish(trace, grid, (made, tensor), site, "chosen layer", "none", Reason.CHOSEN_LAYER, note)
    shapes = ", ".join(str(tuple(t.shape)) for _, t in outputs)
    raise AdvCAMError(f"the output of layer {layer!r}, {shapes}, is no grid of features over the image")
