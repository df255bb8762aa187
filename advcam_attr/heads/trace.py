"""One forward of a classifier in; the list of tensor operations it made, and who made each tensor, out.

Tracing happens on the level of ``torch`` functions (`torch.overrides.TorchFunctionMode`): every call that
Python code makes is seen, functional or from a module, in place or not, on real and on meta tensors.
No hook and no copy of the model is needed, so the same mechanism finds a tensor again in later forwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

#: Calls whose result does not depend on the values of their tensor argument.
_VALUE_FREE = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"}


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    """Nested lists, tuples and dicts with one tensor in the place of another."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        return {key: exchanged(item, old, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [exchanged(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def function_name(func: Callable[..., Any]) -> str:
    """The plain name of a torch function: ``mean`` for ``Tensor.mean`` and ``torch.mean`` alike."""
    return str(getattr(func, "__name__", type(func).__name__))


@dataclass(frozen=True)
class Call:
    """One torch function call of the forward.

    Attributes:
        index: its place in the trace.
        func: the function.
        name: the function's plain name.
        occurrence: how many calls of this name came before it; with the name, it finds the call again.
        args, kwargs: what it was called with.
        out: what it returned (for an item assignment, the tensor that changed).
        parents: the calls that made its image-dependent arguments; -1 is the image itself.
    """

    index: int
    func: Callable[..., Any]
    name: str
    occurrence: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    parents: tuple[int, ...]

    @property
    def source(self) -> Tensor | None:
        """The first tensor argument."""
        return next(iter(tensors_in((self.args, self.kwargs))), None)


@dataclass
class Trace:
    """A recorded forward.

    Attributes:
        image: the tensor the model was called with.
        calls: every call that depends on the image, in order.
        output: what the model returned.
        emitters: for each module name, the calls that had made its outputs when it returned.
        producer: by ``id``, the index of the latest call that made or changed a tensor.
    """

    image: Tensor
    calls: list[Call] = field(default_factory=list)
    producer: dict[int, int] = field(default_factory=dict)
    emitters: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    output: Any = None

    def made_by(self, tensor: Tensor) -> int | None:
        """The index of the call that made ``tensor``, -1 for the image, None for constants and parameters."""
        return self.producer.get(id(tensor))

    def emitter_of(self, tensor: Tensor) -> str | None:
        """The outermost module that returned ``tensor``, or None."""
        names = [name for name, outs in self.emitters.items() if any(out is tensor for _, out in outs)]
        return min(names, key=lambda name: (name.count("."), names.index(name)), default=None)


class _Recorder(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.counts: dict[str, int] = {}
        trace.producer[id(trace.image)] = -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, trace = function_name(func), self.trace
        made = (trace.producer.get(id(t)) for t in tensors_in((args, kwargs)))
        parents = () if name in _VALUE_FREE else tuple(dict.fromkeys(p for p in made if p is not None))
        out = func(*args, **kwargs)
        occurrence = self.counts[name] = self.counts.get(name, -1) + 1
        result = args[0] if name == "__setitem__" else out
        made_now = list(tensors_in(result))
        if not parents or not made_now:
            return out
        trace.calls.append(Call(len(trace.calls), func, name, occurrence, args, kwargs, result, parents))
        for tensor in made_now:
            trace.producer[id(tensor)] = trace.calls[-1].index
        return out


def record(model: nn.Module, image: Tensor, *extra: Any) -> Trace:
    """Run ``model(image, *extra)`` once without gradients and record what it does.

    All intermediate tensors live as long as the trace does: pass one image, and let go of the trace.

    Args:
        model: any module in eager mode; meta tensors will do.
        image: ``(1, C, H, W)``.
        *extra: further arguments of the forward.
    """
    # Aliases are told apart from the caller's tensor: the recorder knows tensors by identity.
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
