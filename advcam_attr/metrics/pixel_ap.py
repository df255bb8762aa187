"""Score maps and true masks in; the pixel average precision of all of them (PxAP), out.

Pixels are counted over all images before anything is divided. Protocol: Choe et al. (CVPR 2020), for OpenImages30k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advcam_attr.metrics.localization import THRESHOLDS
from advcam_attr.types import AdvCAMError

#: The value of pixels that count for nothing in a true mask.
IGNORE = 255


class PixelAP:
    """Score maps and masks, one image at a time, in; PxAP out.

    Args:
        thresholds: ascending, from 0 to below 1; scores between two of them are one.

    Example:
        >>> metric = PixelAP()
        >>> metric.update(np.array([[0.9, 0.2, 0.1]]), np.array([[1, 0, 255]]))
        >>> metric.value()
        1.0
        >>> metric.update(np.array([[0.2, 0.9]]), np.array([[1, 0]]))
        >>> metric.value()
        0.5
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self._edges = np.append(thresholds, [1.0, 2.0, 3.0])
        #: Pixels by true foreground (0, 1) and interval of scores, ``(2, T + 2)`` int64.
        self.counts = np.zeros((2, len(self._edges) - 1), np.int64)

    def update(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """Add an image.

        Args:
            scores: ``(H, W)`` in [0, 1], see `advcam_attr.refine.boxes.score_map`.
            truth: ``(H, W)``: 1 for the object, 0 for the background, 255 for pixels that count for nothing.

        Raises:
            AdvCAMError: the shapes differ, scores outside [0, 1], or other values in the mask.
        """
        if scores.shape != truth.shape:
            raise AdvCAMError(f"scores {scores.shape} and their mask {truth.shape} differ in shape")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise AdvCAMError("scores must lie in [0, 1]")
        if not np.isin(truth, (0, 1, IGNORE)).all():
            raise AdvCAMError(f"a mask holds 0, 1 and {IGNORE} alone, got {np.unique(truth).tolist()[:5]}")
        for value in (0, 1):
            self.counts[value] += np.histogram(scores[truth == value], self._edges)[0]

    def merge(self, other: PixelAP) -> None:
        """Add what another one, of the same thresholds, has counted."""
        if not np.array_equal(self._edges, other._edges):
            raise AdvCAMError("cannot merge pixel counts of different thresholds")
        self.counts += other.counts

    def value(self) -> float:
        """The area under the curve of precision over recall, a share of 1.

        AP = Σ precision_k (recall_k − recall_{k−1}) from the highest interval on.

        Raises:
            AdvCAMError: no pixel of an object was counted.
        """
        false, true = self.counts[:, ::-1].cumsum(1)
        if not true[-1]:
            raise AdvCAMError("no mask has a pixel of an object: there is no average precision")
        precision = true / np.maximum(true + false, 1)
        return float((precision[1:] * np.diff(true / true[-1])).sum())
