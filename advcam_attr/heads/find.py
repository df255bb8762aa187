"""Search for the classifier head in a traced forward.

If the logits' reduction is a mean over a grid, and nothing else of the image reaches them, its input is the tensor to
map, and the operations of the tail decide whether the class weights are exact. Otherwise there is no class activation
map, and the search continues to the last grid on which Grad-CAM works.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from advcam_attr.heads.axes import REDUCERS, Axes
from advcam_attr.heads.coordinates import Grid
from advcam_attr.heads.head import Exactness, Head, Reason
from advcam_attr.heads.pooling import MIXERS, PRODUCTS, SELECTIONS, Reduction, ancestors, find_reduction, maker
from advcam_attr.heads.trace import RESHAPES, Call, Site, Trace, tail_effects, tensors_in
from advcam_attr.types import AdvCAMError

_RESIDUAL = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "add", "add_", "__add__", "__iadd__", "cat"}


def _kind(layout: str, tail: tuple[Call, ...], others: int) -> tuple[str, Exactness, Reason]:
    effects = tail_effects(tail)
    names = [c.name for c in tail if c.name not in RESHAPES and "dropout" not in c.name]
    where = "token mean" if "L" in layout else f"{layout} mean"
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
    pool: Site | None = None,
) -> Head:
    height, width = trace.image.shape[2:]
    h, w = grid.grid
    return Head(
        kind, exactness, trace.emitter_of(*mapped), grid.layout, grid.grid, grid.channels, trace.output.shape[1],
        (height / h, width / w), grid.prefix, reason, note or reason.value, site, pool, grid.order,
    )  # fmt: skip


def _grad_cam_grid(trace: Trace, axes: Axes, logits: Tensor, reduction: Reduction) -> tuple[Grid, Call]:
    """The last call whose result is over the grid and through which every position still reaches the logits.

    After the last attention before a class token only the token's position has an effect: the search starts before the
    last call that mixes positions.
    """
    if reduction.reason is Reason.WEIGHTED:
        for call in _passages(trace, trace.calls[maker(trace, logits)]):
            features = isinstance(call.out, Tensor) and call.name not in RESHAPES | {"linear"}  # keys and values
            if features and (grid := axes.grid(call.out)):
                return grid, call
    of_token = reduction.reason is Reason.CLASS_TOKEN
    mixer = _last_mixer(trace, axes, trace.calls[maker(trace, logits)], reduction.call, of_token)
    if mixer is not None:
        attention = mixer.name in MIXERS | PRODUCTS
        makers = [trace.calls[p] for p in mixer.parents if p >= 0 and not attention]
        for call in [*sorted(makers, key=lambda c: -c.index), *ancestors(trace, mixer)]:
            grid = axes.grid(call.out) if isinstance(call.out, Tensor) else None
            if grid is not None and not _is_flattening(call, axes) and (not attention or call.name in _RESIDUAL):
                return grid, call
    raise AdvCAMError(
        f"no grid of features over the image was found ({reduction.note}): "
        "pass layer= the module whose output has one, shaped (N, C, h, w), (N, h, w, C) or (N, tokens, C)"
    )


def _passages(trace: Trace, end: Call) -> Iterator[Call]:
    """The calls through which everything passes from the image to the end, the last first."""
    earliest = end.index
    for call in [end, *ancestors(trace, end)]:
        if earliest >= call.index:
            yield call
        earliest = min(earliest, *call.parents)


def _is_flattening(call: Call, axes: Axes) -> bool:
    source = call.source
    flattens = call.name in RESHAPES and source is not None and call.out.ndim < source.ndim
    return flattens and source is not None and axes.grid(source) is not None


def _last_mixer(trace: Trace, axes: Axes, start: Call, reduction: Call, of_token: bool) -> Call | None:
    """The latest call that mixes the grid's positions (with a class token, if that is read)."""
    calls = [start, *ancestors(trace, start)]
    attention = [c for c in calls if c.name in MIXERS or (c.name in PRODUCTS and len(c.parents) > 1)]
    if of_token and attention:
        return attention[0]
    for call in calls:
        if call in attention:
            return call
        source = call.source
        if (
            source is None
            or not isinstance(call.out, Tensor)
            or axes.grid(source) is None
            or call.index > reduction.index
        ):
            continue
        collapses = call is reduction or (not axes.spread(call.out) and call.name not in SELECTIONS)
        kernel = call.args[1].shape[2:] if call.name == "conv2d" and len(call.args) > 1 else ()
        resizes = call.out.ndim == source.ndim == 4 and call.out.shape[2:] != source.shape[2:]
        if collapses or "max" in call.name or any(size > 1 for size in kernel) or resizes:
            return call
    return None


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
    logits, axes = logits_of(trace.output), Axes(trace)
    if layer is None:
        return _found(trace, logits, axes)[0]
    try:
        found, pooled = _found(trace, logits, axes)
    except AdvCAMError:  # a chosen layer needs a grid and a gradient, whatever the logits are made of
        return _override(trace, axes, layer, None)
    if pooled is not None and any(m == pooled[0] and t is pooled[1] for m, t in trace.emitters.get(layer, [])):
        return found
    return _override(trace, axes, layer, None if pooled is None else found.layer)


