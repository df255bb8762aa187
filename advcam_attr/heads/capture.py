"""Capture of tensors in a forward, and of a model's mode around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advcam_attr.heads.head import Site
from advcam_attr.heads.trace import Path, function_name, replaced, tensors_in
from advcam_attr.heads.weights import Tail, TailCall


class Capture(TorchFunctionMode):
    """Records the mapped tensor of a forward, the calls from its pooling to the logits, and the taps.

    Args:
        site: of the mapped tensor.
        taps: sites of other tensors by name.
        cut: whether the autograd graph begins at the mapped tensor; nothing before it is stored.
        pool: of the pooled vector, if several calls make it of the mapped tensor.
    """

    def __init__(self, site: Site, taps: Mapping[str, Site], cut: bool = False, pool: Site | None = None) -> None:
        super().__init__()
        self.cut, self.pool = cut, pool
        self.site, self.sites = site, taps
        self.tapped: dict[str, Tensor] = {}
        self.path = Path()
        self.raw: Tensor | None = None
        self.pooled: tuple[Tensor, Tensor] | None = None  # and its value before other calls
        self._calls: list[TailCall] = []
        self._after: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        call = name, self.path.add(name)
        before = self.raw is None
        side = self.site.side if before and call == (self.site.name, self.site.occurrence) else None
        if side == "input":
            args, kwargs = self._take((args, kwargs))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.cut and self.raw is None)):
            out = func(*args, **kwargs)
        if side == "input" if self.pool is None else call == (self.pool.name, self.pool.occurrence):
            self.pooled, self._after = (out, out.detach().clone()), {id(out): out}
        if side == "output":
            out = self._take(out, in_place=any(t is next(iter(tensors_in(out))) for t in tensors_in((args, kwargs))))
        for tap, site in self.sites.items():
            if (site.name, site.occurrence) == call:
                self.tapped[tap] = _kept(next(iter(tensors_in(out))), site)
        if not before and any(id(t) in self._after for t in tensors_in((args, kwargs))):
            result = args[0] if name == "__setitem__" else out
            self._calls += [TailCall(func, name, args, kwargs, result)] if any(True for _ in tensors_in(result)) else []
            self._after.update((id(t), t) for t in tensors_in(result))
        return out

    def tail(self, logits: Tensor) -> Tail | None:
        """Return the calls from the pooled vector to the logits, if it was pooled."""
        return None if self.pooled is None else Tail(*self.pooled, tuple(self._calls), logits)

    def _take(self, value: Any, in_place: bool = False) -> Any:
        """Take the first tensor of a call's arguments or result as the mapped one; return what the net goes on with."""
        tensor = next(iter(tensors_in(value)))
        if not self.cut:
            self.raw = _kept(tensor, self.site)
            return value
        self.raw = _beginning(tensor)
        if in_place and not tensor._is_view():
            with torch.enable_grad():
                tensor.copy_(self.raw)
            return value
        return replaced(value, {id(tensor): self.raw.clone() if self.site.overwritten else self.raw})


def _kept(tensor: Tensor, site: Site) -> Tensor:
    """Return the tensor as it is now, on its graph: one that the net overwrites goes on as a copy of it."""
    if not site.overwritten:
        return tensor
    now = tensor.clone()
    tensor.copy_(now)
    return now


def _beginning(tensor: Tensor) -> Tensor:
    """Return the start of a graph; no leaf, so that the net may change it in place."""
    return tensor.detach().requires_grad_().clone()


_LOCK = threading.RLock()
#: For each model in use, how many blocks hold it in eval mode, and which modules were training before the first.
_HELD: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


class undisturbed:
    """A block in which the model is in eval mode and autograd is on; both are restored afterwards.

    Threads that share a model share its mode: the last to leave restores what the first one found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        with _LOCK:
            holders, training = _HELD.get(self.model, (0, []))
            if not holders:
                training = [module for module in self.model.modules() if module.training]
                for module in training:
                    module.training = False
            _HELD[self.model] = holders + 1, training
        self._grad = torch.inference_mode(False), torch.enable_grad()
        for context in self._grad:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._grad):
            context.__exit__(*error)
        with _LOCK:
            holders, training = _HELD.pop(self.model)
            if holders > 1:
                _HELD[self.model] = holders - 1, training
                return
            for module in training:
                module.training = True
