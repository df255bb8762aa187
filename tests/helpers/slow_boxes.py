"""The MaxBoxAcc protocol in plain Python: all 1000 thresholds, box by box."""

import functools

import cv2
import numpy as np

THRESHOLDS = np.arange(0, 1, 0.001)


@functools.lru_cache(1 << 16)
def iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Of two boxes whose ends are their last pixels."""
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    union = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - w * h
    return w * h / union if union > 0 else 0.0


def boxes_at(grey: np.ndarray, threshold: float, largest: bool) -> list[tuple[int, ...]]:
    level = int(threshold * np.max(grey))
    _, above = cv2.threshold(src=grey, thresh=level, maxval=255, type=cv2.THRESH_BINARY)
    contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if len(contours) == 0:
        return [(0, 0, 0, 0)]
    if largest:
        contours = [max(contours, key=cv2.contourArea)]
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, grey.shape[1] - 1), min(y + h, grey.shape[0] - 1)))
    return boxes


def best_at_thresholds(grey: np.ndarray, truth, largest: bool = False) -> np.ndarray:
    """The best IoU at each of the 1000 thresholds."""
    true = [tuple(box) for box in np.asarray(truth).tolist()]
    return np.array([max(iou(b, t) for b in boxes_at(grey, i, largest) for t in true) for i in THRESHOLDS])


def max_box_acc(tables: np.ndarray, delta: float) -> float:
    """Of best IoUs ``(N, 1000)``: the highest share of images, over thresholds."""
    return max(sum(row[i] >= delta for row in tables) / len(tables) for i in range(tables.shape[1]))
