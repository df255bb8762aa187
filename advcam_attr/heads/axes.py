"""Positions: where in the image the entries of each tensor of a trace come from.

Every tensor is followed with the image coordinates of its entries, through the calls that the forward made. Calls that
only move entries (views, permutations, slices, concatenations, ...) are repeated on the coordinates themselves, so that
class tokens, windows and transposed orders come out right whatever the sizes are; products and reductions keep the
coordinates of the axes that they keep; convolutions, pools and resizes spread them over the new size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.heads.coordinates import (
    Coordinates,
    Grid,
    Positions,
    arrange,
    average,
    close,
    finest,
    grid_of,
    merge,
    pixels,
    resample,
    same_cells,
    varying,
    within_cells,
)
from advcam_attr.heads.trace import Call, Trace, replaced, tensors_in

_MOVES = {
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "squeeze_", "unsqueeze",
    "unsqueeze_", "permute", "transpose", "transpose_", "swapaxes", "swapdims", "t", "movedim", "moveaxis", "adjoint",
    "__get__", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "chunk", "unsafe_chunk",
    "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "unbind", "__getitem__", "select", "narrow",
    "index_select", "gather", "take_along_dim", "stack", "hstack", "vstack", "dstack", "unfold", "diagonal", "rot90",
    "channel_shuffle", "native_channel_shuffle", "pixel_unshuffle", "scatter", "index_copy", "slice_scatter",
}  # fmt: skip
_MOVES_IN_PLACE_OF_AXES = {"roll", "flip", "fliplr", "flipud"}
_JOINS = {"cat", "concat", "concatenate"}
_LINEARS = {"linear", "lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"}
_MATRIX_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "baddbmm", "addmm"}
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "var_mean", "std_mean", "norm", "vector_norm",
    "logsumexp", "median", "nanmean", "nansum", "argmax", "argmin", "aminmax", "any", "all", "count_nonzero", "topk",
    "kthvalue", "quantile", "mode",
}  # fmt: skip
_SCRAMBLES = {
    "sort",
    "argsort",
    "msort",
    "tensordot",
    "inner",
    "kron",
    "chain_matmul",
    "multi_dot",
    "bilinear",
    "addbmm",
}
_OF_THE_FIRST = {"to", "type_as"}
_BROADCASTS = {
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "rdiv", "truediv", "rtruediv",
    "itruediv", "pow", "rpow", "where", "maximum", "minimum", "lerp", "addcmul", "addcdiv",
}  # fmt: skip
_WINDOWS = re.compile(r"(?:.*_)?(?:conv|pool)(?:_transpose)?([123])d(?:_.*)?$")
_RESIZES = {"interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample", "pixel_shuffle"}
#: Calls known to read all positions: where one ends the grid, the reason is clear, and the grid before it is used.
REDUCERS = _REDUCTIONS | _LINEARS | _SCRAMBLES


class Axes:
    """The positions of every tensor of a trace.

    Attributes:
        lost: names of calls after which positions cannot be followed, by the ``id`` of what they made.
    """

    def __init__(self, trace: Trace) -> None:
        self._known: dict[int, Positions] = {id(trace.image): pixels(*trace.image.shape[2:])}
        self.lost: dict[int, str] = {}
        with torch.no_grad():
            for call in trace.calls:
                self._follow(call)

    def __getitem__(self, tensor: Tensor) -> Positions:
        return self._known.get(id(tensor), ())

    def spread(self, tensor: Tensor) -> bool:
        """Whether the tensor holds more than one position of the image."""
        return bool(self[tensor])

    def grid(self, tensor: Tensor) -> Grid | None:
        """Return the tensor as features over the image; None where it has no single grid, or several."""
        positions = self[tensor]
        return grid_of(positions[0], tuple(tensor.shape)) if positions and len(positions) == 1 else None

    def directions(self, tensor: Tensor | None) -> set[str]:
        """The sides of the image along which the tensor's positions vary: h, w, both or none."""
        found = set()
        for z in (self[tensor] or ()) if tensor is not None else ():
            found |= {side for side, part in (("h", z.real), ("w", z.imag)) if not close(part, part.flatten()[:1])}
        return found

    def _follow(self, call: Call) -> None:
        outs = list(tensors_in(call.out))
        given = {id(t): (t, self[t]) for t in tensors_in((call.args, call.kwargs)) if id(t) in self._known}
        if all(positions == () for _, positions in given.values()):
            found: list[Positions] = [()] * len(outs)
        else:
            try:
                found = _rule(call.name)(call, self, outs)
            except Exception:  # whatever cannot be repeated on coordinates cannot be followed
                found = [None] * len(outs)
        for out, positions in zip(outs, found, strict=True):
            if positions is None and id(out) not in self.lost:
                before = (self.lost[key] for key in given if key in self.lost and self._known[key] is None)
                self.lost[id(out)] = next(before, call.name)
            self._known[id(out)] = positions


