"""Boxes and masks of class maps, and the grey levels and boxes of MaxBoxAcc (Choe et al., CVPR 2020).

Maps are resized to the net's input with bicubic interpolation, scaled to [0, 1], truncated to 8 bits, and every contour
of what exceeds a level, the borders of holes included, has a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advcam_attr.refine.opencv import opencv
from advcam_attr.types import AdvCAMError

#: Height and width on which boxes are scored: the net's input.
SIZE = (224, 224)

#: x0, y0, x1, y1 on a map's grid.
Box = tuple[int, int, int, int]

#: Which connected components: the one of the most pixels, or every one.
Components = Literal["largest", "all"]


def score_map(raw: Tensor | np.ndarray, size: tuple[int, int] | None = SIZE) -> np.ndarray:
    """Return a class map as localization is scored on it: resized, then min-max normalised, ``(H, W)`` float64.

    It is resized in float64 (float32 would change some grey levels). A map that holds NaN, and a constant one, become
    zeros.

    Args:
        raw: ``(h, w)``, also with leading dimensions of 1, e.g. ``(1, 1, h, w)``.
        size: height and width to resize to; None for the map's own.
    """
    scores = _plane(raw).astype(np.float64)
    if not np.isnan(scores).any():
        _check_finite(scores)
    if size is not None:
        if min(size) < 1:
            raise AdvCAMError(f"size is a height and a width of at least 1, got {_by(size)}")
        scores = opencv().resize(scores, (size[1], size[0]), interpolation=opencv().INTER_CUBIC)
    if np.isnan(scores).any() or scores.min() == scores.max():
        return np.zeros_like(scores)
    _check_finite(scores)
    scores -= scores.min()
    scores /= scores.max()
    return scores


def check_scores(scores: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return scores that need no normalisation, which must be ``(H, W)`` float64 of this size in [0, 1]."""
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float64:
        raise AdvCAMError(f"scores must be a float64 array, got {getattr(scores, 'dtype', type(scores).__name__)}")
    if scores.shape != size:
        raise AdvCAMError(f"scores must be of {_by(size)} pixels, got {_by(scores.shape)}")
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise AdvCAMError(f"scores must lie in [0, 1], got {scores.min():g} to {scores.max():g}")
    return scores


def grey_levels(scores: np.ndarray) -> np.ndarray:
    """Return scores ``(H, W)`` in [0, 1] as 8 bits, truncated."""
    return (scores * 255).astype(np.uint8)


def boxes_above(grey: np.ndarray, level: int) -> list[Box]:
    """Return the box of every contour of what is brighter than a level, the borders of holes included (MaxBoxAccV2).

    Foreground is 8-connected. A box ends one pixel past its contour, except at the map's edge; the border of a hole is
    the foreground around it. Boxes are in OpenCV's order, and ``[(0, 0, 0, 0)]`` where nothing exceeds the level.
    """
    return _boxes(_contours(grey, level), grey)


def largest_box_above(grey: np.ndarray, level: int) -> list[Box]:
    """Return, like `boxes_above`, the box of the contour that encloses the largest area, the first of equals.

    The area (MaxBoxAcc's) is that of the polygon through the pixels' centres: a line of pixels has none.
    """
    contours = _contours(grey, level)
    return _boxes([max(contours, key=opencv().contourArea)] if contours else [], grey)


def resize_boxes(
    boxes: Tensor | np.ndarray | Sequence[Sequence[int]], size: tuple[int, int], to: tuple[int, int] = SIZE
) -> np.ndarray:
    """Return boxes ``(G, 4)`` (x0, y0, x1, y1) of an image at another size of it, truncated to whole pixels, int64."""
    found = np.asarray(boxes)
    if found.ndim != 2 or found.shape[1:] != (4,) or not len(found):
        raise AdvCAMError(f"boxes must be (G, 4), at least one, got shape {found.shape}")
    (height, width), (rows, columns) = size, to
    for x0, y0, x1, y1 in found.tolist():
        if not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
            raise AdvCAMError(
                f"the box {x0}, {y0}, {x1}, {y1} does not lie in an image of {width} x {height} pixels: "
                "boxes are x0, y0, x1, y1 in pixels of the original image"
            )
    return (found * np.array([columns, rows] * 2) / np.array([width, height] * 2)).astype(np.int64)


