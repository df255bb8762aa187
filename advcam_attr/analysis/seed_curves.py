"""Fig. 11 and Table XI: quality and noise of seeds over the values of a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from advcam_attr.files import to_json
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import CYCLE, figure, style_axes

#: The settings of the curves, in the paper's letters.
SETTINGS = {"steps": "steps T", "lambda": "λ", "tau": "τ", "xi": "ξ"}


@dataclass(frozen=True)
class SeedCurve:
    """Scores of seeds over ascending values of one setting, each at its best threshold; shares of 1.

    ``noise`` is the share of their foreground that is truly background.
    """

    name: str
    values: tuple[float, ...]
    mean_iou: tuple[float, ...]
    noise: tuple[float, ...]
    threshold: tuple[float, ...]

    def describe(self) -> dict[str, Any]:
        rounded = {"mean_iou": [round(v, 6) for v in self.mean_iou], "noise": [round(v, 6) for v in self.noise]}
        described: dict[str, Any] = to_json(vars(self) | rounded)
        return described


def seed_curve(name: str, found: Mapping[float, SeedEvaluation]) -> SeedCurve:
    """Return the curve of evaluations by value, each at its best threshold on the scored masks, as in the paper."""
    if not found:
        raise AdvCAMError(f"no seeds for the curve {name!r}: give at least one value")
    values = tuple(sorted(found))
    best = {value: found[value].sweep.best_threshold() for value in values}
    scores = [found[value].at(best[value]).scores() for value in values]
    return SeedCurve(
        name,
        values,
        tuple(one.mean_iou for one in scores),
        tuple(one.noise for one in scores),
        tuple(best.values()),
    )


def plot_seed_curves(found: Mapping[str, Sequence[SeedCurve]], images: int) -> Figure:
    """Plot mean IoU above and noise below, one column a setting; a name has one colour, and all columns one scale."""
    names = dict.fromkeys(curve.name for curves in found.values() for curve in curves)
    colours = dict(zip(names, CYCLE, strict=False))
    drawing, axes = figure(2, len(found), width=3.6, height=2.7)
    lines = {}
    for column, (setting, curves) in enumerate(found.items()):
        for curve in curves:
            style = {"color": colours[curve.name], "marker": "o", "markersize": 3}
            axes[0, column].plot(curve.values, [100 * v for v in curve.mean_iou], **style)
            (lines[curve.name],) = axes[1, column].plot(curve.values, [100 * v for v in curve.noise], **style)
        style_axes(axes[0, column], "", "", "seed mIoU, %")
        style_axes(axes[1, column], "", SETTINGS.get(setting, setting), "noise, %")
    for row in axes:
        limits = [place.get_ylim() for place in row]
        for place in row:
            place.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    if len(lines) > 1:  # below all axes: inside them there may be no place free of curves
        drawing.legend(lines.values(), lines.keys(), loc="outside lower left", frameon=False, fontsize=8)
    drawing.suptitle(f"seeds of {images} images, each at its best threshold", fontsize=10)
    return drawing


def plot_final_map(found: Mapping[str, SeedEvaluation]) -> Figure:
    """Plot mean IoU over the background threshold, one line a design of the final map (Table XI)."""
    drawing, axes = figure(width=4.8)
    place = axes[0, 0]
    for (name, one), colour in zip(found.items(), CYCLE, strict=False):
        curve, best = one.sweep.mean_iou(), one.sweep.best_threshold()
        top = float(curve.nan_to_num(0).max())
        place.plot(one.sweep.thresholds, 100 * curve, color=colour, label=f"{name}: {100 * top:.1f} at {best:.2f}")
        place.plot(best, 100 * top, "o", color=colour)
    style_axes(place, "design of the final map", "background threshold", "seed mIoU, %")
    place.legend(frameon=False, fontsize=8)
    return drawing
