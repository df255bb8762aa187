"""Everything that one step of a climb knows, as its objective, regularizers and masks see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from advcam_attr.heads import Activations


@dataclass(frozen=True)
class ClimbState:
    """One step of a climb; tensors marked (graph) carry gradients back to the images.

    Attributes:
        index: 0 for the clean image, then 1, 2, ...
        x: the climbed images, ``(R, V, C, H, W)`` (graph).
        logits: ``(R, V, K)`` (graph).
        maps: the base attribution, views brought back and summed, ``(R, h, w)`` (graph, where the base has one); what
            mask and regularizers see, whatever is accumulated.
        target: the class of each row, ``(R,)``.
        start_logits: the logits of the clean image, ``(R, V, K)``.
        start_maps: the maps of the clean image, ``(R, h, w)``.
        mask: where the maps may not change, ``(R, h, w)``, bool.
        activations: the forward itself, of R·V images.
    """

    index: int
    x: Tensor
    logits: Tensor
    maps: Tensor
    target: Tensor
    start_logits: Tensor
    start_maps: Tensor
    mask: Tensor
    activations: Activations


#: What is climbed: one score a row, ``(R,)``.
Objective = Callable[[ClimbState], Tensor]
#: What is subtracted from it: one penalty a row, ``(R,)``.
Regularizer = Callable[[ClimbState], Tensor]
#: Where maps are lit already: maps ``(R, h, w)`` to bool ``(R, h, w)``.
Mask = Callable[[Tensor], Tensor]
#: Which rows have climbed far enough: the state to bool ``(R,)``.
Stop = Callable[[ClimbState], Tensor]
#: The step: (gradient, clean images), each ``(R, V, C, H, W)``.
StepRule = Callable[[Tensor, Tensor], Tensor]
#: The climbed images made valid again: (stepped, before the step, clean), each ``(R, V, C, H, W)``.
Clamp = Callable[[Tensor, Tensor, Tensor], Tensor]
#: The running total of the maps: (total or None, maps), each ``(R, h, w)``.
Aggregate = Callable[["Tensor | None", Tensor], Tensor]
#: What is done to a base's maps before all else: (maps, activations, target), ``(B, h, w)``.
MapTransform = Callable[[Tensor, Activations, Tensor], Tensor]
#: The base attribution: (activations, target) to maps ``(B, h, w)``. One with a method ``accumulated`` of the same form
#: has the maps of that method summed in place of its own.
Base = Callable[[Activations, Tensor], Tensor]


@dataclass(frozen=True)
class Views:
    """The views of one row, and how their maps become one.

    Attributes:
        spread: images ``(N, C, H, W)`` to views ``(N, V, C, H, W)``.
        merge: maps of views ``(R, V, h, w)`` to maps of rows ``(R, h, w)``.
        merge_accumulated: the same for maps that are accumulated in place of the base's; None is ``merge``.
    """

    spread: Callable[[Tensor], Tensor]
    merge: Callable[[Tensor], Tensor]
    merge_accumulated: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """The parts of a climb that vary; each is a callable, but for ``backoff``.

    ``backoff`` is the factor by which the steps of a row shrink, from then on, whenever a step has lowered the target's
    logit in one of its views: it was too long. 1 keeps them as they are.

    ``accumulated`` gives the maps that every step shows, and that are summed, where they are not the base's (SEAM's
    maps after its pixel correlation module). It sees the same forward, without gradients; mask, regularizers and
    objective go by the base.
    """

    base: Base
    transform: MapTransform
    objective: Objective
    regularizers: tuple[Regularizer, ...]
    mask: Mask
    step_rule: StepRule
    clamp: Clamp
    views: Views
    stop: Stop
    backoff: float = 1.0
    accumulated: Base | None = None
