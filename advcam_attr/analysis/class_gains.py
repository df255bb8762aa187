"""Evaluations of CAM's and AdvCAM's seeds in; each class's gain, smallest objects first, out (Fig. 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.metrics.segmentation import object_sizes
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import BLUE, RED, figure, style_axes


@dataclass(frozen=True)
class ClassGains:
    """How much AdvCAM's seeds are better than CAM's, by class, the smallest objects first; shares of 1.

    Attributes:
        classes: names of the classes that occur.
        size: mean number of true pixels in the images that show it.
        cam, advcam: intersection over union.
    """

    classes: tuple[str, ...]
    size: tuple[float, ...]
    cam: tuple[float, ...]
    advcam: tuple[float, ...]

    def gain(self) -> tuple[float, ...]:
        """AdvCAM's less CAM's."""
        return tuple(b - a for a, b in zip(self.cam, self.advcam, strict=True))

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        columns = {"object_size": self.size, "cam": self.cam, "advcam": self.advcam, "gain": self.gain()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"per_class": [{"name": name} | row for name, row in zip(self.classes, rows, strict=True)]}


def class_gains(cam: SeedEvaluation, advcam: SeedEvaluation) -> ClassGains:
    """Compare two evaluations of the same images, each cut at its own best threshold.

    Raises:
        AdvCAMError: other images, or none that shows a class.
    """
    require_same_images(cam, advcam)
    sizes = object_sizes(cam.images.truth())
    iou = [measures.iou(one.at().matrix.marginals()) for one in (cam, advcam)]
    known = [label for label in range(1, len(sizes)) if not sizes[label].isnan()]
    if not known:
        raise AdvCAMError(f"no image of {cam.scope.data} shows a class: there is nothing to compare")
    order = sorted(known, key=lambda label: float(sizes[label]))
    return ClassGains(
        tuple(cam.scope.classes[label - 1] for label in order),
        tuple(float(sizes[label]) for label in order),
        *(tuple(float(values[label]) for label in order) for values in iou),
    )


def require_same_images(one: SeedEvaluation, other: SeedEvaluation) -> None:
    """That two evaluations are of the same images, in the same order.

    Raises:
        AdvCAMError: they are not.
    """
    if one.scope.ids != other.scope.ids:
        raise AdvCAMError(
            f"the seeds are of different images ({len(one.scope.ids)} and {len(other.scope.ids)}): make those that lack"
        )


def plot_class_gains(found: ClassGains) -> Figure:
    """A bar a class."""
    gains = [100 * gain for gain in found.gain()]
    drawing, axes = figure(width=max(4.2, 1.2 + 0.24 * len(gains)), height=3.4)
    place = axes[0, 0]
    place.bar(range(len(gains)), gains, color=[BLUE if gain >= 0 else RED for gain in gains])
    place.axhline(0, color="black", linewidth=0.6)
    place.set_xticks(range(len(gains)), found.classes, rotation=90, fontsize=8)
    style_axes(place, "classes from the smallest to the largest objects", "", "gain in IoU over CAM, points")
    place.grid(axis="x", visible=False)
    return drawing