Rule = Callable[[Call, Axes, list[Tensor]], list[Positions]]


def _rule(name: str) -> Rule:
    """The rule for the calls of one name."""
    window = _WINDOWS.match(name)
    if name in _JOINS:
        return _join
    if name in _MOVES:
        return _move
    if window or name in _RESIZES:
        return lambda call, axes, outs: _window(call, axes, outs, int(window[1]) if window else None)
    rules: list[tuple[set[str], Rule]] = [
        (_MOVES_IN_PLACE_OF_AXES, _turn), (_LINEARS, _linear), (_MATRIX_PRODUCTS, _matrix_product),
        (_REDUCTIONS, _reduction), ({"einsum"}, _einsum), ({"scaled_dot_product_attention"}, _attention),
        ({"pad"}, _pad), ({"fold"}, _fold), ({"__setitem__"}, _assign),
        (_SCRAMBLES, lambda _call, _axes, outs: [None] * len(outs)),
    ]  # fmt: skip
    return next((rule for names, rule in rules if name in names), _unknown if "fft" in name else _elementwise)


def source_of(call: Call) -> Tensor:
    """The first tensor argument, of a call that has one."""
    assert call.source is not None
    return call.source


def _unknown(_call: Call, _axes: Axes, outs: list[Tensor]) -> list[Positions]:
    return [None] * len(outs)


def _repeated(call: Call, known: dict[int, Tensor], *more: Any) -> list[Coordinates]:
    """The call with coordinates in place of its tensors but indices; ``more`` replaces its last arguments."""
    args = (*call.args[: len(call.args) - len(more)], *more)
    indices = {id(t): t.cpu() for t in tensors_in((args, call.kwargs)) if not _is_number(t)}
    return list(tensors_in(call.func(*replaced(args, indices | known), **replaced(call.kwargs, indices | known))))


