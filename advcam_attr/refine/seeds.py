"""Class maps of an image from maps on a net's grids at several scales, and seeds by thresholding them.

Sizes and normalisation are the released code's: maps of all scales are resized to one size, summed, and divided by
their class's peak; nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.types import VOID, AdvCAMError, ClassMaps

#: Added to a class's peak before its map is divided by it (the released code).
PEAK_MARGIN = 1e-5


@dataclass(frozen=True)
class GridMaps:
    """The maps of one image's classes on the net's grids: small, exact, and all that `class_maps` needs.

    Attributes:
        classes: 0-based, ascending.
        size: the image's height and width.
        grids: one a scale, ``(K, h, w)`` float32, weighted for their sum.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    grids: tuple[Tensor, ...]


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the cells of a stride that cover an image: ``ceil(side / stride)`` of both sides."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def cam_map(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum the scales' maps ``(K, h, w)`` at a quarter of the image's size: ``(K, ceil(H / 4), ceil(W / 4))``."""
    return _summed(grids, strided_size(size, 4))


def high_res_map(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum the scales' maps ``(K, h, w)`` at the image's size: ``(K, H, W)``.

    Maps are resized to 16 times the cells of stride 16 and cropped, so that cells of a stride-16 net stay over their
    pixels.
    """
    h, w = strided_size(size, 16)
    return _summed(grids, (16 * h, 16 * w))[:, : size[0], : size[1]]


def _summed(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    if not grids:
        raise AdvCAMError("no maps to sum: give those of at least one scale")
    return torch.stack([F.interpolate(g[None], size, mode="bilinear", align_corners=False)[0] for g in grids]).sum(0)


def normalized(maps: Tensor) -> Tensor:
    """Return each class's map ``(K, H, W)``, rectified and divided by its peak (plus `PEAK_MARGIN`): in [0, 1).

    Rectifying changes only recipes that sum signed maps; the released code and CAM seeds rectify before the sum.
    """
    positive = maps.relu()
    return positive / (positive.amax((1, 2), keepdim=True) + PEAK_MARGIN)


def class_maps(maps: GridMaps) -> ClassMaps:
    """Return the localization maps of an image from its maps on the net's grids; none for an image without classes."""
    if not maps.classes:
        return ClassMaps((), maps.size, torch.zeros(0, *strided_size(maps.size, 4)), torch.zeros(0, *maps.size))
    cam, high_res = (normalized(make(maps.grids, maps.size)) for make in (cam_map, high_res_map))
    return ClassMaps(maps.classes, maps.size, cam, high_res.contiguous())


def threshold_maps(high_res: Tensor, classes: Sequence[int], threshold: float) -> Tensor:
    """Return the seed of an image: its strongest class + 1 at each pixel, or 0 where no map exceeds a threshold.

    Args:
        high_res: ``(K, H, W)``, peaks of about 1.
        classes: 0-based, K of them.
        threshold: at a tie the background wins, then the first class.

    Returns:
        ``(H, W)`` uint8.

    Example:
        >>> threshold_maps(torch.tensor([[[0.1, 0.9, 0.4]], [[0.2, 0.1, 0.5]]]), classes=(4, 11), threshold=0.3)
        tensor([[ 0,  5, 12]], dtype=torch.uint8)
    """
    return argmax_labels(F.pad(high_res, (0, 0, 0, 0, 1, 0), value=threshold), classes)


def argmax_labels(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the label map ``(H, W)`` uint8 of scores ``(1 + K, H, W)`` of the background and 0-based classes."""
    if len(scores) != 1 + len(classes) or any(not 0 <= k < VOID - 1 for k in classes):
        raise AdvCAMError(
            f"{len(scores) - 1} maps for the classes {tuple(classes)}: give one for each, and classes in 0 to 253, "
            "which fit a label map of 8 bits"
        )
    labels = torch.tensor([0, *(k + 1 for k in classes)], dtype=torch.uint8, device=scores.device)
    return labels[scores.argmax(0)]


def with_background(high_res: Tensor, alpha: float) -> Tensor:
    """Prepend PSA's background score ``(1 - max_k map_k)^alpha`` to maps ``(K, H, W)``, clamped to [0, 1]."""
    high_res = high_res.clamp(0, 1)
    background = (1 - F.pad(high_res, (0, 0, 0, 0, 1, 0)).amax(0, keepdim=True)) ** alpha
    return torch.cat([background, high_res])
