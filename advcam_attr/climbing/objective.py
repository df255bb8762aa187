"""Objectives: the score that gradient ascent raises, one per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advcam_attr.climbing.state import ClimbState
from advcam_attr.heads import at_least_float32


def target_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each sample's class in each view: ``(R, V, K)``, ``(R,)`` to ``(R, V)``."""
    return logits.gather(2, target[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]


def target_logit(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each sample's class, summed over its views: ``(R, V, K)``, ``(R,)`` to ``(R,)``."""
    return target_logits(logits, target).sum(1)


@dataclass(frozen=True)
class Target:
    """The target logit alone, y_c (Eq. 3)."""

    def __call__(self, state: ClimbState) -> Tensor:
        return target_logit(state.logits, state.target)


@dataclass(frozen=True)
class TargetMinusOthers:
    """The target logit minus other classes' (Eq. 7 with ``reduce="sum"``).

    With C classes the sum has C - 1 terms and dominates the target when C is large; a mean, of all or of the highest,
    does not depend on C.

    Attributes:
        reduce: of the other logits.
        top_k: only the k highest at each step; None takes all.
        classes: only these classes; None takes all. The target itself never counts.
        weight: of the other classes.
        gate_others: drop the other classes from samples whose target scores less than on the clean image, until it has
            recovered: classes that share the target's features would otherwise lower it, too.
    """

    reduce: Literal["sum", "mean"] = "sum"
    top_k: int | None = None
    classes: tuple[int, ...] | None = None
    weight: float = 1.0
    gate_others: bool = False

    def __post_init__(self) -> None:
        if self.reduce not in ("sum", "mean"):
            raise ValueError(f'reduce must be "sum" or "mean", got {self.reduce!r}')
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not -float("inf") < self.weight < float("inf"):
            raise ValueError(f"weight must be finite, got {self.weight}")

    def __call__(self, state: ClimbState) -> Tensor:
        if not self.gate_others:
            return self.of(state.logits, state.target)
        start, wanted = (target_logits(logits, state.target) for logits in (state.start_logits, state.logits))
        not_lowered = (wanted.detach() >= start).all(1)
        return torch.where(not_lowered, self.of(state.logits, state.target), wanted.sum(1))

    def of(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the objective of scores ``(R, V, K)``: ``(R,)``."""
        wanted = target_logit(scores, target)
        allowed = torch.ones_like(scores, dtype=torch.bool)
        if self.classes is not None:
            allowed = torch.zeros_like(allowed)
            allowed[..., list(self.classes)] = True
        allowed = allowed.scatter(2, target[:, None, None].expand(-1, scores.shape[1], 1), False)
        if self.top_k is None:
            others = scores.masked_fill(~allowed, 0).sum(2)
            count = allowed.sum(2)
        else:
            ranked = scores.masked_fill(~allowed, -torch.inf)
            top = ranked.topk(min(self.top_k, scores.shape[2]), dim=2).values
            count = top.isfinite().sum(2)
            others = top.masked_fill(~top.isfinite(), 0).sum(2)
        if self.reduce == "mean":
            others = others / count.clamp_min(1)
        return wanted - self.weight * others.sum(1)


@dataclass(frozen=True)
class RectifiedTargetMinusOthers:
    """The released code's score: logit maps are rectified before they are pooled, ``y_k = mean(relu(z_k))``.

    Cells where a class is negative have no gradient. Needs class weights that are the same for every image.
    ``others`` is the objective of the rectified scores.
    """

    others: TargetMinusOthers = TargetMinusOthers("sum")

    def __call__(self, state: ClimbState) -> Tensor:
        acts = state.activations
        weights = acts.all_class_weights().to(acts.features.dtype)
        z = at_least_float32(torch.einsum("kc,bchw->bkhw", weights, acts.features))
        constant = acts.logits.detach() - z.detach().mean((2, 3))
        scores = (z + constant[:, :, None, None]).relu().mean((2, 3))
        return self.others.of(scores.unflatten(0, state.logits.shape[:2]), state.target)


OBJECTIVES = {
    "target": Target(),
    "minus_sum": TargetMinusOthers("sum"),
    "minus_mean": TargetMinusOthers("mean"),
    "minus_top5": TargetMinusOthers("mean", top_k=5),
    "released": RectifiedTargetMinusOthers(),
}
