"""Fig. 2: the amplification of discriminative and other regions during a climb."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.types import ClimbStep
from advcam_attr.viz.axes import BLUE, RED, figure, style_axes

#: Shares of a map's peak from which a cell is discriminative, and above which it counts at all. The lower one is the
#: paper's; the upper one is not legible in every copy.
DISCRIMINATIVE, LOWEST = 0.5, 0.1

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Amplification:
    """The pixel amplification ratio CAM(x^t) / CAM(x⁰) of P cells, over S + 1 steps.

    Attributes:
        ratio: ``(P, S + 1)`` float32, 1 at step 0.
        discriminative: ``(P,)`` bool: at least half of the map's peak; the other cells have a tenth to a half.
    """

    ratio: Tensor
    discriminative: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean ratio of discriminative and of other cells, ``(S + 1,)`` each; NaN without cells."""
        return self.ratio[self.discriminative].mean(0), self.ratio[~self.discriminative].mean(0)

    def growth(self) -> Tensor:
        """Return the mean ratio of other cells over that of discriminative ones, ``(S + 1,)``."""
        high, low = self.mean()
        return low / high

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {"growth": rounded(self.growth())}
        for name, cells in (("discriminative", self.discriminative), ("other", ~self.discriminative)):
            ratios = self.ratio[cells]
            found[name] = {"cells": len(ratios), "mean": rounded(ratios.mean(0))}
            found[name] |= {f"q{int(100 * q):02d}": rounded(_quantile(ratios, q)) for q in _QUANTILES}
        return found


def amplification(
    steps: Iterable[ClimbStep], discriminative: float = DISCRIMINATIVE, lowest: float = LOWEST
) -> Amplification:
    """Return the amplification ratio of each cell of the clean image's maps, by region (Fig. 2).

    Regions are those of the clean image: ``R_D`` where its map has at least half of its peak, ``R_ND`` where it has
    more than a tenth and less than half. Maps are not normalised; one without positive cells has no regions.

    Example:
        >>> import torch
        >>> from advcam_attr.types import ClimbStep
        >>> maps = torch.tensor([[[4.0, 1.0, 0.1]]]), torch.tensor([[[8.0, 3.0, 9.0]]])
        >>> none = torch.empty(0)
        >>> found = amplification(ClimbStep(t, none, none, m, none, none, none) for t, m in enumerate(maps))
        >>> found.ratio.tolist(), found.growth().tolist()
        ([[1.0, 2.0], [1.0, 3.0]], [1.0, 1.5])
    """
    all_maps = [step.maps.float().cpu() for step in steps]
    clean = all_maps[0]
    peak = clean.amax((1, 2), keepdim=True)
    share = torch.where(peak > 0, clean / peak.clamp_min(torch.finfo(clean.dtype).tiny), 0.0)
    high, low = share >= discriminative, (share > lowest) & (share < discriminative)
    counted = high | low
    ratio = torch.stack([maps[counted] / clean[counted] for maps in all_maps], 1)
    return Amplification(ratio, high[counted])


def plot_amplification(found: Mapping[str, Amplification]) -> Figure:
    """Plot median, quartiles and the 5 % to 95 % range of both regions, one pair of axes a variant."""
    drawing, axes = figure(1, len(found))
    for place, (name, one) in zip(axes[0], found.items(), strict=True):
        t = range(one.ratio.shape[1])
        for label, cells, colour in (
            ("discriminative", one.discriminative, BLUE),
            ("other", ~one.discriminative, RED),
        ):
            ratios = one.ratio[cells]
            lowest, lower, median, upper, highest = (_quantile(ratios, q) for q in _QUANTILES)
            place.fill_between(t, lowest, highest, color=colour, alpha=0.12, linewidth=0)
            place.fill_between(t, lower, upper, color=colour, alpha=0.25, linewidth=0)
            place.plot(t, median, color=colour, label=f"{label}, {len(ratios)} cells")
        growth = float(one.growth()[-1])
        style_axes(place, f"{name}: other / discriminative = {growth:.2f}", "step t", "CAM(xᵗ) / CAM(x⁰)")
        place.legend(frameon=False, fontsize=8, loc="upper left")
    top = max(place.get_ylim()[1] for place in axes[0])
    bottom = min(place.get_ylim()[0] for place in axes[0])
    for place in axes[0]:
        place.set_ylim(bottom, top)
    return drawing


def _quantile(ratios: Tensor, q: float) -> Tensor:
    """Return a quantile of each step, ``(S + 1,)``; NaN without cells."""
    if not len(ratios):
        return ratios.new_full((ratios.shape[1],), float("nan"))
    return ratios.double().sort(0).values[round(q * (len(ratios) - 1))]
