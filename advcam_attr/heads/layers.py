"""Layers of a model by name, and its copy without numbers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from advcam_attr.heads.find import layers_to_pool
from advcam_attr.heads.trace import record
from advcam_attr.registry import similar
from advcam_attr.types import AdvCAMError


def layer_name(model: nn.Module, layer: str | nn.Module | None) -> str | None:
    """Return the name of a module of the model, given as name or module.

    Raises:
        AdvCAMError: it has none; the message names similar ones, and those on the way to the pool.
    """
    if layer is None:
        return None
    names = dict(model.named_modules())
    if isinstance(layer, str):
        if layer in names:
            return layer
        raise AdvCAMError(f"the model has no layer {layer!r}{_instead(model, layer, list(names))}")
    if isinstance(layer, nn.Module):
        found = next((name for name, module in names.items() if module is layer), None)
        if found is None:
            raise AdvCAMError(f"layer {type(layer).__name__} is not a module of this model")
        return found
    raise TypeError(f"layer must be a module, its name or None, got {type(layer).__name__}")


def _instead(model: nn.Module, layer: str, names: list[str]) -> str:
    close, on_way = similar(layer, names), [] if has_hooks(model) else _mapped_layers(model)
    listed = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
    if on_way:
        listed.append(f"on the way to the pool are {', '.join(map(repr, on_way))}")
    elif not close:
        listed.append(f"its modules begin with {', '.join(n for n in names if n and '.' not in n)}")
    return "; " + "; ".join(listed)


def _mapped_layers(model: nn.Module) -> list[str]:
    """The outermost layers with a grid of features, the last first; none where shapes alone cannot be traced."""
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        return layers_to_pool(record(on_meta(model), torch.empty(1, *size, device="meta", dtype=dtype)))
    except Exception:  # a model of the user's may raise anything without numbers
        return []


def has_hooks(model: nn.Module) -> bool:
    """Whether the user would notice a forward."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode on the meta device: modules and shapes without numbers."""
    memo: dict[int, Any] = {id(buffer): buffer.detach().to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(model, memo).eval()