def map_to_mask(
    raw: Tensor | np.ndarray,
    threshold: float,
    *,
    size: tuple[int, int] | None = None,
    components: Components = "all",
) -> Tensor:
    """Return the object mask of a map, ``(H, W)`` bool: the pixels whose score exceeds a threshold.

    Args:
        raw: a map of one class, ``(h, w)``, also with leading dimensions of 1, e.g. from `advcam_attr.AdvCAM`.
        threshold: in [0, 1) of the map's range; scores are truncated to 8 bits first, as in MaxBoxAcc.
        size: the image's height and width; None for the map's own.
        components: all connected components, or the one of the most pixels (``"largest"``).

    Raises:
        AdvCAMError: a map that `score_map` rejects, unknown components or a threshold out of range.

    Example:
        >>> heat = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.8]])
        >>> map_to_mask(heat, 0.5).tolist()
        [[False, True, True, False, True]]
    """
    parts, stats = _components(raw, threshold, size, components)
    return torch.from_numpy(np.isin(parts, stats[:, -1]))


def map_to_boxes(
    raw: Tensor | np.ndarray,
    threshold: float,
    *,
    size: tuple[int, int] | None = None,
    components: Components = "largest",
) -> Tensor:
    """Return the boxes of the objects in a map, in the image's own pixels: ``(M, 4)`` int64, x0, y0, x1, y1.

    A box tightly encloses a connected component of `map_to_mask`; x1 and y1 are its last pixels. Holes have no boxes; a
    component within another's hole has its own. M is 0 for a constant map. Arguments are those of `map_to_mask`; with
    ``components="all"``, boxes are by decreasing number of pixels.

    Example:
        >>> heat = torch.zeros(1, 1, 6, 8)
        >>> heat[..., 1:4, 2:5] = 1
        >>> heat[..., 5, 7] = 0.8
        >>> map_to_boxes(heat, 0.5, components="all").tolist()
        [[2, 1, 4, 3], [7, 5, 7, 5]]
        >>> map_to_boxes(heat, 0.5, size=(60, 80)).tolist()  # of an image ten times as large
        [[20, 10, 49, 39]]
    """
    _, stats = _components(raw, threshold, size, components)
    return torch.from_numpy(stats[:, :4].copy())


def _components(
    raw: Tensor | np.ndarray, threshold: float, size: tuple[int, int] | None, components: Components
) -> tuple[np.ndarray, np.ndarray]:
    """The connected components by number ``(H, W)``; box, pixels and number of each, ``(M, 6)``, largest first."""
    if not 0 <= threshold < 1:
        raise AdvCAMError(f"threshold must be at least 0 and below 1, got {threshold}")
    if components not in ("largest", "all"):
        raise AdvCAMError(f'components must be "largest" or "all", got {components!r}')
    grey = grey_levels(score_map(raw, size))
    above = (grey > int(threshold * 255)).astype(np.uint8)
    count, parts, stats, _ = opencv().connectedComponentsWithStats(above, connectivity=8)
    x, y, w, h, pixels = stats[1:].astype(np.int64).T
    table = np.stack([x, y, x + w - 1, y + h - 1, pixels, np.arange(1, count)], axis=1)
    return parts, table[np.argsort(-pixels, kind="stable")][: 1 if components == "largest" else None]


def _contours(grey: np.ndarray, level: int) -> Sequence[np.ndarray]:
    cv2 = opencv()
    above = cv2.threshold(grey, level, 255, cv2.THRESH_BINARY)[1]
    contours: Sequence[np.ndarray] = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    return contours


def _boxes(contours: Sequence[np.ndarray], grey: np.ndarray) -> list[Box]:
    bottom, right = grey.shape[0] - 1, grey.shape[1] - 1
    around = map(opencv().boundingRect, contours)
    return [(x, y, min(x + w, right), min(y + h, bottom)) for x, y, w, h in around] or [(0, 0, 0, 0)]


def _plane(raw: Tensor | np.ndarray) -> np.ndarray:
    found = raw.detach().cpu().double().numpy() if isinstance(raw, Tensor) else np.asarray(raw)
    if found.ndim < 2 or found.size == 0 or found.size != found.shape[-1] * found.shape[-2]:
        raise AdvCAMError(f"a map must be (h, w), or have leading dimensions of 1, got shape {tuple(found.shape)}")
    if found.dtype.kind not in "fiub":
        raise AdvCAMError(f"a map must hold numbers, got {found.dtype}")
    return found.reshape(found.shape[-2:])


def _check_finite(scores: np.ndarray) -> None:
    if np.isinf(scores).any():
        raise AdvCAMError(f"a map of {_by(scores.shape)} holds infinite values: look at what made it")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
