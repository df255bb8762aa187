"""Label scores, and embeddings of cells, in; PSA's affinity labels, its loss, and the labels after its walk, out.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA, CVPR 2018). Two cells i and j
of a grid have the affinity ``a_ij = exp(-mean_c |f_ic - f_jc|)`` of their embeddings f. It is learned on pairs of near
cells whose labels are sure, and class maps then walk along it.

Pairs are those of the released code: each cell and its neighbours to the right and below, except from cells in a margin
of radius - 1 cells at the left, the right and below, which are met as neighbours only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.random_walk import paths, random_walk, transition
from advcam_attr.types import VOID, AdvCAMError

#: Below it no label has a score: what lies outside of the image (the released code).
_NO_SCORE = 1e-5

#: Keeps logarithms finite, and counts of pairs above zero (the released code).
_MARGIN = 1e-5

#: The shares of the loss: pairs of background, of one foreground class, and of two labels.
SHARES = (0.25, 0.25, 0.5)


def pooled(maps: Tensor, stride: int) -> Tensor:
    """The means of maps over the cells of a stride, with zeros to the right and below where the last is not whole.

    Args:
        maps: ``(K, H, W)``.
        stride: in pixels; 8 in PSA.

    Returns:
        ``(K, ceil(H / stride), ceil(W / stride))``.

    Example:
        >>> pooled(torch.ones(1, 2, 3), 2)
        tensor([[[1.0000, 0.5000]]])
    """
    height, width = maps.shape[1:]
    return F.avg_pool2d(F.pad(maps, (0, -width % stride, 0, -height % stride)), stride)


def affinity_labels(low: Tensor, high: Tensor, stride: int = 8) -> Tensor:
    """The labels of cells that affinities are learned from: foreground by one set of scores, background by another.

    Scores are averaged over each cell. A cell takes the strongest label of the low power if that is foreground; it is
    background where that is the strongest label of the high power; otherwise, and outside of the image, where all
    scores are zero, it is undecided.

    Args:
        low: the scores of `advcam_attr.refine.affinity_labels.psa_scores` by the low power, ``(1 + K, H, W)``, the
            background first; cropped and padded with zeros as the image was.
        high: by the high power, of the same shape.
        stride: pixels of a cell's side; 8 in PSA.

    Returns:
        ``(h, w)`` uint8: 0 for the background, 1 to K for foreground (in the order of the scores), or 255.

    Raises:
        AdvCAMError: shapes that differ.

    Example:
        >>> low = torch.tensor([[0.1, 0.9, 0.8, 0.0], [0.9, 0.1, 0.2, 0.0]])[:, None]
        >>> high = torch.tensor([[0.0, 0.6, 0.3, 0.0], [1.0, 0.4, 0.7, 0.0]])[:, None]
        >>> affinity_labels(low, high, stride=1)
        tensor([[  1,   0, 255, 255]], dtype=torch.uint8)
    """
    if low.shape != high.shape:
        raise AdvCAMError(f"psa: scores of two powers differ in shape: {tuple(low.shape)} and {tuple(high.shape)}")
    low, high = pooled(low, stride), pooled(high, stride)
    labels = low.argmax(0)
    labels = labels.masked_fill(labels == 0, VOID).masked_fill(high.argmax(0) == 0, 0)
    return labels.masked_fill(torch.maximum(low, high).amax(0) < _NO_SCORE, VOID).to(torch.uint8)


def fitting_radius(size: tuple[int, int], radius: int = 5) -> int:
    """The radius of pairs on a grid: the wanted one, or less on grids that have no room for it (SEAM's code).

    Args:
        size: h and w.
        radius: the wanted one; 5 in PSA.

    Returns:
        At most ``(min(h, w) - 1) // 2``. With less than 2 there are no pairs.

    Example:
        >>> fitting_radius((56, 56)), fitting_radius((40, 7)), fitting_radius((1, 9))
        (5, 3, 0)
    """
    return min(radius, (min(size) - 1) // 2)


def _sources(grid: Tensor, radius: int) -> Tensor:
    """The cells from which pairs go out: ``(..., h, w)`` to ``(..., h - m, w - 2 m)`` with m = radius - 1."""
    margin = radius - 1
    return grid[..., : grid.shape[-2] - margin, margin : grid.shape[-1] - margin]


def _partners(grid: Tensor, radius: int) -> Iterator[Tensor]:
    """What these cells are paired with, in the order of `advcam_attr.refine.random_walk.paths`."""
    margin = radius - 1
    height, width = grid.shape[-2] - margin, grid.shape[-1] - 2 * margin
    for (dy, dx), *_ in paths(radius):
        yield grid[..., dy : dy + height, margin + dx : margin + dx + width]


def pair_affinities(features: Tensor, radius: int = 5) -> Tensor:
    """The affinities of all pairs, ``exp(-mean_c |f_ic - f_jc|)``.

    Args:
        features: embeddings, ``(N, C, h, w)``.
        radius: of pairs; 5 in PSA. See `fitting_radius`.

    Returns:
        ``(N, O, h - m, w - 2 m)`` with m = radius - 1: each source's affinity to each of its O neighbours.

    Raises:
        AdvCAMError: a grid too small for the radius.

    Example:
        >>> features = torch.tensor([0.0, 1.0, 3.0]).expand(1, 4, 3, 3)
        >>> pair_affinities(features, radius=2)[0, :, 0, 0]  # right, below left, below, below right
        tensor([0.1353, 0.3679, 1.0000, 0.1353])
    """
    height, width = features.shape[-2:]
    if height < radius or width < 2 * radius - 1:
        raise AdvCAMError(
            f"psa: a grid of {height} x {width} cells has no room for pairs of radius {radius}; give at least "
            f"{radius} x {2 * radius - 1} cells, or a smaller radius"
        )
    if radius < 2:
        return features.new_zeros(len(features), 0, height, width)
    source = _sources(features, radius)
    return torch.stack([(-(partner - source).abs().mean(1)).exp() for partner in _partners(features, radius)], 1)


def pair_kinds(labels: Tensor, radius: int = 5) -> Tensor:
    """Which pairs are of background, which of one foreground class, and which of two labels.

    Pairs with an undecided cell (255) are none of these.

    Args:
        labels: ``(N, h, w)`` uint8, as `affinity_labels` gives them.
        radius: of pairs.

    Returns:
        ``(3, N, O, h - m, w - 2 m)``, bool.
    """
    if radius < 2:
        return labels.new_zeros((3, len(labels), 0, *labels.shape[1:]), dtype=torch.bool)
    source = _sources(labels, radius)[:, None]
    partner = torch.stack(list(_partners(labels, radius)), 1)
    sure, equal = (source != VOID) & (partner != VOID), source == partner
    return torch.stack([sure & equal & (source == 0), sure & equal & (source > 0), sure & ~equal])


def pair_losses(features: Tensor, labels: Tensor, radius: int = 5) -> tuple[Tensor, Tensor]:
    """The sums of PSA's three losses, and over how many pairs they go.

    Pairs of one label lose ``-log(a + 1e-5)``, pairs of two labels ``-log(1 + 1e-5 - a)``.

    Args:
        features: embeddings, ``(N, C, h, w)``.
        labels: ``(N, h, w)`` uint8.
        radius: of pairs.

    Returns:
        Sums and counts, ``(3,)`` each: pairs of background, of one foreground class, of two labels.

    Raises:
        AdvCAMError: grids that differ in size, or too small for the radius.
    """
    if (len(features), *features.shape[2:]) != tuple(labels.shape):
        raise AdvCAMError(f"psa: embeddings {tuple(features.shape)} and labels {tuple(labels.shape)} differ in size")
    affinity = pair_affinities(features, radius)
    kinds = pair_kinds(labels, radius).to(affinity.dtype)
    alike, apart = -(affinity + _MARGIN).log(), -(1 + _MARGIN - affinity).log()
    sums = torch.stack([(kinds[0] * alike).sum(), (kinds[1] * alike).sum(), (kinds[2] * apart).sum()])
    return sums, kinds.flatten(1).sum(1)


def weighed(sums: Tensor, counts: Tensor) -> Tensor:
    """PSA's loss of `pair_losses`: the means of the three, a quarter, a quarter and a half.

    Example:
        >>> weighed(torch.tensor([4.0, 0.0, 6.0]), torch.tensor([2.0, 0.0, 3.0]))
        tensor(1.5000)
    """
    return (sums / (counts + _MARGIN) * sums.new_tensor(SHARES)).sum()


def affinity_loss(features: Tensor, labels: Tensor, radius: int = 5) -> Tensor:
    """PSA's loss: bg⁺ / 4 + fg⁺ / 4 + neg / 2, each the mean over its pairs in the whole batch.

    Args:
        features: embeddings, ``(N, C, h, w)``.
        labels: ``(N, h, w)`` uint8, as `affinity_labels` gives them.
        radius: of pairs; 5 in PSA.

    Returns:
        A scalar; 0 where no pair is sure.

    Raises:
        AdvCAMError: as `pair_losses`.
    """
    return weighed(*pair_losses(features, labels, radius))


def walk_maps(high_res: Tensor, alpha: float = 16.0, stride: int = 8) -> Tensor:
    """What walks: class maps beside a background ``(1 - max_k map_k)^alpha``, averaged over cells.

    The released code walks 21 maps, with zeros for the classes that the image does not show; these stay zero and never
    win, so they are left out.

    Args:
        high_res: ``(K, H, W)``, of about [0, 1]; values outside are cut off.
        alpha: the power; 16 in PSA, 6 in SEAM.
        stride: pixels of a cell's side.

    Returns:
        ``(1 + K, h, w)``, the background first.

    Example:
        >>> walk_maps(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), alpha=2, stride=2).flatten()
        tensor([0.3750, 0.5000])
    """
    high_res = high_res.clamp(0, 1)
    background = (1 - F.pad(high_res, (0, 0, 0, 0, 1, 0)).amax(0, keepdim=True)) ** alpha
    return pooled(torch.cat([background, high_res]), stride)


@torch.no_grad()
def affinity_walk(maps: Tensor, features: Tensor, radius: int = 5, beta: float = 8.0, steps: int = 256) -> Tensor:
    """Maps after a random walk along the affinities of the cells' embeddings.

    Affinities are raised to a power and divided by the sums of their columns, as in
    `advcam_attr.refine.random_walk.transition`; the dense matrix of the released code is never made. On a grid too
    small for any pair, maps stay as they are.

    Args:
        maps: ``(K, h, w)``.
        features: embeddings of the image, ``(C, h, w)``.
        radius: of pairs; less on small grids, see `fitting_radius`.
        beta: the power; 8 in PSA.
        steps: 256 in PSA (a matrix squared 8 times), 64 in SEAM (6 times).

    Returns:
        ``(K, h, w)``.

    Raises:
        AdvCAMError: grids that differ in size, or embeddings that are not finite.
    """
    height, width = features.shape[1:]
    if maps.shape[1:] != features.shape[1:]:
        raise AdvCAMError(f"psa: maps {tuple(maps.shape)} and embeddings {tuple(features.shape)} differ in size")
    if not bool(features.isfinite().all()):
        raise AdvCAMError("psa: embeddings are not finite; look at the affinity net's weights")
    radius = fitting_radius((height, width), radius)
    if radius < 2:
        return maps
    margin = radius - 1
    inner = pair_affinities(features[None].double(), radius)[0]
    affinities = F.pad(inner, (margin, margin, 0, margin))
    return random_walk(maps, transition(affinities, radius, beta), steps)


def affinity_walk_labels(maps: Tensor, classes: Sequence[int], size: tuple[int, int], stride: int = 8) -> Tensor:
    """The label of each pixel: the strongest of the maps, brought to the image's size.

    Args:
        maps: ``(1 + K, h, w)``, the background first.
        classes: 0-based, K of them.
        size: the image's height and width.
        stride: pixels of a cell's side.

    Returns:
        ``(H, W)`` uint8: 0, or class + 1.

    Raises:
        AdvCAMError: not one map a class and one more, or a class that a label map of 8 bits cannot hold.

    Example:
        >>> affinity_walk_labels(torch.tensor([[[0.2, 0.6]], [[0.3, 0.1]]]), classes=(6,), size=(1, 4), stride=2)
        tensor([[7, 0, 0, 0]], dtype=torch.uint8)
    """
    if len(maps) != 1 + len(classes) or any(not 0 <= k < VOID - 1 for k in classes):
        raise AdvCAMError(
            f"psa: {len(maps)} maps for the background and the classes {tuple(classes)}; give one for each"
        )
    cells = (maps.shape[1] * stride, maps.shape[2] * stride)
    large = F.interpolate(maps[None], cells, mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]
    labels = torch.tensor([0, *(k + 1 for k in classes)], dtype=torch.uint8, device=maps.device)
    return labels[large.argmax(0)]