def _found(trace: Trace, logits: Tensor, axes: Axes) -> tuple[Head, tuple[int, Tensor] | None]:
    """The head, and the pooled tensor with the call that made it, if it is pooled by a mean."""
    reduction = find_reduction(trace, axes, logits)
    first, last, grid = reduction.first, reduction.call, reduction.grid
    if grid is not None and first.source is not None:
        kind, exactness, reason = _kind(grid.layout, reduction.tail, reduction.others)
        note = reason.value
        if reason is Reason.SEVERAL_POOLS:
            note = note.replace("other pooled", f"{reduction.others} other pooled")
        pooled = trace.maker_of_source(first), first.source
        site, pool = trace.site(first, "input"), None if first is last else trace.site(last, "output")
        return _finish(trace, grid, pooled, site, kind, exactness, reason, note, pool), pooled
    lost = next((axes.lost[id(t)] for t in tensors_in(last.out) if axes[t] is None), None)
    if lost is not None and lost not in REDUCERS:
        raise AdvCAMError(f"positions in the image cannot be followed through {lost!r}: pass layer= a module before it")
    reason = reduction.reason or Reason.OTHER
    grid, call = _grad_cam_grid(trace, axes, logits, reduction)
    made, site = (call.index, call.out), trace.site(call, "output")
    return _finish(trace, grid, made, site, "no class activation map", "none", reason, reduction.note), None


def _outputs(trace: Trace, layer: str) -> list[tuple[int, Tensor]]:
    outputs = trace.emitters.get(layer)
    if not outputs:
        raise AdvCAMError(f"layer {layer!r} is not used in the forward of this model (or returns nothing of the image)")
    return outputs


def layers_to_pool(trace: Trace, count: int = 6) -> list[str]:
    """Return the outermost layers whose output is a grid that reaches the logits, the last first."""
    axes = Axes(trace)
    names: list[str] = []
    for call in ancestors(trace, trace.calls[maker(trace, trace.output)]):
        if isinstance(call.out, Tensor) and axes.grid(call.out) is not None:
            names += [name] if (name := trace.emitter_of(call.index, call.out)) and name not in names else []
    return sorted(names, key=lambda name: name.count("."))[:count]


def output_site(trace: Trace, layer: str) -> Site:
    """Return the site of a module's last output."""
    return _module_site(trace, layer, *_outputs(trace, layer)[-1])


def _module_site(trace: Trace, layer: str, made: int, tensor: Tensor) -> Site:
    if made < 0 or next(iter(tensors_in(trace.calls[made].out))) is not tensor:
        raise AdvCAMError(f"the output of layer {layer!r} is the image, or one of several of one call; name another")
    return trace.site(trace.calls[made], "output")


def _override(trace: Trace, axes: Axes, layer: str, pooled: str | None) -> Head:
    outputs = _outputs(trace, layer)
    on_path = {c.index for c in ancestors(trace, trace.calls[maker(trace, trace.output)])}
    for made, tensor in reversed(outputs):
        grid = axes.grid(tensor)
        if grid is None:
            continue
        site = _module_site(trace, layer, made, tensor)
        if made not in on_path:
            raise AdvCAMError(f"the output of layer {layer!r} does not reach the logits")
        note = f"layer {layer!r} is not the tensor that is pooled" + (f": that is {pooled!r}" if pooled else "")
        return _finish(trace, grid, (made, tensor), site, "chosen layer", "none", Reason.CHOSEN_LAYER, note)
    lost = next((axes.lost[id(t)] for _, t in outputs if axes[t] is None), None)
    if lost is not None:
        raise AdvCAMError(
            f"positions in the image cannot be followed through {lost!r} to the output of layer {layer!r}; "
            "name a layer before it"
        )
    shapes = ", ".join(str(tuple(t.shape)) for _, t in outputs)
    raise AdvCAMError(f"the output of layer {layer!r}, {shapes}, is no grid of features over the image")
