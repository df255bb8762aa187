"""Fig. 15: the scores of each map's pixels in decreasing order, before and after a climb."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from advcam_attr.analysis.samples import rounded
from advcam_attr.climbing.loop import totals
from advcam_attr.climbing.state import Aggregate
from advcam_attr.climbing.views import add
from advcam_attr.types import ClimbStep
from advcam_attr.viz.axes import BLUE, RED, figure, style_axes

#: The number of points of a curve.
POINTS = 101


@dataclass(frozen=True)
class ScoreCurves:
    """The sorted scores of R maps before and after a climb.

    Attributes:
        share: Q shares of the pixels, 0 to 1.
        cam: ``(R, Q)``, the score that this share of the clean image's map exceeds; each map's peak is 1.
        advcam: the same of the sum over the steps.
    """

    share: tuple[float, ...]
    cam: Tensor
    advcam: Tensor

    def describe(self) -> dict[str, Any]:
        """Return the mean curves, and the area below each, for JSON."""
        curves = {"cam": self.cam.mean(0), "advcam": self.advcam.mean(0)}
        share = torch.tensor(self.share, dtype=torch.float64)
        area = {name: float(torch.trapezoid(curve.double(), share)) for name, curve in curves.items()}
        return {
            "maps": len(self.cam),
            "share": list(self.share),
            **{name: rounded(curve) for name, curve in curves.items()},
            "area": {name: round(value, 6) for name, value in area.items()},
        }


def score_curves(
    steps: Iterable[ClimbStep], size: tuple[int, int], aggregate: Aggregate = add, points: int = POINTS
) -> ScoreCurves:
    """Sort the scores of the clean image's map and of the climb's sum at ``points`` shares of the pixels (Fig. 15).

    Maps are resized to the image's ``size`` (bilinear), rectified and divided by their peak.
    """
    for step, total in totals(steps, aggregate):
        if step.index == 0:
            clean = step.maps
        summed = total
    share = torch.linspace(0, 1, points, dtype=torch.float64)
    return ScoreCurves(tuple(share.tolist()), *(_sorted(maps, size, share) for maps in (clean, summed)))


def _sorted(maps: Tensor, size: tuple[int, int], share: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None].double().cpu(), size, mode="bilinear", align_corners=False)[:, 0].relu()
    scores = (large / large.amax((1, 2), keepdim=True).clamp_min(1e-300)).flatten(1).sort(1, descending=True).values
    return scores[:, (share * (scores.shape[1] - 1)).round().long()].float()


def plot_score_curves(found: ScoreCurves) -> Figure:
    drawing, axes = figure(width=5)
    place = axes[0, 0]
    for name, curves, colour in (("CAM", found.cam, BLUE), ("AdvCAM", found.advcam, RED)):
        place.plot(found.share, curves.mean(0), color=colour, label=name)
        lower, upper = curves.quantile(torch.tensor([0.25, 0.75]), 0)
        place.fill_between(found.share, lower, upper, color=colour, alpha=0.18, linewidth=0)
    maps = "one map" if len(found.cam) == 1 else f"mean and quartiles of {len(found.cam)} maps"
    style_axes(place, f"sorted scores, {maps}", "share of the pixels", "score / peak")
    place.legend(frameon=False)
    return drawing
