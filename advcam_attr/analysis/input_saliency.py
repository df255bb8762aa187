"""Steps of a climb in; the gradient of the class score to each step's image, out (Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.plotting import figure, picture, shortened
from advcam_attr.analysis.rows import rounded
from advcam_attr.heads import HeadView, undisturbed
from advcam_attr.types import AdvCAMError, ClimbStep

#: The share of all saliency whose pixels are counted as its spread.
MASS = 0.8


@dataclass(frozen=True)
class InputSaliency:
    """What the class score looks at in the images of some steps.

    Attributes:
        steps: S of them.
        saliency: ``(R, S, H, W)``, |∂y_c / ∂xᵗ|, the largest of the channels.
        score: ``(R, S)``, y_c.
    """

    steps: tuple[int, ...]
    saliency: Tensor
    score: Tensor

    def first(self, rows: int) -> InputSaliency:
        """That of the first rows."""
        return InputSaliency(self.steps, self.saliency[:rows], self.score[:rows])

    def spread(self, mass: float = MASS) -> Tensor:
        """The smallest share of the pixels that holds this share of the saliency, ``(R, S)``: 1 / HW to ``mass``.

        A net that looks at few pixels has a small one; NaN where there is no saliency at all.
        """
        flat = self.saliency.double().flatten(2).sort(2, descending=True).values
        total = flat.sum(2, keepdim=True)
        count = (flat.cumsum(2) < mass * total * (1 - 1e-12)).sum(2) + 1
        return torch.where(total[..., 0] > 0, count / flat.shape[2], float("nan"))

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "steps": list(self.steps),
            "score": rounded(self.score),
            "mean": rounded(self.saliency.mean((2, 3)), 9),
            "spread": rounded(self.spread()),
            "mean_spread": rounded(self.spread().nanmean(0)),
        }


def input_saliency(
    view: HeadView, walk: Iterable[ClimbStep], target: Tensor, at: Sequence[int] | None = None
) -> InputSaliency:
    """|∂y_c / ∂xᵗ| of the image itself, not of its mirror image (Fig. 4). One forward and backward a step.

    Args:
        view: the classifier that was climbed.
        walk: from `advcam_attr.climbing.climb`.
        target: the class of each row, ``(R,)``.
        at: the steps that are looked at; None takes all.

    Raises:
        AdvCAMError: the climb has no such step.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for step in walk:
        if at is None or step.index in at:
            with undisturbed(view.model):
                leaf = step.x[:, 0].detach().requires_grad_()
                score = view(leaf).logits.gather(1, target[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(score.sum(), leaf)
            found[step.index] = gradient.abs().amax(1).float().cpu(), score.detach().cpu()
    if missing := sorted(set(at or ()) - found.keys()):
        raise AdvCAMError(f"the climb has no step {missing[0]}: it has {len(found) and max(found)} at most")
    return InputSaliency(tuple(found), *(torch.stack(column, 1) for column in zip(*found.values(), strict=True)))


def plot_input_saliency(found: InputSaliency, pictures: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """One row an image: the picture, then its saliency at each step, all of a row on one scale.

    Args:
        found: of R rows.
        pictures: R of ``(H, W, 3)`` in [0, 1].
        names: of the rows' classes.
    """
    drawing, axes = figure(len(pictures), 1 + len(found.steps), width=1.5, height=1.65)
    spread = found.spread()
    for row, (places, image, name) in enumerate(zip(axes, pictures, names, strict=True)):
        picture(places[0], image, shortened(name))
        ascending = found.saliency[row].flatten().sort().values
        top = float(ascending[round(0.999 * (len(ascending) - 1))]) or 1.0  # a few pixels would darken all others
        for place, t, map_, share in zip(places[1:], found.steps, found.saliency[row], spread[row], strict=True):
            picture(place, map_.numpy(), f"t = {t}, {100 * float(share):.0f} %", cmap="gray", vmin=0, vmax=top)
    drawing.suptitle(f"|∂y/∂xᵗ|, and the share of pixels with {100 * MASS:.0f} % of it", fontsize=10)
    return drawing
