"""The parts of AdvCAM's ascent as types: what one step knows, and the callables that act on it."""

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
        x: the perturbed images, ``(R, V, C, H, W)`` (graph).
        logits: ``(R, V, K)`` (graph).
        maps: the base attribution, views flipped back and summed, ``(R, h, w)`` (graph if the base has one).
        view_maps: the maps of each view before that, ``(R, V, h, w)`` (graph).
        target: the class of each sample, ``(R,)``.
        start_logits, start_maps: logits and maps of the clean image.
        mask: cells whose value should not change, ``(R, h, w)``, bool.
        activations: the forward itself, of R·V images.
    """

    index: int
    x: Tensor
    logits: Tensor
    maps: Tensor
    view_maps: Tensor
    target: Tensor
    start_logits: Tensor
    start_maps: Tensor
    mask: Tensor
    activations: Activations


#: The score that gradient ascent raises, one per sample, ``(R,)``.
Objective = Callable[[ClimbState], Tensor]
#: A penalty subtracted from the objective, one per sample, ``(R,)``.
Regularizer = Callable[[ClimbState], Tensor]
#: Activated cells: maps ``(R, h, w)`` to bool ``(R, h, w)``.
Mask = Callable[[Tensor], Tensor]
#: Samples that have climbed far enough: the state to bool ``(R,)``.
Stop = Callable[[ClimbState], Tensor]
#: The step from (gradient, clean images), each ``(R, V, C, H, W)``.
StepRule = Callable[[Tensor, Tensor], Tensor]
#: The valid images from (after the step, before the step, clean), each ``(R, V, C, H, W)``.
Clamp = Callable[[Tensor, Tensor, Tensor], Tensor]
#: The running total of the maps from (total or None, maps), each ``(R, h, w)``.
Aggregate = Callable[["Tensor | None", Tensor], Tensor]
#: A transform of the base's maps from (maps, activations, target), ``(B, h, w)``.
MapTransform = Callable[[Tensor, Activations, Tensor], Tensor]
#: The base attribution: (activations, target) to maps ``(B, h, w)``. The maps of its method ``accumulated``, if it has
#: one, are summed in place of its own.
Base = Callable[[Activations, Tensor], Tensor]
#: The number of steps at a scale and the weight of its maps: (steps, scale) to (steps, weight).
Schedule = Callable[[int, float], tuple[int, float]]


@dataclass(frozen=True)
class Views:
    """The views of one sample, and how their maps become one.

    Attributes:
        spread: images ``(N, C, H, W)`` to views ``(N, V, C, H, W)``.
        merge: maps of views ``(R, V, h, w)`` to maps of samples ``(R, h, w)``.
        merge_accumulated: the same for a base's ``accumulated`` maps; None is ``merge``.
        mirrored: whether half of the views are mirror images, whose cells lie mirrored over the image.
    """

    spread: Callable[[Tensor], Tensor]
    merge: Callable[[Tensor], Tensor]
    merge_accumulated: Callable[[Tensor], Tensor] | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Plan:
    """A recipe with every part as an object, and the base attribution; for the parts see `Recipe`.

    Attributes:
        steps: at the longest scale.
        accumulated: gives the maps that are summed in place of the base's (SEAM's maps after its pixel correlation
            module), from the same forward and without gradient; mask, regularizers and objective see the base.
    """

    base: Base
    transform: MapTransform
    objective: Objective
    regularizers: tuple[Regularizer, ...]
    mask: Mask
    step_rule: StepRule
    clamp: Clamp
    views: Views
    aggregate: Aggregate
    schedule: Schedule
    scales: tuple[float, ...] = (1.0,)
    steps: int = 10
    stop: Stop | None = None
    backoff: float = 1.0
    accumulated: Base | None = None
