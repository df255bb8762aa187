"""Class maps on a net's own grids, one a scale, in; maps of the image's size, and seeds cut from them, out.

Sizes and normalisation are the released code's: maps of all scales are brought to one size, summed, and divided by
their class's peak; nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.types import AdvCAMError, ClassMaps

#: Added to a class's peak before its map is divided by it (the released code).
PEAK_MARGIN = 1e-5


@dataclass(frozen=True)
class GridMaps:
    """The maps of one image's classes as the net gives them: small, exact, and all that `class_maps` needs.

    Attributes:
        classes: 0-based, ascending.
        size: the image's height and width.
        grids: one a scale, ``(K, h, w)``, float32, weighted as they are to be summed.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    grids: tuple[Tensor, ...]


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """How many cells of a stride cover an image: ``ceil(side / stride)`` of both sides.

    Example:
        >>> strided_size((375, 500), 4)
        (94, 125)
    """
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def cam_map(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The scales' maps, summed, on a quarter of the image's size; not normalised.

    Args:
        grids: one a scale, each ``(K, h, w)``.
        size: the image's height and width.

    Returns:
        ``(K, ceil(H / 4), ceil(W / 4))``.

    Example:
        >>> cam_map([torch.ones(2, 3, 3), torch.ones(2, 6, 6)], (20, 24)).shape
        torch.Size([2, 5, 6])
    """
    return _summed(grids, strided_size(size, 4))


def high_res_map(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The scales' maps, summed, on the image's size; not normalised.

    Maps are laid over 16 times the cells of stride 16 and cut off at the right and bottom: a cell of a stride-16 net
    stays over its pixels.

    Args:
        grids: one a scale, each ``(K, h, w)``.
        size: the image's height and width.

    Returns:
        ``(K, H, W)``.

    Example:
        >>> high_res_map([torch.ones(2, 3, 3)], (20, 24)).shape
        torch.Size([2, 20, 24])
    """
    h, w = strided_size(size, 16)
    return _summed(grids, (16 * h, 16 * w))[:, : size[0], : size[1]]


def _summed(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    if not grids:
        raise AdvCAMError("no maps to sum: give those of at least one scale")
    return torch.stack([F.interpolate(g[None], size, mode="bilinear", align_corners=False)[0] for g in grids]).sum(0)


def normalized(maps: Tensor) -> Tensor:
    """Each class's map without its negative values, divided by its peak (plus `PEAK_MARGIN`).

    Nothing is subtracted. Dropping negative values changes nothing where maps are rectified before they are summed (the
    released code and plain CAM seeds); where a recipe sums signed maps, this is the one place that rectifies them.

    Args:
        maps: ``(K, H, W)``.

    Returns:
        ``(K, H, W)`` in [0, 1).

    Example:
        >>> normalized(torch.tensor([[[-1.0, 1.0, 2.0]]])).round(decimals=3)
        tensor([[[0.0000, 0.5000, 1.0000]]])
    """
    positive = maps.relu()
    return positive / (positive.amax((1, 2), keepdim=True) + PEAK_MARGIN)


def class_maps(maps: GridMaps) -> ClassMaps:
    """The localization maps of an image from its maps on the net's grids; no maps for an image without classes.

    Example:
        >>> grids = (torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 3.0]]]))
        >>> found = class_maps(GridMaps((7,), (16, 32), grids))
        >>> found.cam.shape, found.high_res.shape, found.high_res[0, 0, [0, 31]].round(decimals=3)
        (torch.Size([1, 4, 8]), torch.Size([1, 16, 32]), tensor([0., 1.]))
    """
    if not maps.classes:
        return ClassMaps((), maps.size, torch.zeros(0, *strided_size(maps.size, 4)), torch.zeros(0, *maps.size))
    cam, high_res = (normalized(make(maps.grids, maps.size)) for make in (cam_map, high_res_map))
    return ClassMaps(maps.classes, maps.size, cam, high_res.contiguous())


def threshold_maps(high_res: Tensor, classes: Sequence[int], threshold: float) -> Tensor:
    """The seed of an image: at each pixel the class whose map is highest, or the background where all are low.

    Args:
        high_res: ``(K, H, W)``, peaks of about 1.
        classes: 0-based, K of them.
        threshold: what a map must exceed; at a tie the background wins, then the first class.

    Returns:
        ``(H, W)`` uint8: 0 for the background, k + 1 for class k.

    Raises:
        AdvCAMError: not one class a map, or one that a label map of 8 bits with void (255) cannot hold.

    Example:
        >>> threshold_maps(torch.tensor([[[0.1, 0.9, 0.4]], [[0.2, 0.1, 0.5]]]), classes=(4, 11), threshold=0.3)
        tensor([[ 0,  5, 12]], dtype=torch.uint8)
    """
    if len(classes) != high_res.shape[0]:
        raise AdvCAMError(f"{high_res.shape[0]} maps for {len(classes)} classes: give one class for each map")
    if any(not 0 <= k < 254 for k in classes):
        raise AdvCAMError(f"classes must be in 0 to 253 to fit a label map of 8 bits, got {tuple(classes)}")
    stacked = torch.cat([high_res.new_full((1, *high_res.shape[1:]), threshold), high_res])
    labels = torch.tensor([0, *(k + 1 for k in classes)], dtype=torch.uint8, device=high_res.device)
    return labels[stacked.argmax(0)]
