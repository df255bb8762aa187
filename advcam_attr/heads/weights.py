"""Class weights of any head: the derivative of its recorded tail.

The tail, the few calls from the pooled vector to the logits, is replayed on another vector, so that one derivative
serves every kind of head. A layer norm is invariant to the scale of its input, and its plain derivative times the
features sums to zero whatever the logit is; norms are therefore replayed with their scale frozen, which makes them
affine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advcam_attr.heads.head import Head, Reason
from advcam_attr.heads.trace import NORMS, replaced, scale_calls, tensors_in
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class TailCall:
    """One call after the pool."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any


@dataclass(frozen=True)
class Tail:
    """The calls from the pooled vector to the logits.

    Attributes:
        pooled: the vector, as the calls left it.
        value: the vector before them.
    """

    pooled: Tensor
    value: Tensor
    calls: tuple[TailCall, ...]
    logits: Tensor

    def __call__(self, pooled: Tensor, *, freeze_scales: bool = False) -> Tensor:
        """Replay the tail on another vector of the same shape, scales of norms frozen or not: ``(B, K)``."""
        known: dict[int, Any] = {id(self.pooled): pooled.clone()}  # calls may overwrite it
        scales = scale_calls(self.calls) if freeze_scales else set()
        for i, call in enumerate(self.calls):
            args, kwargs = replaced(call.args, known), replaced(call.kwargs, known)
            if i in scales:
                out = _detached(call.out)
            elif freeze_scales and call.name in NORMS:
                out = _frozen_norm(call, args[0] if args else kwargs["input"])
            else:
                out = call.func(*args, **kwargs)
                out = args[0] if call.name == "__setitem__" else out
            known.update(zip((id(t) for t in tensors_in(call.out)), tensors_in(out), strict=True))
        result = known[id(self.logits)]
        assert isinstance(result, Tensor)
        return result


def _detached(value: Any) -> Any:
    copies = tuple(v.detach().clone() for v in tensors_in(value))
    return copies[0] if isinstance(value, Tensor) else copies


def _frozen_norm(call: TailCall, x: Tensor) -> Tensor:
    """The norm of ``call`` as an affine map of ``x``, with the scale of the recorded input."""
    name = call.name
    recorded = next(iter(tensors_in((call.args, call.kwargs)))).detach()
    if name == "normalize":
        given = dict(zip(("p", "dim", "eps"), call.args[1:], strict=False)) | dict(call.kwargs)
        length = recorded.norm(given.get("p", 2.0), given.get("dim", 1), keepdim=True)
        return x / length.clamp_min(given.get("eps", 1e-12))
    if name == "group_norm":
        groups = call.kwargs.get("num_groups", call.args[1] if len(call.args) > 1 else None)
        grouped, now = (t.reshape(t.shape[0], groups, -1) for t in (recorded, x))
        dims: tuple[int, ...] = (2,)
    else:
        shape = call.kwargs.get("normalized_shape", call.args[1] if len(call.args) > 1 else None)
        assert shape is not None
        grouped, now, dims = recorded, x, tuple(range(-len(tuple(shape)), 0))
    names = {
        "group_norm": ("weight", "bias", "eps"),
        "layer_norm": ("weight", "bias", "eps"),
        "rms_norm": ("weight", "eps"),
    }
    given = dict(zip(names[name], call.args[2:], strict=False)) | dict(call.kwargs)
    weight, bias = given.get("weight"), given.get("bias")
    eps = given.get("eps")
    eps = (torch.finfo(recorded.dtype).eps if name == "rms_norm" else 1e-5) if eps is None else eps
    if name == "rms_norm":
        out = now / (grouped.square().mean(dims, keepdim=True) + eps).sqrt()
    else:
        sigma = (grouped.var(dims, correction=0, keepdim=True) + eps).sqrt()
        out = (now - now.mean(dims, keepdim=True)) / sigma
    out = out.reshape(x.shape)
    if name == "group_norm":
        weight, bias = (None if p is None else p.reshape(1, -1, *[1] * (x.ndim - 2)) for p in (weight, bias))
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def derivative(score: Tensor, of: Tensor) -> Tensor:
    """Return the derivative of a number with respect to a tensor.

    Raises:
        AdvCAMError: autograd has no path from the one to the other.
    """
    found = torch.autograd.grad(score, of, retain_graph=True, allow_unused=True)[0] if score.requires_grad else None
    if found is None:
        raise AdvCAMError(
            "the logits have no derivative with respect to the features (a quantized, detached or no_grad layer in "
            "between?): pass the float model, differentiable from the mapped layer to the logits"
        )
    return found


def class_weights(tail: Tail, target: Tensor) -> Tensor:
    """Return the derivative of one logit per image to the pooled vector, scales of norms frozen: ``(B, C)``."""
    with torch.enable_grad():
        pooled = tail.value.detach().requires_grad_()
        logits = tail(pooled, freeze_scales=True)
        return derivative(logits.gather(1, target[:, None]).sum(), pooled).flatten(1)


def all_class_weights(tail: Tail, *, chunk: int = 64) -> Tensor:
    """Return the derivatives of all logits to the pooled vector of the first image, ``(K, C)``."""
    with torch.enable_grad():
        pooled = tail.value.detach()[:1].expand_as(tail.value).clone().requires_grad_()
        logits = tail(pooled, freeze_scales=True)[0]
        units = torch.eye(len(logits), device=logits.device, dtype=logits.dtype).split(chunk)
        rows = [
            torch.autograd.grad(logits, pooled, unit, retain_graph=True, is_grads_batched=True)[0][:, 0]
            for unit in units
        ]
    return torch.cat(rows).flatten(1)


def identity_fault(head: Head, features: Tensor, tail: Tail, *, tolerance: float = 1e-4) -> str | None:
    """Return why the recorded tail does not map the mean of the features to the logits as the head says, or None.

    Two vectors are compared, the mean of the features and the same channels in another order, so that a constant (far
    larger than the features in an untrained net) cannot hide an error.
    """
    where = repr(head.layer or head.site.name)
    with torch.no_grad():
        loose = max(tolerance, 40 * torch.finfo(tail.pooled.dtype).eps)
        mean = features.mean((2, 3)).reshape(tail.pooled.shape)
        other = mean.flatten(1).roll(1, 1).reshape(mean.shape)
        target = tail.logits.argmax(1)
        weights = class_weights(tail, target)
        size = (weights.abs() * mean.flatten(1).abs()).sum(1).float()
        replayed, direct = tail(mean), tail.logits
        scale = torch.maximum(direct.float().abs().amax(1), size)
        worst = (replayed - direct).float().abs().amax(1)
        if not bool((worst <= loose * scale + 1e-12).all()):
            return f"the logits are not made of the mean at {where} alone (they differ by {worst.max():.2g})"
        frozen = tail(mean, freeze_scales=True) - tail(other, freeze_scales=True)
        found = frozen.gather(1, target[:, None])[:, 0].float()
        expected = (weights * (mean - other).flatten(1)).sum(1).float()
        if head.reason is not Reason.NONLINEAR and not bool(((found - expected).abs() <= loose * size + 1e-12).all()):
            return (
                f"the mean of the class map and the logit do not change alike at {where} "
                f"(by {expected.max():.4g} and {found.max():.4g})"
            )
        total = (weights * mean.flatten(1)).sum(1).abs().float()
        if head.reason is Reason.NONLINEAR and bool((total < 1e-3 * size).all()):
            return (
                "the class weights cancel: the tail does not change when its input is scaled (a norm written out by "
                "hand?), so a class activation map would mean nothing"
            )
    return None
