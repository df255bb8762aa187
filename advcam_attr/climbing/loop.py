"""Images and classes in; one `ClimbStep` after the other out.

The climb knows nothing of files, Captum or plots. Everything that consumes it (aggregation, figures, reports) is a loop
over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.climbing.objective import target_logits
from advcam_attr.climbing.state import Aggregate, Base, ClimbState, Plan
from advcam_attr.climbing.steps import never
from advcam_attr.heads import Activations, HeadView, undisturbed
from advcam_attr.types import AdvCAMError, ClimbStep


def climb(
    view: HeadView,
    x: Tensor,
    target: Tensor,
    plan: Plan,
    *,
    steps: int,
    background: Tensor | None = None,
    image_of: Tensor | None = None,
    extra: Sequence[Any] = (),
) -> Iterator[ClimbStep]:
    """Climb the score of each row and yield every step, the clean image first: ``steps + 1`` of them.

    Rows are independent: nothing of one row enters another. A step is one forward and one backward to the images; the
    last has no backward. Eqs. 3, 6 and 7 of the paper. A row that the plan stops stands still from then on, and its
    later maps do not count (``ClimbStep.climbing``); when all rows have stopped, the last step is repeated as it is.

    Args:
        view: the classifier.
        x: the images, ``(N, C, H, W)``, float32; left as they are.
        target: the class of each row, ``(R,)``; R is N unless ``image_of`` is given.
        plan: the parts that vary.
        steps: how many steps are taken.
        background: where a saliency detector sees background, ``(R, H, W)``, bool; joins the mask (section 4.4).
        image_of: the image of each row, ``(R,)``, where images have several classes; these share the first forward.
        extra: further arguments of the forward, as for one image, or tensors with one entry a row and view.

    Example:
        >>> import torch
        >>> from advcam_attr import heads
        >>> from advcam_attr.climbing import recipes
        >>> from advcam_attr.climbing import climb
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> plan = recipes.get("auto").plan()
        >>> walk = climb(heads.view(net), torch.rand(1, 3, 8, 8), torch.tensor([1]), plan, steps=3)
        >>> [(step.index, tuple(step.maps.shape)) for step in walk]
        [(0, (1, 6, 6)), (1, (1, 6, 6)), (2, (1, 6, 6)), (3, (1, 6, 6))]
    """
    images = plan.views.spread(x)
    clean = images if image_of is None else images[image_of]
    rows = clean
    start: tuple[Tensor, Tensor] | None = None
    climbing = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
    pace = torch.ones(len(clean), device=clean.device, dtype=clean.dtype)
    scores: Tensor | None = None
    memo: dict[str, Tensor] = {}
    for index in range(steps + 1):
        last = index == steps
        with undisturbed(view.model):
            if index == 0 and image_of is not None and _sharing_pays(image_of):
                seen = _shared_start(view, images, target, image_of, plan, background, extra, last)
            else:
                leaf = rows.detach().requires_grad_()
                acts = view(leaf.flatten(0, 1), *extra, memo=memo, to_images=not last)
                seen = _evaluate(index, leaf, acts, target, plan, start, background, last)
                del acts, leaf
            start = start or (seen.step.logits, seen.base)
            step = replace(seen.step, climbing=climbing)
            climbing = climbing & seen.step.climbing
            if seen.gradient is not None:
                before, scores = scores, target_logits(step.logits, target)
                pace = pace if before is None else torch.where((scores < before).any(1), pace * plan.backoff, pace)
                moved = pace[:, None, None, None, None] * plan.step_rule(seen.gradient, clean)
                stepped = plan.clamp(rows + moved, rows, clean)
                rows = torch.where(climbing[:, None, None, None, None], stepped, rows)
        yield step
        if plan.stop is not never and not bool(climbing.any()):
            yield from (replace(step, index=i, climbing=climbing) for i in range(index + 1, steps + 1))
            return


class _Seen(NamedTuple):
    """What one step sees; ``step.climbing`` is which rows go on after it."""

    step: ClimbStep
    #: The base's maps, detached, ``(R, h, w)``.
    base: Tensor
    #: Of the objective to the images, ``(R, V, C, H, W)``; None after the last step.
    gradient: Tensor | None


def _evaluate(
    index: int,
    leaf: Tensor,
    acts: Activations,
    target: Tensor,
    plan: Plan,
    start: tuple[Tensor, Tensor] | None,
    background: Tensor | None,
    last: bool,
    keep: bool = False,
) -> _Seen:
    """One step of rows whose forward is done; ``start`` holds the clean image's logits and base maps."""
    each = target.repeat_interleave(leaf.shape[1])
    base = _checked(plan.base(acts, each), (len(each), *acts.head.grid), "base", plan.base)
    maps = plan.views.merge(plan.transform(base, acts, each).unflatten(0, leaf.shape[:2]))
    logits = acts.logits.unflatten(0, leaf.shape[:2])
    mask = _checked(plan.mask(maps.detach()), tuple(maps.shape), "mask", plan.mask)
    if background is not None:
        mask = mask | to_grid(background, (maps.shape[1], maps.shape[2]))
    start_logits, start_maps = (logits.detach(), maps.detach()) if start is None else start
    state = ClimbState(index, leaf, logits, maps, target, start_logits, start_maps, mask, acts)
    score = _checked(plan.objective(state), tuple(target.shape), "objective", plan.objective)
    if not score.requires_grad and not last:
        raise AdvCAMError(
            f"objective {plan.objective!r} has no gradient to the images: it must be made of the state's tensors"
        )
    for regularizer in plan.regularizers:
        score = score - _checked(regularizer(state), tuple(target.shape), "regularizer", regularizer)
    over = plan.stop(state).detach()
    shown = maps.detach() if plan.accumulated is None else _accumulated(plan, plan.accumulated, acts, each, len(target))
    step = ClimbStep(index, leaf.detach(), logits.detach(), shown, score.detach(), ~over)
    gradient = None if last else torch.autograd.grad(score.sum(), leaf, retain_graph=keep)[0]
    return _Seen(step, maps.detach(), gradient)


