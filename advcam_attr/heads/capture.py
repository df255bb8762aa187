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
from advcam_attr.heads.trace import function_name, replaced, tensors_in
from advcam_attr.heads.weights import TailCall


class Capture(TorchFunctionMode):
    """Records the mapped tensor of a forward, the calls from its pooling to the logits, and the taps.

    Args:
        site: of the mapped tensor.
        taps: sites of other tensors by name.
        cut: whether the autograd graph begins at the mapped tensor; nothing before it is stored.
    """

    def __init__(self, site: Site, taps: Mapping[str, Site], cut: bool = False) -> None:
        super().__init__()
        self.cut = cut
        self.site, self.sites = site, taps
        self.tapped: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.raw: Tensor | None = None
        self.pooled: Tensor | None = None
        self.tail: list[TailCall] = []
        self._after: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        call = name, self._counts.get(name, 0)
        self._counts[name] = call[1] + 1
        if self.cut and self.raw is None:
            out, args, kwargs = self._cut(func, args, kwargs, at_site=call == (self.site.name, self.site.occurrence))
        else:
            out = func(*args, **kwargs)
        for tap, site in self.sites.items():
            if (site.name, site.occurrence) == call:
                self.tapped.update((tap, made) for made in [*tensors_in(out)][:1])
        if self.raw is None:
            if (self.site.name, self.site.occurrence) == call:
                self._take(args, kwargs, out)
        elif self._after and any(id(t) in self._after for t in tensors_in((args, kwargs))):
            outs = [t for t in tensors_in(out) if isinstance(t, Tensor)]
            if outs:
                self.tail.append(TailCall(func, name, args, kwargs, out))
                self._after.update((id(t), t) for t in outs)
        return out

    def _cut(self, func: Callable[..., Any], args: Any, kwargs: Any, at_site: bool) -> tuple[Any, Any, Any]:
        if at_site and self.site.side == "input":
            raw = next(iter(tensors_in((args, kwargs))))
            args, kwargs = replaced((args, kwargs), {id(raw): _beginning(raw)})
            return func(*args, **kwargs), args, kwargs
        with torch.no_grad():
            out = func(*args, **kwargs)
        if at_site:
            raw = next(iter(tensors_in(out)))
            out = replaced(out, {id(raw): _beginning(raw)})
        return out, args, kwargs

    def _take(self, args: Any, kwargs: Any, out: Any) -> None:
        if self.site.side == "input":
            self.raw, self.pooled = next(iter(tensors_in((args, kwargs)))), out
            self._after = {id(out): out}
        else:
            self.raw = next(iter(tensors_in(out)))


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
