"""Pictures at several scales, classes and a recipe in; the summed maps of a climb on each scale's own grid, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from advcam_attr.climbing.loop import climb, to_grid, totals
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.climbing.state import Base, Plan
from advcam_attr.climbing.views import FLIP_PAIR
from advcam_attr.heads import HeadView

#: The scales of the released code, in the order of its ``make_cam``.
SEED_SCALES = (1.0, 0.5, 1.5, 2.0)

#: Plain CAM seeds: at each scale the rectified maps of image and mirror image, no step taken.
CAM_SEEDS = Recipe(
    name="cam",
    source="the released make_cam: at each scale relu(z) + mirrored relu(z of the mirror image)",
    steps=0,
    flip=FLIP_PAIR,
    scales=SEED_SCALES,
    transform="relu",
)


def summed_maps(
    view: HeadView,
    pictures: Mapping[float, Tensor],
    target: Tensor,
    image_of: Tensor,
    recipe: Recipe,
    base: Base,
    *,
    steps: Sequence[int],
    rows_at_once: int,
    background: Tensor | None = None,
) -> dict[int, tuple[Tensor, ...]]:
    """Climb all rows at each scale once, and give the sums that each number of steps would have.

    A climb of T steps is the beginning of every longer one, so the sums of many T cost what the longest costs. How many
    steps a scale takes for T, and the weight of its sum, is the recipe's schedule, for each T on its own.

    Args:
        view: the classifier.
        pictures: the normalised images at each scale, ``(N, C, H s, W s)``.
        target: the class of each row, ``(R,)``.
        image_of: the image of each row, ``(R,)``, ascending.
        recipe: how to climb; its own number of steps and scales are not read.
        base: the base attribution.
        steps: the numbers of steps T.
        rows_at_once: how many rows are climbed together at scale 1; at larger scales, fewer, for the same pixels.
        background: where a saliency detector sees background, ``(N, H, W)``, bool.

    Returns:
        For each T one tensor a scale, ``(R, h, w)``, float32, weighted.
    """
    plan = recipe.plan(base)
    found: dict[int, list[Tensor]] = {t: [] for t in steps}
    for scale, images in pictures.items():
        schedule = {t: plan.schedule(t, scale) for t in steps}
        wanted = {count for count, _ in schedule.values()}
        parts: dict[int, list[Tensor]] = {count: [] for count in wanted}
        for rows in torch.arange(len(target), device=target.device).split(
            max(1, int(rows_at_once / max(1.0, scale**2)))
        ):
            for count, maps in _sums_of_rows(
                view, images, target[rows], image_of[rows], plan, wanted, background
            ).items():
                parts[count].append(maps)
        for t, (count, weight) in schedule.items():
            found[t].append(weight * torch.cat(parts[count]).float())
    return {t: tuple(grids) for t, grids in found.items()}


def _sums_of_rows(
    view: HeadView,
    images: Tensor,
    target: Tensor,
    image_of: Tensor,
    plan: Plan,
    wanted: set[int],
    background: Tensor | None,
) -> dict[int, Tensor]:
    """The running sum of some rows' maps after each wanted number of steps, ``(R, h, w)``."""
    outside = None if background is None else to_grid(background[image_of], (images.shape[2], images.shape[3]))
    walk = climb(view, images[image_of], target, plan, steps=max(wanted), background=outside)
    return {step.index: total for step, total in totals(walk, plan.aggregate) if step.index in wanted}