def _accumulated(plan: Plan, maps_of: Base, acts: Activations, each: Tensor, rows: int) -> Tensor:
    """The maps that are accumulated in place of the base's, ``(R, h, w)``."""
    merge = plan.views.merge_accumulated or plan.views.merge
    with torch.no_grad():
        maps = _checked(maps_of(acts, each), (len(each), *acts.head.grid), "accumulated map", maps_of)
        return merge(maps.unflatten(0, (rows, -1)))


def _checked(value: Any, shape: tuple[int, ...], what: str, part: Any) -> Tensor:
    """What a part of the plan gave, if it has the shape it should."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise AdvCAMError(f"{what} {part!r} must give a tensor of shape {shape}, got {got}")
    return value


def totals(walk: Iterable[ClimbStep], aggregate: Aggregate) -> Iterator[tuple[ClimbStep, Tensor]]:
    """Each step of a climb, and the running total of its maps, ``(R, h, w)`` (Eq. 4).

    Rows that the plan has stopped keep their total.

    Args:
        walk: from `climb`.
        aggregate: what a step's maps are added by.
    """
    total: Tensor | None = None
    for step in walk:
        added = aggregate(total, step.maps)
        total = added if total is None else torch.where(step.climbing[:, None, None], added, total)
        yield step, total


def to_grid(background: Tensor, grid: tuple[int, int]) -> Tensor:
    """A background mask ``(R, H, W)`` on another grid: cells that are mostly background, ``(R, h, w)``."""
    return F.adaptive_avg_pool2d(background[:, None].float(), grid)[:, 0] > 0.5


def _sharing_pays(image_of: Tensor) -> bool:
    """Whether one forward and a backward a slot for all images beats a forward and a backward a row.

    A backward to the images costs about 1.4 forwards.
    """
    per_image = image_of.bincount()
    shared = len(per_image) * (1 + 1.4 * int(per_image.max()))
    return len(per_image) < len(image_of) and shared < 2.4 * len(image_of)


def _shared_start(
    view: HeadView,
    images: Tensor,
    target: Tensor,
    image_of: Tensor,
    plan: Plan,
    background: Tensor | None,
    extra: Sequence[Any],
    last: bool,
) -> _Seen:
    """The first step of all rows from one forward of the images: the j-th class of every image is one backward."""
    slot = torch.stack([(image_of[:row] == image).sum() for row, image in enumerate(image_of)])
    leaf = images.detach().requires_grad_()
    first = torch.stack([(image_of == image).nonzero()[0, 0] for image in range(len(images))])
    acts = view(
        leaf.flatten(0, 1),
        *[a[_first_views(first, leaf.shape[1])] if _a_row(a, image_of, leaf) else a for a in extra],
        to_images=not last,
    )
    seen: list[_Seen] = []
    slots = int(slot.max()) + 1
    for j in range(slots):
        at = first.clone()
        at[image_of[slot == j]] = (slot == j).nonzero()[:, 0]
        outside = None if background is None else background[at]
        seen.append(_evaluate(0, leaf, acts, target[at], plan, None, outside, last, keep=j + 1 < slots))
    pick = [(int(j), int(image)) for j, image in zip(slot, image_of, strict=True)]
    fields = ("x", "logits", "maps", "objective", "climbing")
    step = ClimbStep(0, *(torch.stack([getattr(seen[j].step, name)[image] for j, image in pick]) for name in fields))
    base = torch.stack([seen[j].base[image] for j, image in pick])
    if last:
        return _Seen(step, base, None)
    gradients = [(seen[j].gradient, image) for j, image in pick]
    return _Seen(step, base, torch.stack([g[image] for g, image in gradients if g is not None]))


def _a_row(argument: Any, image_of: Tensor, leaf: Tensor) -> bool:
    """Whether a further argument of the forward has one entry a row and view."""
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == len(image_of) * leaf.shape[1]


def _first_views(first: Tensor, views: int) -> Tensor:
    return (first[:, None] * views + torch.arange(views, device=first.device)).flatten()
