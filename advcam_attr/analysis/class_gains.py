"""Fig. 14: the gain of AdvCAM's seeds over CAM's by class, from the smallest to the largest objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.metrics.segmentation import object_sizes
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import BLUE, RED, figure, style_axes


@dataclass(frozen=True)
class ClassGains:
    """IoU of CAM's and AdvCAM's seeds by class that occurs, the smallest objects first; size in pixels an image."""

    classes: tuple[str, ...]
    size: tuple[float, ...]
    cam: tuple[float, ...]
    advcam: tuple[float, ...]

    def gain(self) -> tuple[float, ...]:
        return tuple(b - a for a, b in zip(self.cam, self.advcam, strict=True))

    def describe(self) -> dict[str, Any]:
        columns = {
            "name": self.classes,
            "object_size": self.size,
            "cam": self.cam,
            "advcam": self.advcam,
            "gain": self.gain(),
        }
        return {"per_class": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def class_gains(cam: SeedEvaluation, advcam: SeedEvaluation) -> ClassGains:
    """Compare two evaluations of the same images, each at its own best threshold."""
    require_same_images(cam, advcam)
    sizes = object_sizes(cam.images.truth())
    iou = [one.at().matrix.iou() for one in (cam, advcam)]
    occurring = [label for label in range(1, len(sizes)) if not sizes[label].isnan()]
    if not occurring:
        raise AdvCAMError(f"no image of {cam.scope.data} shows a class: there is nothing to compare")
    order = sorted(occurring, key=lambda label: float(sizes[label]))
    return ClassGains(
        tuple(cam.scope.classes[label - 1] for label in order),
        tuple(float(sizes[label]) for label in order),
        *(tuple(float(values[label]) for label in order) for values in iou),
    )


def require_same_images(one: SeedEvaluation, other: SeedEvaluation) -> None:
    if one.scope.ids != other.scope.ids:
        raise AdvCAMError(
            f"the seeds are of different images ({len(one.scope.ids)} and {len(other.scope.ids)}): "
            "make the missing ones"
        )


def plot_class_gains(found: ClassGains) -> Figure:
    gains = [100 * gain for gain in found.gain()]
    drawing, axes = figure(width=max(4.2, 1.2 + 0.24 * len(gains)), height=3.4)
    place = axes[0, 0]
    place.bar(range(len(gains)), gains, color=[BLUE if gain >= 0 else RED for gain in gains])
    place.axhline(0, color="black", linewidth=0.6)
    place.set_xticks(range(len(gains)), found.classes, rotation=90, fontsize=8)
    style_axes(place, "classes from the smallest to the largest objects", "", "gain in IoU over CAM, points")
    place.grid(axis="x", visible=False)
    return drawing
