"""Images and classes in; one `ClimbStep` after the other out.

The climb knows nothing of files, Captum or plots. Everything that consumes it (aggregation, figures, reports) is a loop
over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.climbing.objective import target_logits
from advcam_attr.climbing.state import ClimbState, Plan
from advcam_attr.climbing.stops import never
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
        >>> from advcam_attr import heads, recipes
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
    rows, start = clean, None
    climbing = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
    pace = torch.ones(len(clean), device=clean.device, dtype=clean.dtype)
    scores: Tensor | None = None
    memo: dict[str, Tensor] = {}
    for index in range(steps + 1):
        last = index == steps
        with undisturbed(view.model):
            if index == 0 and image_of is not None and _sharing_pays(image_of):
                step, gradient, over = _shared_start(view, images, target, image_of, plan, background, extra, last)
            else:
                leaf = rows.detach().requires_grad_()
                acts = view(leaf.flatten(0, 1), *extra, memo=memo)
                step, gradient, over = _evaluate(index, leaf, acts, target, plan, start, background, last)
                del acts, leaf
            start = start or step
            step = replace(step, climbing=climbing)
            climbing = climbing & ~over
            if gradient is not None:
                before, scores = scores, target_logits(step.logits, target)
                pace = pace if before is None else torch.where((scores < before).any(1), pace * plan.backoff, pace)
                moved = pace[:, None, None, None, None] * plan.step_rule(gradient, clean)
                stepped = plan.clamp(rows + moved, rows, clean)
                rows = torch.where(climbing[:, None, None, None, None], stepped, rows)
        yield step
        if plan.stop is not never and not bool(climbing.any()):
            yield from (replace(step, index=i, climbing=climbing) for i in range(index + 1, steps + 1))
            return


def _evaluate(
    index: int,
    leaf: Tensor,
    acts: Activations,
    target: Tensor,
    plan: Plan,
    start: ClimbStep | None,
    background: Tensor | None,
    last: bool,
    keep: bool = False,
) -> tuple[ClimbStep, Tensor | None, Tensor]:
    """What one step sees, the gradient of its objective to the images (None after the last step), who stops."""
    each = target.repeat_interleave(leaf.shape[1])
    base = _checked(plan.base(acts, each), (len(each), *acts.head.grid), "base", plan.base)
    maps = plan.views.merge(plan.transform(base, acts, each).unflatten(0, leaf.shape[:2]))
    logits = acts.logits.unflatten(0, leaf.shape[:2])
    mask = _checked(plan.mask(maps.detach()), tuple(maps.shape), "mask", plan.mask)
    if background is not None:
        mask = mask | to_grid(background, (maps.shape[1], maps.shape[2]))
    start_logits, start_maps = (logits.detach(), maps.detach()) if start is None else (start.logits, start.maps)
    state = ClimbState(index, leaf, logits, maps, target, start_logits, start_maps, mask, acts)
    score = _checked(plan.objective(state), tuple(target.shape), "objective", plan.objective)
    if not score.requires_grad and not last:
        raise AdvCAMError(
            f"objective {plan.objective!r} has no gradient to the images: it must be made of the state's tensors"
        )
    for regularizer in plan.regularizers:
        score = score - _checked(regularizer(state), tuple(target.shape), "regularizer", regularizer)
    over = plan.stop(state).detach()
    step = ClimbStep(index, leaf.detach(), logits.detach(), maps.detach(), score.detach(), ~over)
    gradient = None if last else torch.autograd.grad(score.sum(), leaf, retain_graph=keep)[0]
    return step, gradient, over


def _checked(value: Any, shape: tuple[int, ...], what: str, part: Any) -> Tensor:
    """What a part of the plan gave, if it has the shape it should."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise AdvCAMError(f"{what} {part!r} must give a tensor of shape {shape}, got {got}")
    return value


def to_grid(background: Tensor, grid: tuple[int, int]) -> Tensor:
    """A background mask ``(R, H, W)`` on the map's grid: cells that are mostly background, ``(R, h, w)``."""
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
) -> tuple[ClimbStep, Tensor | None, Tensor]:
    """The first step of all rows from one forward of the images: the j-th class of every image is one backward."""
    slot = torch.stack([(image_of[:row] == image).sum() for row, image in enumerate(image_of)])
    leaf = images.detach().requires_grad_()
    first = torch.stack([(image_of == image).nonzero()[0, 0] for image in range(len(images))])
    acts = view(
        leaf.flatten(0, 1), *[a[_first_views(first, leaf.shape[1])] if _a_row(a, image_of, leaf) else a for a in extra]
    )
    rows: list[tuple[ClimbStep, Tensor | None, Tensor]] = []
    slots = int(slot.max()) + 1
    for j in range(slots):
        at = first.clone()
        at[image_of[slot == j]] = (slot == j).nonzero()[:, 0]
        outside = None if background is None else background[at]
        rows.append(_evaluate(0, leaf, acts, target[at], plan, None, outside, last, keep=j + 1 < slots))
    pick = [(int(j), int(image)) for j, image in zip(slot, image_of, strict=True)]
    fields = ("x", "logits", "maps", "objective", "climbing")
    step = ClimbStep(0, *(torch.stack([getattr(rows[j][0], name)[image] for j, image in pick]) for name in fields))
    gradients = [rows[j][1] for j, _ in pick]
    over = ~step.climbing
    if last:
        return step, None, over
    stacked = torch.stack([g[image] for g, (_, image) in zip(gradients, pick, strict=True) if g is not None])
    return step, stacked, over


def _a_row(argument: Any, image_of: Tensor, leaf: Tensor) -> bool:
    """Whether a further argument of the forward has one entry a row and view."""
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == len(image_of) * leaf.shape[1]


def _first_views(first: Tensor, views: int) -> Tensor:
    return (first[:, None] * views + torch.arange(views, device=first.device)).flatten()
