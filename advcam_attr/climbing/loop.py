"""AdvCAM's loop: gradient ascent on the class score (Eqs. 3, 6 and 7), one `ClimbStep` at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.climbing.objective import target_logits
from advcam_attr.climbing.state import Aggregate, ClimbState, Plan, Stop
from advcam_attr.heads import Activations, HeadView, undisturbed
from advcam_attr.heads.cells import whole_cells
from advcam_attr.types import AdvCAMError, ClimbStep


def climb(
    view: HeadView,
    x: Tensor,
    target: Tensor,
    plan: Plan,
    *,
    steps: int,
    background: Tensor | None = None,
    extra: Sequence[Any] = (),
    autocast: torch.dtype | None = None,
) -> Iterator[ClimbStep]:
    """Climb: raise each sample's class score by gradient ascent on its image; yield every step, the clean image first.

    There are ``steps + 1`` of them, each one forward and (but for the last) one backward to the images. Samples are
    independent. A sample that ``plan.stop`` ends keeps its image, and its later maps do not count
    (``ClimbStep.climbing``).

    Args:
        view: the classifier.
        x: the image of each sample, ``(R, C, H, W)``, float32; not modified.
        target: the class of each sample, ``(R,)``.
        plan: the parts that vary; its own steps and scales are not read.
        steps: the number of steps.
        background: a saliency detector's background, ``(R, H, W)``, bool; joins the mask (section 4.4).
        extra: further arguments of the forward; tensors have one entry per sample and view.
        autocast: the precision of torch's autocast.

    Example:
        >>> import torch
        >>> from advcam_attr import heads
        >>> from advcam_attr.climbing import climb, recipes
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> plan = recipes.get("auto").plan()
        >>> steps = climb(heads.view(net), torch.rand(1, 3, 8, 8), torch.tensor([1]), plan, steps=3)
        >>> [(step.index, tuple(step.maps.shape)) for step in steps]
        [(0, (1, 6, 6)), (1, (1, 6, 6)), (2, (1, 6, 6)), (3, (1, 6, 6))]
    """
    clean = images = plan.views.spread(x)
    rows = torch.arange(len(clean), device=clean.device)  # the samples that still climb
    step_scale = torch.ones(len(clean), dtype=clean.dtype, device=clean.device)
    start: tuple[Tensor, Tensor] | None = None
    before: Tensor | None = None
    last: ClimbStep | None = None  # of samples that have stopped since
    memo: dict[str, Tensor] = {}
    undefined = torch.zeros((), dtype=torch.bool, device=clean.device)
    for index in range(steps + 1):
        with undisturbed(view.model), _precision(x, autocast):
            leaf = images.detach().requires_grad_()
            acts = view(leaf.flatten(0, 1), *extra, memo=memo, to_images=index < steps)
            state = _state(index, leaf, acts, target, plan, start, background)
            start = state.start_logits, state.start_maps
            score = _score(plan, state, ascend=index < steps)
            step = _step(plan, state, score, torch.ones_like(target, dtype=torch.bool), steps)
            undefined |= (~step.objective.isfinite() & step.logits.isfinite().all(2).all(1)).any()
            whole = step if last is None else _updated(last, step, rows)
            going = None if plan.stop is None else ~_stopped(plan.stop, state)
            over = going is not None and not bool(going.any())
            if index < steps and not over:
                (gradient,) = torch.autograd.grad(score.sum(), leaf)
                logit = target_logits(step.logits, target)
                step_scale, before = _backed_off(step_scale, plan.backoff, before, logit), logit
                step_taken = _checked(plan.step_rule(gradient, clean), tuple(clean.shape), "step rule", plan.step_rule)
                moved = images + _per_image(step_scale) * step_taken
                images = _checked(plan.clamp(moved, images, clean), tuple(clean.shape), "clamp", plan.clamp)
            del leaf, acts, state, score, step  # the graph does not outlive its step
        if (over or index == steps) and bool(undefined):  # once a climb: a GPU waits for it
            raise AdvCAMError(
                f"objective {plan.objective!r}, less the regularizers, is NaN or infinite at finite logits"
            )
        yield whole
        if over:
            idle = torch.zeros_like(whole.climbing)
            yield from (replace(whole, index=later, climbing=idle) for later in range(index + 1, steps + 1))
            return
        if going is not None and not bool(going.all()):  # stopped samples leave the batch
            last = whole
            extra = _kept(extra, going.repeat_interleave(clean.shape[1]))
            kept = (rows, target, clean, images, step_scale, *start, before, background)
            rows, target, clean, images, step_scale, *first, before, background = _kept(kept, going)
            start = first[0], first[1]
        del whole


def unclimbed(
    view: HeadView,
    x: Tensor,
    target: Tensor,
    image_of: Tensor,
    plan: Plan,
    *,
    background: Tensor | None = None,
    extra: Sequence[Any] = (),
    autocast: torch.dtype | None = None,
) -> ClimbStep:
    """Return the only step of a climb of zero steps, where samples share images: one forward for all their classes.

    Args:
        x: the images, ``(N, C, H, W)``; the tensors of ``extra`` have one entry per image and view.
        image_of: the image of each sample, ``(R,)``; each image has at least one.
    """
    images = plan.views.spread(x)
    place = torch.stack([(image_of[:r] == image).sum() for r, image in enumerate(image_of)])
    first = torch.stack([(image_of == image).nonzero()[0, 0] for image in range(len(images))])
    with undisturbed(view.model), _precision(x, autocast):
        acts = view(images.flatten(0, 1), *extra, to_images=False)
        steps = []
        for j in range(int(place.max()) + 1):  # the j-th class of each image, or its first where it has fewer
            chosen = first.clone()
            chosen[image_of[place == j]] = (place == j).nonzero()[:, 0]
            outside = None if background is None else background[chosen]
            state = _state(0, images, acts, target[chosen], plan, None, outside)
            climbing = torch.ones(len(images), dtype=torch.bool, device=images.device)
            steps.append(_step(plan, state, _score(plan, state, ascend=False), climbing, 0))
    picked = list(zip(place.tolist(), image_of.tolist(), strict=True))
    fields = ("x", "logits", "maps", "view_maps", "objective", "climbing")
    gathered: dict[str, Any] = {f: torch.stack([getattr(steps[j], f)[n] for j, n in picked]) for f in fields}
    return replace(steps[0], **gathered)


def totals(steps: Iterable[ClimbStep], aggregate: Aggregate) -> Iterator[tuple[ClimbStep, Tensor]]:
    """Yield each step with the running total of its scale's maps, ``(R, h, w)`` (Eq. 4); stopped samples add none."""
    total: Tensor | None = None
    for step in steps:
        if step.index == 0:
            total = None
        added = _checked(aggregate(total, step.maps), tuple(step.maps.shape), "aggregate", aggregate)
        total = added if total is None else torch.where(step.climbing[:, None, None], added, total)
        yield step, total