def _is_number(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _slots(call: Call, axes: Axes) -> list[dict[int, Coordinates]]:
    """For each of the call's positions, coordinates of all of its tensors, expanded to their shapes."""
    tensors = [t for t in tensors_in((call.args, call.kwargs)) if _is_number(t)]
    positions = [axes[t] for t in tensors]
    if all(not p for p in positions):
        raise LookupError(call.name)
    count = max(len(p or ()) for p in positions)
    nothing = torch.zeros((), dtype=torch.complex128, device="cpu")
    return [
        {
            id(t): (p[slot] if p and slot < len(p) else nothing).expand(t.shape)
            for t, p in zip(tensors, positions, strict=True)
        }
        for slot in range(count)
    ]


def _gathered(found: Sequence[list[Coordinates]], outs: list[Tensor]) -> list[Positions]:
    """The positions of each output, from the coordinates of all outputs in each slot."""
    for slot in found:
        if [z.shape for z in slot] != [t.shape for t in outs] or not all(z.is_complex() for z in slot):
            return [None] * len(outs)
    return [merge([slot[i] for slot in found]) for i in range(len(outs))]


def _move(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    slots = _slots(call, axes)
    if call.name in ("view", "view_as"):  # coordinates need not be contiguous where the tensor was
        return _gathered([[known[id(source_of(call))].reshape(outs[0].shape)] for known in slots], outs)
    return _gathered([_repeated(call, known) for known in slots], outs)


def _turn(call: Call, axes: Axes, _outs: list[Tensor]) -> list[Positions]:
    """Rolls and flips leave an axis along which nothing varies as it is."""
    positions = axes[source_of(call)]
    if positions is None or (call.name == "roll" and len(call.args) < 3 and "dims" not in call.kwargs):
        return [None]
    return [merge([_repeated(call, {id(call.source): z})[0] for z in positions])]


def _assign(call: Call, axes: Axes, _outs: list[Tensor]) -> list[Positions]:
    found = []
    for known in _slots(call, axes):
        target = known[id(call.out)].clone()
        value = () if isinstance(call.args[-1], Tensor) else (0,)
        _repeated(call, known | {id(call.out): target}, *value)
        found.append(target)
    return [merge(found)]


def _pad(call: Call, axes: Axes, _outs: list[Tensor]) -> list[Positions]:
    source = source_of(call)
    widths = call.kwargs.get("pad", call.args[1] if len(call.args) > 1 else None)
    assert widths is not None
    padded = {source.ndim - 1 - i // 2 for i, width in enumerate(widths) if width}
    found = []
    for z in axes[source] or ():
        whole = z.expand([source.shape[a] if a in padded else size for a, size in enumerate(z.shape)])
        found.append(F.pad(whole, widths) if padded else z)
    return [merge(found)]


def _fold(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    """Overlapping patches: the mean of the positions that are summed."""
    found = []
    for known in _slots(call, axes):
        summed = _repeated(call, known)[0]
        count = _repeated(call, {key: (z != 0).to(z.dtype) for key, z in known.items()})[0]
        found.append([summed / count.real.clamp_min(1)])
    return _gathered(found, outs)


def _join(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    """Concatenations, without the axes along which nothing varies."""
    tensors = list(tensors_in((call.args, call.kwargs)))
    positions = [axes[t] or () for t in tensors]
    dim = call.kwargs.get("dim", call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else 0))
    axis = int(dim) % outs[0].ndim
    found = []
    for slot in range(max(map(len, positions))):
        given = {id(p[slot]): p[slot] for p in positions if slot < len(p)}
        if axis not in set().union(*map(varying, given.values())):
            cells = same_cells(list(given.values()))
            if cells is not None:
                found.append(cells)
                continue
        nothing = torch.zeros([1] * outs[0].ndim, dtype=torch.complex128, device="cpu")
        parts = [p[slot] if slot < len(p) else nothing for p in positions]
        sizes = [max(z.shape[a] for z in parts) for a in range(outs[0].ndim)]
        whole = [
            z.expand([t.shape[a] if a == axis else size for a, size in enumerate(sizes)])
            for z, t in zip(parts, tensors, strict=True)
        ]
        found.append(torch.cat(whole, axis))
    return [merge(found) if found else None]


def _by_axes(given: Sequence[tuple[Positions, Sequence[int | None]]]) -> Positions:
    """Positions of an output from those of each operand, with the output's axes as the operand's."""
    if any(positions is None for positions, _ in given):
        return None
    return merge([arrange(z, kept) for positions, kept in given for z in positions or ()])


def _linear(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    """Calls over the last axis; what a recurrent net or an attention returns besides is not followed."""
    source = source_of(call)
    first = axes[source]
    if first is not None and any(z.shape[-1] > 1 for z in first):
        first = _by_axes([(first, [*range(source.ndim - 1), None])])
    return [first, *[None] * (len(outs) - 1)]


def _matrix_product(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    *_, a, b = tensors_in((call.args, call.kwargs))
    if call.name == "__rmatmul__":
        a, b = b, a
    ndim = max(a.ndim, b.ndim)
    batch = ndim - 2

    def leading(t: Tensor) -> list[int | None]:
        return (
            [axis if axis >= 0 else None for axis in range(t.ndim - ndim, t.ndim - 2)] if t.ndim > 1 else [None] * batch
        )

    rows = [a.ndim - 2] if a.ndim > 1 else []
    columns = [b.ndim - 1] if b.ndim > 1 else []
    return [
        _by_axes(
            [
                (axes[a], [*leading(a), *rows, *[None for _ in columns]]),
                (axes[b], [*leading(b), *[None for _ in rows], *columns]),
            ]
        )
    ]


def _attention(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    query, _key, value = [*tensors_in((call.args, call.kwargs))][:3]
    batch = list(range(query.ndim - 2))
    last = query.ndim - 1
    return [_by_axes([(axes[query], [*batch, last - 1, None]), (axes[value], [*batch, None, last])])]


def _einsum(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    inputs, result = call.args[0].replace(" ", "").split("->")
    tensors = list(tensors_in(call.args[1:]))

    def letters(term: str, ndim: int) -> list[str]:
        before, dots, after = term.partition("...")
        dims = ndim - len(before) - len(after)
        return [*before, *[f"{dims - i}" for i in range(dims if dots else 0)], *after]

    wanted = letters(result, outs[0].ndim)
    given = []
    for term, tensor in zip(inputs.split(","), tensors, strict=True):
        own = letters(term, tensor.ndim)
        given.append((axes[tensor], [own.index(letter) if letter in own else None for letter in wanted]))
    return [_by_axes(given)]


def _one_cell(z: Coordinates, kept: Sequence[int | None]) -> bool:
    """Whether a reduction leaves places within one cell only (as of unshuffled pixels)."""
    cells = average(z, [axis for axis in kept if axis is not None])
    left = average(z, [axis for axis in range(z.ndim) if axis not in kept])
    return within_cells(left - average(left, range(z.ndim)), cells)


_SIZES = (1009, 1013, 1019, 1021, 1031, 1033, 1039)


def _reduction(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    """Reductions keep the axes that they keep of a tensor whose axes differ in size."""
    if sum(1 for _ in tensors_in((call.args, call.kwargs))) > 1:
        return _elementwise(call, axes, outs)
    positions = axes[source_of(call)]
    if positions is None:
        return [None] * len(outs)
    return [merge([arrange(z, kept) for z in positions if not _one_cell(z, kept)]) for kept in axes_kept(call)]


def axes_kept(call: Call) -> list[list[int | None]]:
    """For each output of a reduction, the axes of its source in the output's order, None for those of size 1."""
    source = source_of(call)
    sizes = _SIZES[: source.ndim]
    known = {id(source): torch.empty(sizes, device="meta", dtype=source.dtype)}
    made = tensors_in(call.func(*replaced(call.args, known), **replaced(call.kwargs, known)))
    return [[sizes.index(size) if size in sizes else None for size in t.shape] for t in made]


def _window(call: Call, axes: Axes, outs: list[Tensor], spatial: int | None) -> list[Positions]:
    source = source_of(call)
    positions = axes[source]
    if positions is None or source.ndim != outs[0].ndim:
        return [None] * len(outs)
    count = source.ndim - 2 if spatial is None else spatial
    channel = source.ndim - count - 1
    if call.name == "pixel_shuffle" and any(channel in varying(z) for z in positions):
        return _move(call, axes, outs)
    found = []
    for z in positions:
        if "conv" in call.name:
            z = average(z, [channel])
        for axis in range(channel + 1, source.ndim):
            z = resample(z, axis, source.shape[axis], outs[0].shape[axis])
        found.append(z)
    moved = any(z is not before for z, before in zip(found, positions, strict=True))
    return [merge(found) if moved else positions] * len(outs)


def _elementwise(call: Call, axes: Axes, outs: list[Tensor]) -> list[Positions]:
    """Calls that keep the shape of their tensors keep their positions."""
    given = [(t, axes[t]) for t in tensors_in((call.args, call.kwargs)) if axes[t] != ()]
    given = given[:1] if call.name in _OF_THE_FIRST else given
    result: list[Positions] = []
    for out in outs:
        loose = [out.shape] if call.name.strip("_") in _BROADCASTS else []
        try:
            fits = torch.broadcast_shapes(*(t.shape for t, _ in given), *loose) == out.shape
        except RuntimeError:
            fits = False
        found = [
            z.reshape((1,) * (out.ndim - z.ndim) + z.shape) for _, p in given if fits for z in p or ()
        ]  # a part whose positions were lost takes those of the other, as in x + f(x)
        result.append(finest(found) if found else None)
    return result
