"""Class maps of an image from maps on a net's grids at several scales, and seeds by thresholding them.

As in the released code, maps of all scales are resized to one size, summed, and divided by their class's peak. They lie
at the centres of the net's cells, or as the released code stretches them (`high_res_map`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.registry import lookup
from advcam_attr.types import VOID, AdvCAMError, Cells, ClassMaps

#: Added to a class's peak before its map is divided by it (the released code).
PEAK_MARGIN = 1e-5


@dataclass(frozen=True)
class GridMaps:
    """The maps of one image's classes on the net's grids: small, exact, and all that `class_maps` needs.

    Attributes:
        classes: 0-based, ascending.
        size: the image's height and width.
        grids: one a scale, ``(K, h, w)`` float32, weighted for their sum.
        cells: of each grid over the image; none are the released code's, see `high_res_map`.
        normalization: a name of `NORMALIZATIONS`.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    grids: tuple[Tensor, ...]
    cells: tuple[Cells, ...] = ()
    normalization: str = "peak"


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the cells of a stride that cover an image: ``ceil(side / stride)`` of both sides."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def cam_map(grids: Sequence[Tensor], size: tuple[int, int], cells: Sequence[Cells] = ()) -> Tensor:
    """Sum the scales' maps ``(K, h, w)`` at a quarter of the image's size: ``(K, ceil(H / 4), ceil(W / 4))``.

    Without cells, as in the released code, the grid is stretched over the quarter-size map, whatever both cover.
    """
    small = strided_size(size, 4)
    return _laid_sum(grids, cells, small, 4) if cells else _stretched_sum(grids, small)


def high_res_map(grids: Sequence[Tensor], size: tuple[int, int], cells: Sequence[Cells] = ()) -> Tensor:
    """Sum the scales' maps ``(K, h, w)`` at the image's size: ``(K, H, W)``.

    Args:
        grids: one a scale.
        size: the image's height and width.
        cells: of each grid over the image. None is the released code's layout: maps are resized to 16 times the cells
            of stride 16 and cropped, which is right for blocks of 16 pixels alone.
    """
    if cells:
        return _laid_sum(grids, cells, size, 1)
    h, w = strided_size(size, 16)
    return _stretched_sum(grids, (16 * h, 16 * w))[:, : size[0], : size[1]]


def _laid_sum(grids: Sequence[Tensor], cells: Sequence[Cells], size: tuple[int, int], stride: int) -> Tensor:
    """The sum at points of this stride, each the middle of its block of pixels."""
    rows, columns = ((torch.arange(side, dtype=torch.float64) + 0.5) * stride - 0.5 for side in size)
    return torch.stack([lay(grid, one, rows, columns) for grid, one in zip(grids, cells, strict=True)]).sum(0)


def lay(maps: Tensor, cells: Cells, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate maps ``(K, h, w)`` bilinearly between their cells' centres at pixel rows and columns: ``(K, R, S)``.

    Pixels beyond the outermost centres have the outermost values.

    Example:
        >>> lay(torch.tensor([[[0.0, 4.0]]]), Cells((0, 1), (8, 4)), torch.zeros(1), torch.arange(7.0))
        tensor([[[0., 0., 1., 2., 3., 4., 4.]]])
    """
    for dim, place in ((1, rows), (2, columns)):
        last = maps.shape[dim] - 1
        at = ((place - cells.offset[dim - 1]) / cells.stride[dim - 1]).clamp(0, last).to(maps.device)
        low = at.floor().long()
        share = (at - low).to(maps.dtype).reshape((-1, 1) if dim == 1 else (-1,))
        maps = maps.index_select(dim, low).lerp(maps.index_select(dim, (low + 1).clamp(max=last)), share)
    return maps


def resized(cells: Cells, before: tuple[int, int], size: tuple[int, int]) -> Cells:
    """Return the cells of an image of a height and width after it is resized to another."""
    (y, x), (down, right), (fy, fx) = (
        cells.offset,
        cells.stride,
        (new / old for old, new in zip(before, size, strict=True)),
    )
    return Cells(((y + 0.5) * fy - 0.5, (x + 0.5) * fx - 0.5), (down * fy, right * fx))


def with_mirror(cells: Cells, width: int, columns: int) -> Cells:
    """Return the cells of the sum of a map ``(h, columns)`` and the mirrored map of the mirror image.

    Cells of the mirror image lie mirrored over the image, not over the other map's cells; the mean of both centres is
    symmetric.
    """
    (y, _), (_, right) = cells.offset, cells.stride
    return Cells((y, (width - 1 - right * (columns - 1)) / 2), cells.stride)


def _stretched_sum(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    if not grids:
        raise AdvCAMError("no maps to sum: give those of at least one scale")
    return torch.stack([F.interpolate(g[None], size, mode="bilinear", align_corners=False)[0] for g in grids]).sum(0)


def normalized(maps: Tensor) -> Tensor:
    """Return each class's map ``(K, H, W)``, rectified and divided by its peak (plus `PEAK_MARGIN`): in [0, 1).

    Rectifying changes only recipes that sum signed maps; the released code and CAM seeds rectify before the sum.
    """
    positive = maps.relu()
    return positive / (positive.amax((1, 2), keepdim=True) + PEAK_MARGIN)


def min_max_normalized(maps: Tensor) -> Tensor:
    """Return each class's map ``(K, H, W)`` less its minimum, divided by its range: SEAM's last step at inference.

    Negative values become 0, then values within 1e-5 of the map's minimum; then ``(v - min - 1e-5) / (max - min +
    1e-5)``. Values that end below 0 become 0: no background threshold, and no power of a random walk, is below it.
    """
    maps = maps.relu()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps.masked_fill(maps < low + 1e-5, 0) - low - 1e-5) / (high - low + 1e-5)).relu()


#: Normalisations of class maps by name: the released code's, and that of SEAM's inference.
NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {"peak": normalized, "seam": min_max_normalized}


def class_maps(maps: GridMaps) -> ClassMaps:
    """Return the localization maps of an image from its maps on the net's grids; none for an image without classes."""
    if not maps.classes:
        return ClassMaps((), maps.size, torch.zeros(0, *strided_size(maps.size, 4)), torch.zeros(0, *maps.size))
    normalize = lookup(maps.normalization, NORMALIZATIONS, "normalization")
    cam, high_res = (normalize(make(maps.grids, maps.size, maps.cells)) for make in (cam_map, high_res_map))
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