def to_grid(background: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the cells of a grid that are mostly background: ``(R, H, W)`` to ``(R, h, w)``."""
    return F.adaptive_avg_pool2d(background[:, None].float(), grid)[:, 0] > 0.5


def to_cells(background: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the cells of a feature grid that are mostly background: ``(R, H, W)`` to ``(R, h, w)``.

    Where the grid is the image's size divided by a power of two and rounded up, a cell is a block of so many pixels,
    and the last blocks reach beyond the image, whose last row and column they repeat.
    """
    height, width = background.shape[1:]
    (h, w), (down, right) = grid, whole_cells(grid, (height, width)).stride
    below, beside = round(h * down) - height, round(w * right) - width
    if min(below, beside) < 0 or max(below, beside) == 0:
        return to_grid(background, grid)
    return to_grid(F.pad(background[:, None].float(), (0, beside, 0, below), mode="replicate")[:, 0], grid)


def _state(
    index: int,
    x: Tensor,
    acts: Activations,
    target: Tensor,
    plan: Plan,
    start: tuple[Tensor, Tensor] | None,
    background: Tensor | None,
) -> ClimbState:
    """The state of a step after its forward; ``start`` holds the clean image's logits and maps."""
    each = target.repeat_interleave(x.shape[1])
    base = _checked(plan.base(acts, each), (len(each), *acts.head.grid), "base", plan.base)
    view_maps = plan.transform(base, acts, each).unflatten(0, x.shape[:2])
    maps = plan.views.merge(view_maps)
    logits = acts.logits.unflatten(0, x.shape[:2])
    mask = _checked(plan.mask(maps.detach()), tuple(maps.shape), "mask", plan.mask)
    if background is not None:
        mask = mask | to_cells(background, (maps.shape[1], maps.shape[2]))
    start_logits, start_maps = start or (logits.detach(), maps.detach())
    return ClimbState(index, x, logits, maps, view_maps, target, start_logits, start_maps, mask, acts)


def _score(plan: Plan, state: ClimbState, *, ascend: bool) -> Tensor:
    """The objective minus the regularizers, ``(R,)``."""
    shape = tuple(state.target.shape)
    score = _checked(plan.objective(state), shape, "objective", plan.objective)
    if ascend and not score.requires_grad:
        raise AdvCAMError(
            f"objective {plan.objective!r} has no gradient to the images: it must be made of the state's tensors"
        )
    for regularizer in plan.regularizers:
        score = score - _checked(regularizer(state), shape, "regularizer", regularizer)
    return score


def _step(plan: Plan, state: ClimbState, score: Tensor, climbing: Tensor, steps: int) -> ClimbStep:
    maps, view_maps = state.maps, state.view_maps
    if plan.accumulated is not None:
        acts, each = state.activations, state.target.repeat_interleave(state.x.shape[1])
        with torch.no_grad():
            found = plan.accumulated(acts, each)
            found = _checked(found, (len(each), *acts.head.grid), "accumulated map", plan.accumulated)
            view_maps = found.unflatten(0, state.x.shape[:2])
            maps = (plan.views.merge_accumulated or plan.views.merge)(view_maps)
    x, logits, maps, view_maps, score = (t.detach() for t in (state.x, state.logits, maps, view_maps, score))
    return ClimbStep(state.index, x, logits, maps, view_maps, score, climbing, steps)


def _updated(last: ClimbStep, step: ClimbStep, rows: Tensor) -> ClimbStep:
    """The step of all samples: that of ``rows``, the last one of those that have stopped."""
    fields = ("x", "logits", "maps", "view_maps", "objective")
    merged = {name: getattr(last, name).index_copy(0, rows, getattr(step, name)) for name in fields}
    climbing = torch.zeros_like(last.climbing).index_fill(0, rows, True)
    return replace(step, climbing=climbing, **merged)


def _kept(values: Sequence[Any], kept: Tensor) -> list[Any]:
    """Each tensor's entries of the samples that go on; what is no tensor of all samples stays."""
    chosen = (isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(kept) for value in values)
    return [value[kept] if choose else value for value, choose in zip(values, chosen, strict=True)]


def _backed_off(step_scale: Tensor, backoff: float, before: Tensor | None, now: Tensor) -> Tensor:
    """The factors of the step sizes, smaller where the last step lowered the target's logit in a view."""
    return step_scale if before is None else torch.where((now < before).any(1), step_scale * backoff, step_scale)


def _stopped(stop: Stop, state: ClimbState) -> Tensor:
    stopped = _checked(stop(state), tuple(state.target.shape), "stop", stop)
    if stopped.dtype != torch.bool:
        raise AdvCAMError(f"stop {stop!r} must give a tensor of bool, got {stopped.dtype}")
    return stopped.detach()


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]


def _precision(x: Tensor, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if autocast is None else torch.autocast(x.device.type, dtype=autocast)


def _checked(value: Any, shape: tuple[int, ...], what: str, part: Any) -> Tensor:
    """What a part of the plan returned, if it has the shape it should."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise AdvCAMError(f"{what} {part!r} must give a tensor of shape {shape}, got {got}")
    return value
