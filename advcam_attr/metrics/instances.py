"""Average precision of instance masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advcam_attr.types import MOST_INSTANCES, AdvCAMError, Instances

#: COCO's IoU thresholds; IRN and later work report 0.5 and 0.7.
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True)
class InstanceScores:
    """Average precision, shares of 1.

    Attributes:
        thresholds: of IoU, T.
        classes: ``(T, K)`` float64; NaN where a class has no true instance.
    """

    thresholds: tuple[float, ...]
    classes: Tensor

    def at(self, threshold: float) -> float:
        """Return the mean over classes at a threshold."""
        return float(self.classes[self.thresholds.index(threshold)].nanmean())

    @property
    def mean(self) -> float:
        """The mean over classes and thresholds."""
        return float(self.classes.nanmean())


class InstanceAP:
    """Accumulates found and true instances of images and computes average precision as COCO does (Lin et al., 2014).

    Of each class, found instances are matched by decreasing score, each to the free true instance of largest IoU at or
    above the threshold. Precision, made to fall with recall, is averaged over 101 recalls. IRN's evaluation (chainercv)
    takes the area under that curve, and does not match an instance to another when its best is taken.

    Args:
        num_classes: K.
        thresholds: of IoU, ascending.

    Example:
        >>> truth = Instances((0,), torch.ones(1, 4, 4, dtype=torch.bool))
        >>> found = Instances((0, 1), torch.ones(2, 4, 4, dtype=torch.bool), (0.9, 0.8))
        >>> metric = InstanceAP(2)
        >>> metric.update(found, truth)
        >>> round(metric.compute().at(0.5), 6)
        1.0
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] = IOU_THRESHOLDS) -> None:
        self.num_classes, self.thresholds = num_classes, tuple(thresholds)
        self.images: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
        self._sizes: list[tuple[int, int]] = []

    def update(self, found: Instances, truth: Instances) -> None:
        """Add an image."""
        if found.masks.shape[1:] != truth.masks.shape[1:]:
            raise AdvCAMError(
                f"found instances {tuple(found.masks.shape)} and true ones {tuple(truth.masks.shape)} must be of one "
                "image's size, (M, H, W)"
            )
        if len(found.scores) != len(found.classes):
            raise AdvCAMError(f"{len(found.classes)} found instances have {len(found.scores)} scores; give one each")
        if any(not 0 <= k < self.num_classes for k in (*found.classes, *truth.classes)):
            raise AdvCAMError(f"an instance of none of the {self.num_classes} classes: classes are 0-based")
        self.images.append((_described(truth), _described(found)))
        self._sizes.append((truth.masks.shape[1], truth.masks.shape[2]))

    def merge(self, other: InstanceAP) -> None:
        """Add the images of another."""
        self.images += other.images
        self._sizes += other._sizes

    def compute(self) -> InstanceScores:
        """Return the average precision of all images."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            evaluation = COCOeval(self._indexed(0), self._indexed(1), "segm")
            evaluation.params.iouThrs = np.array(self.thresholds)
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [MOST_INSTANCES]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = torch.from_numpy(evaluation.eval["precision"])[..., 0, 0]  # (T, recalls, K); -1 without truth
        return InstanceScores(self.thresholds, precision.where(precision >= 0, torch.nan).mean(1))

    def _indexed(self, which: int) -> Any:
        from pycocotools.coco import COCO

        instances = [dict(one, image_id=image) for image, both in enumerate(self.images) for one in both[which]]
        api = COCO()
        api.dataset = {
            "images": [{"id": id, "height": h, "width": w} for id, (h, w) in enumerate(self._sizes)],
            "categories": [{"id": k} for k in range(self.num_classes)],
            "annotations": [dict(one, id=id) for id, one in enumerate(instances, start=1)],
        }
        api.createIndex()
        return api


def _described(instances: Instances) -> list[dict[str, Any]]:
    """The instances as pycocotools takes them, run-length coded."""
    try:
        from pycocotools import mask as coder
    except ImportError as error:
        raise AdvCAMError("average precision needs pycocotools: pip install 'advcam_attr[segmentation]'") from error
    described = []
    for i, k in enumerate(instances.classes):
        mask = instances.masks[i].cpu().numpy()
        code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        one = {"category_id": k, "segmentation": code, "area": int(mask.sum()), "iscrowd": int(i in instances.crowds)}
        described.append(one | ({"score": instances.scores[i]} if instances.scores else {}))
    return described
