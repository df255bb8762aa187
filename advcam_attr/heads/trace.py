"""Trace of a forward: its torch function calls, and which of them made each tensor.

Calls are recorded by `torch.overrides.TorchFunctionMode`: functional or from a module, in place or not, on real and on
meta tensors, without hooks or copies of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

#: Calls whose result does not depend on the values of their tensor argument.
_VALUE_FREE = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"}


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Yield every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def replaced(value: Any, known: Mapping[int, Any]) -> Any:
    """Replace tensors in nested lists, tuples and dicts by those that ``known`` has under their ``id``."""
    if isinstance(value, Tensor):
        return known.get(id(value), value)
    if isinstance(value, Mapping):
        return {key: replaced(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [replaced(item, known) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def function_name(func: Callable[..., Any]) -> str:
    """Return ``mean`` for both ``Tensor.mean`` and ``torch.mean``."""
    return str(getattr(func, "__name__", type(func).__name__))


@dataclass
class Path:
    """The names of a forward's calls, in order, as a number."""

    digest: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str) -> int:
        """Add a call and return how many of its name came before it."""
        if name != "__get__":  # attributes, which code may read more or less often
            self.digest = hash((self.digest, name))
        self._counts[name] = self._counts.get(name, -1) + 1
        return self._counts[name]


@dataclass(frozen=True)
class Call:
    """One torch function call of the forward.

    Attributes:
        occurrence: how many calls of this name came before it; with the name, it identifies the call.
        out: its result (for an item assignment, the tensor that changed).
        parents: the calls that made its image-dependent arguments; -1 is the image itself.
        versions: of its first tensor argument before the call, and of its first result after it.
    """

    index: int
    func: Callable[..., Any]
    name: str
    occurrence: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    parents: tuple[int, ...]
    versions: tuple[int, int] = (0, 0)

    @property
    def source(self) -> Tensor | None:
        """The first tensor argument."""
        return next(iter(tensors_in((self.args, self.kwargs))), None)


@dataclass(frozen=True)
class Site:
    """The place of a tensor in any forward: the n-th call of a function, and its input or output.

    Attributes:
        overwritten: whether the tensor is changed in place afterwards.
    """

    name: str
    occurrence: int
    side: Literal["input", "output"]
    overwritten: bool = False


@dataclass
class Trace:
    """A recorded forward.

    Attributes:
        calls: all calls that depend on the image, in order.
        emitters: the outputs of each module, by name, with the calls that made them.
        producer: by ``id``, the index of the latest call that made or changed a tensor.
        path: of all its calls, those included that do not depend on the image.
    """

    image: Tensor
    calls: list[Call] = field(default_factory=list)
    producer: dict[int, int] = field(default_factory=dict)
    emitters: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    output: Any = None
    path: Path = field(default_factory=lambda: Path())

    def made_by(self, tensor: Tensor) -> int | None:
        """Return the index of the call that made ``tensor``, -1 for the image, None for constants and parameters."""
        return self.producer.get(id(tensor))

    def emitter_of(self, made: int, tensor: Tensor) -> str | None:
        """Return the outermost module that returned ``tensor`` as call ``made`` left it, or None."""
        names = [name for name, outs in self.emitters.items() if any(m == made and t is tensor for m, t in outs)]
        return min(names, key=lambda name: (name.count("."), names.index(name)), default=None)

    def maker_of_source(self, call: Call) -> int:
        """Return the latest call before ``call`` that made or changed its source; -1 is the image."""
        earlier = reversed(self.calls[: call.index])
        return next((c.index for c in earlier if any(t is call.source for t in tensors_in(c.out))), -1)

    def site(self, call: Call, side: Literal["input", "output"]) -> Site:
        """Return where the first argument or result of ``call`` is found in any forward."""
        tensor = call.source if side == "input" else next(iter(tensors_in(call.out)))
        assert tensor is not None
        overwritten = _version(tensor) != call.versions[side == "output"]
        return Site(call.name, call.occurrence, side, overwritten)


def _version(tensor: Tensor | None) -> int:
    """The number of changes in place of a tensor or any view of it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


class _Recorder(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        trace.producer[id(trace.image)] = -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, trace = function_name(func), self.trace
        made = (trace.producer.get(id(t)) for t in tensors_in((args, kwargs)))
        parents = () if name in _VALUE_FREE else tuple(dict.fromkeys(p for p in made if p is not None))
        before = _version(next(iter(tensors_in((args, kwargs))), None))
        out = func(*args, **kwargs)
        occurrence = trace.path.add(name)
        result = args[0] if name == "__setitem__" else out
        made_now = list(tensors_in(result))
        if not parents or not made_now:
            return out
        versions = before, _version(made_now[0])
        trace.calls.append(Call(len(trace.calls), func, name, occurrence, args, kwargs, result, parents, versions))
        for tensor in made_now:
            trace.producer[id(tensor)] = trace.calls[-1].index
        return out


def record(model: nn.Module, image: Tensor, *extra: Any) -> Trace:
    """Run ``model(image, *extra)`` once without gradients and record its calls.

    All intermediate tensors live as long as the trace.

    Args:
        model: any module in eager mode; meta tensors suffice.
        image: ``(1, C, H, W)``.
        *extra: further arguments of the forward.
    """
    # a copy, because the recorder identifies tensors by id
    trace = Trace(image=image.detach().clone())
    names = {module: name for name, module in model.named_modules()}
    thread = threading.get_ident()

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread and module in names:
            outs = [(made, t) for t in tensors_in(output) if (made := trace.made_by(t)) is not None]
            trace.emitters.setdefault(names[module], []).extend(outs)

    handle = register_module_forward_hook(note)
    try:
        with torch.no_grad(), _Recorder(trace):
            trace.output = model(trace.image, *extra)
    finally:
        handle.remove()
    return trace


def is_vector(tensor: Tensor) -> bool:
    """Whether a tensor holds one number per channel and no grid."""
    return sum(size > 1 for size in tensor.shape[1:]) <= 1


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
#: Calls that make the scale of a norm written out by hand.
_SCALING = {"var", "std", "rsqrt", "sqrt", "norm", "vector_norm"}
_SHIFTS = {"add", "__add__", "clamp", "clamp_min", "clamp_min_", "maximum", "reciprocal", *RESHAPES}


def scale_calls(calls: Sequence[Any]) -> set[int]:
    """Return the positions of calls in a tail that make the scale of a norm written out by hand.

    These are ``rsqrt``, ``var`` and their like if they feed, through sums and clamps, only products with another tensor
    of the tail: frozen, they make ``x * rsqrt(x.square().mean() + eps)`` an affine map of x.
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
            is_product(j, i) or (calls[j].name in _SCALING | _SHIFTS and feeds_products(j)) for j in users[i]
        )

    return {i for i, call in enumerate(calls) if call.name in _SCALING and feeds_products(i)}


def tail_effects(tail: tuple[Call, ...]) -> set[str]:
    """Return the effects of a tail's calls; those that only make the scale of a norm count as part of it."""
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
    """Whether only one factor of a product depends on the image (``x * x`` has one parent but two factors)."""
    factors = [t for t in tensors_in(call.args[:2]) if t is call.source]
    if call.name.startswith(("div", "true", "__truediv", "__itruediv")) and call.args[0] is not call.source:
        return False
    return len(factors) == 1
