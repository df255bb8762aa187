"""Figs. 5, 6 and 12: maps and scores of one image climbed with and without each regularization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.climbing.loop import totals
from advcam_attr.climbing.objective import RectifiedTargetMinusOthers, Target, TargetMinusOthers
from advcam_attr.climbing.state import Aggregate, Objective, Plan
from advcam_attr.climbing.views import add
from advcam_attr.types import AdvCAMError, ClimbStep
from advcam_attr.viz.axes import CYCLE, figure, show_image, style_axes
from advcam_attr.viz.overlay import heat_over

#: The variants: which of the two regularizations (Eq. 7) joins the class score.
NONE, OTHERS, RESTRICT, BOTH = "none", "other classes", "restriction", "both"
VARIANTS = (NONE, OTHERS, RESTRICT, BOTH)


def variant(plan: Plan, name: str) -> Plan:
    """Return a plan with some of its two regularizations (Eq. 7), and without stopping early.

    ``"none"`` climbs the class score alone (Eq. 3), ``"other classes"`` also lowers other classes, ``"restriction"``
    also restricts activated regions, ``"both"`` is the plan itself.
    """
    if name not in VARIANTS:
        raise AdvCAMError(f"unknown variant {name!r}; there are {', '.join(VARIANTS)}")
    alone = name in (NONE, RESTRICT)
    return replace(
        plan,
        objective=without_others(plan.objective) if alone else plan.objective,
        regularizers=() if name in (NONE, OTHERS) else plan.regularizers,
        stop=None,
    )


def without_others(objective: Objective) -> Objective:
    """Return the objective of the class alone, of rectified logits if they were rectified."""
    if isinstance(objective, RectifiedTargetMinusOthers):
        return RectifiedTargetMinusOthers(TargetMinusOthers("sum", weight=0.0))
    return Target()


@dataclass(frozen=True)
class RegularizerEffects:
    """Climbs of one sample under V plans.

    Attributes:
        variants: their names.
        steps: the indices of the S steps with maps.
        maps: ``(V, S, h, w)``, the maps summed up to each step.
        activated: ``(V, T + 1)``, the share of each step's own map that exceeds half of its peak.
        score: ``(V, T + 1)``, y_c.
        others: ``(V, T + 1)``, the largest other logit.
    """

    variants: tuple[str, ...]
    steps: tuple[int, ...]
    maps: Tensor
    activated: Tensor
    score: Tensor
    others: Tensor

    def describe(self) -> dict[str, Any]:
        curves = zip(self.variants, self.score, self.others, self.activated, strict=True)
        return {
            "steps": list(self.steps),
            **{
                name: {"score": rounded(score), "strongest_other": rounded(other), "activated": rounded(share)}
                for name, score, other, share in curves
            },
        }


def regularizer_effects(
    climbs: Mapping[str, Iterable[ClimbStep]],
    target: int,
    at: Sequence[int],
    *,
    sample: int = 0,
    aggregate: Aggregate = add,
) -> RegularizerEffects:
    """Follow one sample through climbs of one length under several plans (Figs. 5, 6 and 12).

    Args:
        climbs: the steps by variant.
        target: the sample's class.
        at: indices of the steps whose summed maps are returned.
        sample: its place in the climbs.
        aggregate: of the maps of the steps.
    """
    found = []
    for steps in climbs.values():
        maps, curves = [], []
        for step, total in totals(steps, aggregate):
            logits = step.logits[sample, 0].float().cpu()
            rest = torch.cat([logits[:target], logits[target + 1 :], logits.new_tensor([float("-inf")])])
            own = step.maps[sample]
            above = (own > 0.5 * own.amax()) & (own > 0)
            curves.append((above.float().mean().cpu(), logits[target], rest.max()))
            maps += [total[sample].float().cpu()] if step.index in at else []
        if len(maps) != len(set(at)):
            raise AdvCAMError(f"a climb of {len(curves) - 1} steps has no step {max(at)}")
        found.append((torch.stack(maps), *(torch.stack(curve) for curve in zip(*curves, strict=True))))
    stacked = (torch.stack(values) for values in zip(*found, strict=True))
    return RegularizerEffects(tuple(climbs), tuple(sorted(set(at))), *stacked)


def plot_regularizer_effects(found: RegularizerEffects, image: np.ndarray, name: str) -> Figure:
    """Plot a row per variant and a column per step, and the scores below."""
    rows, columns = len(found.variants), 1 + len(found.steps)
    drawing, _ = figure(1, 1, width=1.6 * columns, height=1.7 * rows + 2.8)
    drawing.clear()
    grid = drawing.add_gridspec(2, 1, height_ratios=(1.7 * rows, 2.8))
    upper, lower = drawing.add_subfigure(grid[0]), drawing.add_subfigure(grid[1])
    axes = upper.subplots(rows, columns, squeeze=False)
    for places, variant_name, maps in zip(axes, found.variants, found.maps, strict=True):
        show_image(places[0], image, variant_name)
        for place, t, heat in zip(places[1:], found.steps, maps, strict=True):
            large = F.interpolate(heat[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
            show_image(place, heat_over(image, large.numpy()), f"t = {t}")
    left, middle, right = lower.subplots(1, 3)
    for curves, place, label in (
        (found.score, left, "score of the class"),
        (found.others, middle, "highest other score"),
        (100 * found.activated, right, "cells above half the peak, %"),
    ):
        for variant_name, curve, colour in zip(found.variants, curves, CYCLE, strict=False):
            place.plot(curve, color=colour, label=variant_name)
        style_axes(place, label, "step t")
    left.legend(frameon=False, fontsize=8)
    upper.suptitle(name, fontsize=10)
    return drawing
