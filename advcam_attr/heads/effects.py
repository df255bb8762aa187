"""The calls between the pooled vector and the logits in; whether they are affine, norms or non-linear, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advcam_attr.heads.grids import is_vector
from advcam_attr.heads.trace import Call, tensors_in

MEANS = {"mean", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "avg_pool1d"}
RESHAPES = {
    "flatten", "view", "reshape", "reshape_as", "view_as", "squeeze", "unsqueeze", "permute", "transpose", "t",
    "movedim", "contiguous", "clone", "to", "float", "type_as", "detach", "expand", "unflatten", "chunk", "split",
    "tensor_split", "unbind", "__getitem__", "select", "narrow", "cat", "concat", "stack", "rearrange", "identity",
}  # fmt: skip
_LINEAR = {
    "linear", "conv1d", "conv2d", "batch_norm", "addmm", "dropout", "dropout1d", "dropout2d", "alpha_dropout",
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "neg", "sum",
} | MEANS  # fmt: skip
_SCALINGS = {
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "true_divide", "__truediv__", "__itruediv__",
    "matmul", "__matmul__", "mm", "bmm",
}  # fmt: skip
NORMS = {"layer_norm", "rms_norm", "group_norm", "normalize"}
#: Calls that give a norm written out by hand its scale.
SCALES = {"var", "std", "rsqrt", "sqrt", "norm", "vector_norm"}
_SHIFTS = {"add", "__add__", "clamp", "clamp_min", "clamp_min_", "maximum", "reciprocal", *RESHAPES}


def scale_calls(calls: Sequence[Any]) -> set[int]:
    """The places in a tail of calls which make the scale of a norm that is written out by hand.

    That is, ``rsqrt``, ``var`` and their like where all that they feed, through sums and clamps, are products with
    another tensor of the tail: frozen, they make of ``x * rsqrt(x.square().mean() + eps)`` an affine map of x.

    Args:
        calls: with ``name``, ``args``, ``kwargs`` and ``out``, in order.
    """
    made = {id(t): i for i, call in enumerate(calls) for t in tensors_in(call.out)}
    users: dict[int, list[int]] = {}
    for i, call in enumerate(calls):
        for t in tensors_in((call.args, call.kwargs)):
            if made.get(id(t), i) < i:
                users.setdefault(made[id(t)], []).append(i)

    def is_product(i: int, factor: int) -> bool:
        call = calls[i]
        others = [t for t in tensors_in(call.args) if made.get(id(t)) != factor and is_vector(t) and t.ndim > 1]
        return call.name in _SCALINGS and bool(others)

    def feeds_products(i: int) -> bool:
        return bool(users.get(i)) and all(
            is_product(j, i) or (calls[j].name in SCALES | _SHIFTS and feeds_products(j)) for j in users[i]
        )

    return {i for i, call in enumerate(calls) if call.name in SCALES and feeds_products(i)}


def tail_effects(tail: tuple[Call, ...]) -> set[str]:
    """The effects of a tail's calls; what only makes up the scale of a norm counts as part of that norm."""
    frozen = {tail[i].index for i in scale_calls(tail)}
    users: dict[int, list[int]] = {}
    for call in tail:
        for parent in call.parents:
            users.setdefault(parent, []).append(call.index)
    inside = set(frozen)
    for call in reversed(tail):
        if users.get(call.index) and inside.issuperset(users[call.index]):
            inside.add(call.index)

    def effect(call: Call) -> str:
        if call.index in inside:
            return "norm"
        if call.name in _SCALINGS and sum(p not in inside for p in call.parents) == 1 and inside & set(call.parents):
            return "affine"
        return _tail_effect(call)

    return {effect(call) for call in tail}


def _tail_effect(call: Call) -> str:
    """How a call of the tail changes its vector: ``"affine"``, ``"norm"`` or ``"nonlinear"``."""
    if call.name in RESHAPES:
        return "affine"
    if call.name == "batch_norm":
        training = call.kwargs.get("training", call.args[5] if len(call.args) > 5 else False)
        return "nonlinear" if training else "affine"
    if call.name in _LINEAR:
        return "affine"
    if call.name in _SCALINGS:
        return "affine" if len(call.parents) == 1 and _one_image_argument(call) else "nonlinear"
    return "norm" if call.name in NORMS else "nonlinear"


def _one_image_argument(call: Call) -> bool:
    """Whether a product has one factor only that depends on the image (``x * x`` has one parent but two factors)."""
    factors = [t for t in tensors_in(call.args[:2]) if t is call.source]
    if call.name.startswith(("div", "true", "__truediv", "__itruediv")) and call.args[0] is not call.source:
        return False
    return len(factors) == 1
