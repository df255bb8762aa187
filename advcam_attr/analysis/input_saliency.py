"""Fig. 4: the gradient of the class score with respect to the image at the steps of a climb."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.heads import HeadView, undisturbed
from advcam_attr.types import AdvCAMError, ClimbStep
from advcam_attr.viz.axes import CYCLE, figure, show_image, style_axes
from advcam_attr.viz.overlay import short_name

#: The share of all saliency that the spread counts pixels of.
MASS = 0.8


@dataclass(frozen=True)
class InputSaliency:
    """The input saliency of R samples at S steps.

    Attributes:
        steps: their indices.
        saliency: ``(R, S, H, W)``, ``|∂y_c / ∂xᵗ|``, the largest of the channels.
        score: ``(R, S)``, y_c.
    """

    steps: tuple[int, ...]
    saliency: Tensor
    score: Tensor

    def first(self, count: int) -> InputSaliency:
        return InputSaliency(self.steps, self.saliency[:count], self.score[:count])

    def spread(self, mass: float = MASS) -> Tensor:
        """Return the smallest share of the pixels that holds ``mass`` of the saliency, ``(R, S)``; NaN without any."""
        flat = self.saliency.double().flatten(2).sort(2, descending=True).values
        total = flat.sum(2, keepdim=True)
        count = (flat.cumsum(2) < mass * total * (1 - 1e-12)).sum(2) + 1
        return torch.where(total[..., 0] > 0, count / flat.shape[2], float("nan"))

    def shares(self) -> SaliencyShares:
        return SaliencyShares(self.steps, self.spread())

    def describe(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "score": rounded(self.score),
            "mean": rounded(self.saliency.mean((2, 3)), 9),
            "spread": rounded(self.spread()),
            "mean_spread": rounded(self.spread().nanmean(0)),
        }


@dataclass(frozen=True)
class SaliencyShares:
    """The spread of the saliency of R samples over S steps: ``share``, ``(R, S)``, see `InputSaliency.spread`."""

    steps: tuple[int, ...]
    share: Tensor

    def change(self) -> Tensor:
        """Return the mean over the samples of the share at each step minus that at the first, ``(S,)``."""
        return (self.share - self.share[:, :1]).nanmean(0)

    def describe(self) -> dict[str, Any]:
        quartiles = self.share.nanquantile(self.share.new_tensor([0.25, 0.5, 0.75]), 0)
        found = {"steps": list(self.steps), "samples": len(self.share), "mean": rounded(self.share.nanmean(0))}
        found |= {name: rounded(one) for name, one in zip(("q25", "q50", "q75"), quartiles, strict=True)}
        wider = int((self.share[:, -1] > self.share[:, 0]).sum())
        return found | {"wider_at_last": wider, "change": rounded(self.change())}


def input_saliency(
    view: HeadView, steps: Iterable[ClimbStep], target: Tensor, at: Sequence[int] | None = None
) -> InputSaliency:
    """Return ``|∂y_c / ∂xᵗ|`` of the image itself, not of its mirror image, at the steps ``at`` (Fig. 4)."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for step in steps:
        if at is None or step.index in at:
            with undisturbed(view.model):
                leaf = step.x[:, 0].detach().requires_grad_()
                score = view(leaf).logits.gather(1, target[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(score.sum(), leaf)
            found[step.index] = gradient.abs().amax(1).float().cpu(), score.detach().cpu()
    if missing := sorted(set(at or ()) - found.keys()):
        raise AdvCAMError(f"the climb has no step {missing[0]}: it has {len(found) and max(found)} at most")
    return InputSaliency(tuple(found), *(torch.stack(column, 1) for column in zip(*found.values(), strict=True)))


def plot_input_saliency(found: InputSaliency, images: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """Plot a row per sample: the image, then its saliency at each step, all of a row on one scale."""
    drawing, axes = figure(len(images), 1 + len(found.steps), width=1.5, height=1.65)
    spread = found.spread()
    for row, (places, image, name) in enumerate(zip(axes, images, names, strict=True)):
        show_image(places[0], image, textwrap.fill(short_name(name), 24))
        ascending = found.saliency[row].flatten().sort().values
        top = float(ascending[round(0.999 * (len(ascending) - 1))]) or 1.0  # a few pixels would darken all others
        for place, t, map_, share in zip(places[1:], found.steps, found.saliency[row], spread[row], strict=True):
            show_image(place, map_.numpy(), f"t = {t}, {100 * float(share):.0f} %", cmap="gray", vmin=0, vmax=top)
    drawing.suptitle(f"|∂y/∂xᵗ|, and the share of pixels with {100 * MASS:.0f} % of it", fontsize=10)
    return drawing


def plot_saliency_shares(found: Mapping[str, SaliencyShares]) -> Figure:
    """Plot the median and the quartiles of the shares over the samples, one colour a variant."""
    drawing, axes = figure(width=5)
    place = axes[0, 0]
    for (name, one), colour in zip(found.items(), CYCLE, strict=False):
        percent = 100 * one.share
        lower, median, upper = percent.nanquantile(percent.new_tensor([0.25, 0.5, 0.75]), 0)
        place.fill_between(one.steps, lower, upper, color=colour, alpha=0.18, linewidth=0)
        place.plot(one.steps, median, color=colour, label=name)
    count = max(len(one.share) for one in found.values())
    title = "one image" if count == 1 else f"median and quartiles of {count} images"
    style_axes(place, f"|∂y/∂xᵗ|, {title}", "step t", f"share of pixels with {100 * MASS:.0f} % of it, %")
    place.legend(frameon=False, fontsize=8)
    return drawing
