"""Climbs of one image under several plans in; how each plan's map and scores go, out (Figs. 5, 6 and 12)."""

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

#: The variants: what is climbed besides the class score.
NONE, OTHERS, RESTRICT, BOTH = "none", "other classes", "restriction", "both"
VARIANTS = (NONE, OTHERS, RESTRICT, BOTH)


def variant(plan: Plan, name: str) -> Plan:
    """A plan with some of its two regularizations (Eq. 7), and no row that stops early.

    Args:
        plan: with both.
        name: ``"none"`` climbs the class score alone (Eq. 3); ``"other classes"`` lowers other classes, too;
            ``"restriction"`` holds what is lit, too; ``"both"`` is the plan itself.

    Raises:
        AdvCAMError: no such variant.
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
    """The objective of the class itself: rectified logits where they were rectified."""
    if isinstance(objective, RectifiedTargetMinusOthers):
        return RectifiedTargetMinusOthers(TargetMinusOthers("sum", weight=0.0))
    return Target()


@dataclass(frozen=True)
class RegularizerEffects:
    """Climbs of one image and class under V plans.

    Attributes:
        variants: their names.
        steps: the S steps whose maps are kept.
        maps: ``(V, S, h, w)``, the maps summed so far.
        lit: ``(V, T + 1)``, the share of each step's own map that exceeds half of its peak.
        score: ``(V, T + 1)``, y_c.
        others: ``(V, T + 1)``, the largest other logit.
    """

    variants: tuple[str, ...]
    steps: tuple[int, ...]
    maps: Tensor
    lit: Tensor
    score: Tensor
    others: Tensor

    def describe(self) -> dict[str, Any]:
        """As JSON has it, without the maps."""
        return {
            "steps": list(self.steps),
            **{
                name: {"score": rounded(s), "strongest_other": rounded(o), "lit": rounded(lit)}
                for name, s, o, lit in zip(self.variants, self.score, self.others, self.lit, strict=True)
            },
        }


def regularizer_effects(
    walks: Mapping[str, Iterable[ClimbStep]],
    target: int,
    at: Sequence[int],
    *,
    row: int = 0,
    aggregate: Aggregate = add,
) -> RegularizerEffects:
    """Follow one row through climbs under several plans (Figs. 5, 6 and 12).

    Args:
        walks: by variant, from `advcam_attr.climbing.climb`, all of as many steps.
        target: the row's class.
        at: the steps whose summed maps are kept.
        row: which row of the climbs.
        aggregate: what the maps of the steps become one by.

    Raises:
        AdvCAMError: the climbs have no such step.
    """
    maps, lit, scores, others = [], [], [], []
    for walk in walks.values():
        kept, tracks = [], []
        for step, total in totals(walk, aggregate):
            logits = step.logits[row, 0].float().cpu()
            rest = torch.cat([logits[:target], logits[target + 1 :], logits.new_tensor([float("-inf")])])
            own = step.maps[row]
            above = (own > 0.5 * own.amax()) & (own > 0)
            tracks.append((logits[target], rest.max(), above.float().mean().cpu()))
            kept += [total[row].float().cpu()] if step.index in at else []
        if len(kept) != len(set(at)):
            raise AdvCAMError(f"a climb of {len(tracks) - 1} steps has no step {max(at)}")
        score, other, share = (torch.stack(column) for column in zip(*tracks, strict=True))
        maps.append(torch.stack(kept))
        scores.append(score)
        others.append(other)
        lit.append(share)
    stacked = (torch.stack(some) for some in (maps, lit, scores, others))
    return RegularizerEffects(tuple(walks), tuple(sorted(set(at))), *stacked)


def plot_regularizer_effects(found: RegularizerEffects, image: np.ndarray, name: str) -> Figure:
    """One row a variant, one column a step, and below them the scores.

    Args:
        found: of one image.
        image: ``(H, W, 3)`` in [0, 1].
        name: of its class.
    """
    rows, columns = len(found.variants), 1 + len(found.steps)
    drawing, _ = figure(1, 1, width=1.6 * columns, height=1.7 * rows + 2.8)
    drawing.clear()
    grid = drawing.add_gridspec(2, 1, height_ratios=(1.7 * rows, 2.8))
    pictures, charts = drawing.add_subfigure(grid[0]), drawing.add_subfigure(grid[1])
    axes = pictures.subplots(rows, columns, squeeze=False)
    for places, variant_name, maps in zip(axes, found.variants, found.maps, strict=True):
        show_image(places[0], image, variant_name)
        for place, t, heat in zip(places[1:], found.steps, maps, strict=True):
            large = F.interpolate(heat[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
            show_image(place, heat_over(image, large.numpy()), f"t = {t}")
    left, middle, right = charts.subplots(1, 3)
    for tracks, place, label in (
        (found.score, left, "score of the class"),
        (found.others, middle, "strongest other score"),
        (100 * found.lit, right, "cells above half the peak, %"),
    ):
        for variant_name, track, colour in zip(found.variants, tracks, CYCLE, strict=False):
            place.plot(track, color=colour, label=variant_name)
        style_axes(place, label, "step t")
    left.legend(frameon=False, fontsize=8)
    pictures.suptitle(name, fontsize=10)
    return drawing
