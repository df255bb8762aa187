"""PSA's affinity labels, its loss on pairs of cells, and the labels after a walk along its affinities.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA, CVPR 2018). Two cells i and j
of a grid have the affinity ``a_ij = exp(-mean_c |f_ic - f_jc|)`` of their embeddings f. It is learned on pairs of
nearby cells (`advcam_attr.refine.pairs`) with confident labels, and class maps then walk along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.pairs import EPSILON, affinity_loss_sums, check_grid, neighbours, pair_kinds, shifted
from advcam_attr.refine.random_walk import random_walk, transition
from advcam_attr.refine.seeds import argmax_labels, with_background
from advcam_attr.types import VOID, AdvCAMError

#: Scores below it are those outside of the image (the released code).
_NO_SCORE = 1e-5

#: Whose radius small grids have, see `fitting_radius`.
SmallGrids = Literal["psa", "seam"]

#: The weights of the loss: pairs of background, of one foreground class, and of two labels.
LOSS_WEIGHTS = (0.25, 0.25, 0.5)


def pooled(maps: Tensor, stride: int) -> Tensor:
    """Average maps ``(K, H, W)`` over the cells of a stride, zero-padded to the right and below: ``(K, h, w)``."""
    height, width = maps.shape[1:]
    return F.avg_pool2d(F.pad(maps, (0, -width % stride, 0, -height % stride)), stride)


def affinity_labels(low: Tensor, high: Tensor, stride: int = 8) -> Tensor:
    """Return the labels of cells that affinities are learned from: ``(h, w)`` uint8, 0 to K, or 255 for undecided.

    Scores are averaged over each cell. A cell takes the strongest label of the low power if that is foreground; it is
    background where that is the strongest label of the high power; otherwise, and outside of the image, where all
    scores are zero, it is undecided.

    Args:
        low: the scores of `advcam_attr.refine.affinity_labels.psa_scores` by the low power, ``(1 + K, H, W)``, cropped
            and zero-padded as the image was.
        high: by the high power, of the same shape.
        stride: pixels of a cell's side; 8 in PSA.
    """
    if low.shape != high.shape:
        raise AdvCAMError(f"psa: scores of two powers differ in shape: {tuple(low.shape)} and {tuple(high.shape)}")
    low, high = pooled(low, stride), pooled(high, stride)
    labels = low.argmax(0)
    labels = labels.masked_fill(labels == 0, VOID).masked_fill(high.argmax(0) == 0, 0)
    return labels.masked_fill(torch.maximum(low, high).amax(0) < _NO_SCORE, VOID).to(torch.uint8)


def fitting_radius(size: tuple[int, int], radius: int = 5, small_grids: SmallGrids = "psa") -> int:
    """Return the radius of pairs on a grid ``(h, w)``; below 2 there are none.

    PSA's radius is 5 wherever a cell has all its neighbours, from 5 x 9 cells on; on smaller grids, where PSA's code
    fails, it is the largest with such a cell. SEAM's code takes at most ``(min(h, w) - 1) // 2``.
    """
    height, width = size
    largest = (min(size) - 1) // 2 if small_grids == "seam" else min(height, (width + 1) // 2)
    return min(radius, largest)


def pair_affinities(features: Tensor, radius: int = 5) -> Tensor:
    """Return the affinities of all pairs, ``exp(-mean_c |f_ic - f_jc|)``: ``(N, C, h, w)`` to ``(N, O, h', w')``."""
    if radius < 2:
        return features.new_zeros(len(features), 0, *features.shape[2:])
    check_grid(features, radius)
    source = shifted(features, (0, 0), radius)
    return torch.stack(
        [(-(shifted(features, offset, radius) - source).abs().mean(1)).exp() for offset in neighbours(radius)], 1
    )


def pair_losses(features: Tensor, labels: Tensor, radius: int = 5) -> tuple[Tensor, Tensor]:
    """Return the sums of PSA's three losses and the numbers of their pairs: of background, one class, and two labels.

    Args:
        features: embeddings, ``(N, C, h, w)``.
        labels: ``(N, h, w)`` uint8, see `affinity_labels`.
        radius: of pairs.
    """
    if (len(features), *features.shape[2:]) != tuple(labels.shape):
        raise AdvCAMError(f"psa: embeddings {tuple(features.shape)} and labels {tuple(labels.shape)} differ in size")
    affinity = pair_affinities(features, radius)
    kinds = pair_kinds(labels, radius).to(affinity.dtype)
    return affinity_loss_sums(affinity, kinds), kinds.flatten(1).sum(1)


def weighted_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """Return PSA's loss from `pair_losses`: the three means, weighted by a quarter, a quarter and a half."""
    return (sums / (counts + EPSILON) * sums.new_tensor(LOSS_WEIGHTS)).sum()


def walk_maps(high_res: Tensor, alpha: float = 16.0, stride: int = 8) -> Tensor:
    """Return class maps ``(K, H, W)`` and a background ``(1 - max_k map_k)^alpha`` on the grid, ``(1 + K, h, w)``.

    α is 16 in PSA, 6 in SEAM. Classes that the image does not show, zeros in the released code, are left out.
    """
    return pooled(with_background(high_res, alpha), stride)


@torch.no_grad()
def affinity_walk(
    maps: Tensor,
    features: Tensor,
    radius: int = 5,
    beta: float = 8.0,
    steps: int = 256,
    small_grids: SmallGrids = "psa",
) -> Tensor:
    """Return maps ``(K, h, w)`` after a random walk along the affinities of the cells' embeddings.

    Args:
        maps: ``(K, h, w)``; unchanged on a grid too small for any pair.
        features: embeddings of the image, ``(C, h, w)``.
        radius: of pairs; less on small grids, see `fitting_radius`.
        beta: the power of affinities; 8 in PSA.
        steps: 256 in PSA (a matrix squared 8 times), 64 in SEAM (6 times).
        small_grids: whose radius small grids have.
    """
    height, width = features.shape[1:]
    if maps.shape[1:] != features.shape[1:]:
        raise AdvCAMError(f"psa: maps {tuple(maps.shape)} and embeddings {tuple(features.shape)} differ in size")
    if not bool(features.isfinite().all()):
        raise AdvCAMError("psa: embeddings are not finite; look at the affinity net's weights")
    radius = fitting_radius((height, width), radius, small_grids)
    if radius < 2:
        return maps
    margin = radius - 1
    inner = pair_affinities(features[None].double(), radius)[0]
    affinities = F.pad(inner, (margin, margin, 0, margin))
    return random_walk(maps, transition(affinities, radius, beta), steps)


def affinity_walk_labels(maps: Tensor, classes: Sequence[int], size: tuple[int, int], stride: int = 8) -> Tensor:
    """Return each pixel's label after the walk, ``(H, W)`` uint8, by maps ``(1 + K, h, w)`` resized to the image."""
    cells = (maps.shape[1] * stride, maps.shape[2] * stride)
    large = F.interpolate(maps[None], cells, mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]
    return argmax_labels(large, classes)
