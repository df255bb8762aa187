"""Fig. 13: the images whose AdvCAM seeds lose most, or gain most, against CAM's, and their gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from advcam_attr.analysis.class_gains import require_same_images
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.metrics.segmentation import mean_iou
from advcam_attr.types import ClassMaps
from advcam_attr.viz.overlay import heat_over, labels_over, panels


@dataclass(frozen=True)
class ImageGains:
    """Mean IoU of CAM's and AdvCAM's seeds by image, the largest loss first.

    The mean is over the classes in the image's truth or seed, the background included; thresholds are the best over
    all images, of CAM and of AdvCAM.
    """

    ids: tuple[str, ...]
    cam: tuple[float, ...]
    advcam: tuple[float, ...]
    thresholds: tuple[float, float]

    def gain(self) -> tuple[float, ...]:
        return tuple(b - a for a, b in zip(self.cam, self.advcam, strict=True))

    def describe(self) -> dict[str, Any]:
        columns = {"id": self.ids, "cam": self.cam, "advcam": self.advcam, "gain": self.gain()}
        return {
            "thresholds": {"cam": self.thresholds[0], "advcam": self.thresholds[1]},
            "worse": sum(gain < 0 for gain in self.gain()),
            "images": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        }


def image_gains(cam: SeedEvaluation, advcam: SeedEvaluation) -> ImageGains:
    """Compare two evaluations image by image, each at its best threshold over all of them."""
    require_same_images(cam, advcam)
    thresholds = cam.sweep.best_threshold(), advcam.sweep.best_threshold()
    both = [
        mean_iou(one.images.marginals(one.sweep.place(threshold))).nan_to_num(1.0).tolist()
        for one, threshold in zip((cam, advcam), thresholds, strict=True)
    ]
    rows = sorted(zip(cam.scope.ids, *both, strict=True), key=lambda row: (row[2] - row[1], row[0]))
    ids, before, after = zip(*rows, strict=True)
    return ImageGains(ids, before, after, thresholds)


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        caption: its name, classes and scores.
        image: ``(H, W, 3)`` in [0, 1].
        truth: ``(H, W)`` labels, void as background.
        cam, advcam: the maps.
        seeds: of both maps, ``(H, W)`` each.
    """

    caption: str
    image: np.ndarray
    truth: np.ndarray
    cam: ClassMaps
    advcam: ClassMaps
    seeds: tuple[np.ndarray, np.ndarray]


def plot_failures(shown: Sequence[Shown]) -> Image.Image:
    """Draw a row per image: the image, the truth, and the strongest class's map and the seed of CAM and of AdvCAM."""
    rows = []
    for one in shown:
        row = [one.image, labels_over(one.image, one.truth, "Paired")]
        for maps, seed in zip((one.cam, one.advcam), one.seeds, strict=True):
            heat = maps.high_res.numpy().max(0) if maps.classes else np.zeros(one.image.shape[:2])
            row += [heat_over(one.image, heat), labels_over(one.image, seed, "Paired")]
        rows.append(row)
    titles = ["image", "truth", "CAM", "seed of CAM", "AdvCAM", "seed of AdvCAM"]
    return panels(rows, titles, [one.caption for one in shown], cell=150)
