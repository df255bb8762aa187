"""IRN's training loss on pairs of pixels, and its labels from a random walk that stops at edges.

IRN (Ahn, Cho and Kwak, 2019) learns from confident labels whether pairs of nearby pixels are of one class: from the
boundary that lies between them, and from the difference of their displacements to an object's centre. Its edges then
steer a random walk of the class maps. Grids are of stride 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.pairs import (
    EPSILON,
    Offset,
    affinity_loss_sums,
    check_grid,
    neighbours,
    pair_kinds,
    paths,
    shifted,
)
from advcam_attr.refine.random_walk import edge_walk
from advcam_attr.refine.recipes import TRAINING_RADIUS, WalkRecipe
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.types import AdvCAMError, ClassMaps


@dataclass(frozen=True)
class IRNLoss:
    """The terms of IRN's loss, each a mean over its pairs.

    Attributes:
        background: affinity of pairs of background.
        foreground: affinity of pairs of one class.
        different: affinity of pairs of two labels.
        foreground_displacement: displacements of pairs of one class, which should point to one centre.
        background_displacement: displacements of pairs of background, which should be equal.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor
    foreground_displacement: Tensor
    background_displacement: Tensor

    @property
    def total(self) -> Tensor:
        affinity = (self.background / 2 + self.foreground / 2 + self.different) / 2
        return affinity + (self.foreground_displacement + self.background_displacement) / 2


def grid_labels(labels: Tensor) -> Tensor:
    """Return label maps ``(N, H, W)`` on the grid of stride 4: the third pixel of each cell in both directions."""
    return labels[:, 2::4, 2::4]


def path_affinities(edge: Tensor, radius: int = TRAINING_RADIUS) -> Tensor:
    """Return ``1 - max over the path of σ(edge)`` of each pair: logits ``(N, h, w)`` to ``(N, O, h', w')``.

    The gradient reaches the cell of each path where the edge is strongest.
    """
    check_grid(edge, radius)
    numbers = torch.arange(edge[0].numel(), device=edge.device).reshape(edge.shape[1:])
    sources = shifted(numbers, (0, 0), radius)
    place = torch.stack([_strongest(edge.detach(), path, radius) + sources for path in paths(radius)], 1)
    return 1 - edge.flatten(1).gather(1, place.flatten(1)).view(place.shape).sigmoid()


def _strongest(edge: Tensor, path: tuple[Offset, ...], radius: int) -> Tensor:
    """The cell of each source's path where the edge is strongest, as a distance from the source in row-major order."""
    best = shifted(edge, path[0], radius)
    place = torch.full_like(best, path[0][0] * edge.shape[2] + path[0][1], dtype=torch.long)
    for y, x in path[1:]:
        other = shifted(edge, (y, x), radius)
        place.masked_fill_(other > best, y * edge.shape[2] + x)
        best = torch.maximum(best, other)
    return place


def pair_displacements(displacement: Tensor, radius: int = TRAINING_RADIUS) -> Tensor:
    """Return each cell's displacement minus its neighbour's: ``(N, 2, h, w)``, y then x, to ``(N, 2, O, h', w')``."""
    ends = torch.stack([shifted(displacement, offset, radius) for offset in neighbours(radius)], -3)
    return shifted(displacement, (0, 0), radius)[:, :, None] - ends


def irn_loss(logits: Tensor, labels: Tensor, radius: int = TRAINING_RADIUS, counts: Tensor | None = None) -> IRNLoss:
    """Return IRN's loss: affinities by cross-entropy, displacements by absolute differences.

    Args:
        logits: of IRN's net, ``(N, 3, h, w)``: edge, and displacement y and x.
        labels: confident ones on the same grid, ``(N, h, w)``.
        radius: of the pairs.
        counts: pair counts to divide by; where several processes share a batch, the mean of theirs.
    """
    if logits.shape != (len(labels), 3, *labels.shape[1:]):
        raise AdvCAMError(
            f"irn: logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}; they must be (N, 3, h, w) and "
            "(N, h, w) of one grid"
        )
    check_grid(labels, radius)
    kinds = pair_kinds(labels, radius)
    displacement = pair_displacements(logits[:, 1:], radius)
    offsets = torch.tensor(neighbours(radius), dtype=logits.dtype, device=logits.device)
    towards = (displacement - offsets.T[:, :, None, None]).abs()
    if counts is None:
        counts = kinds.flatten(1).sum(1).float()
    background, foreground, different = counts.to(logits).unbind()
    sums = affinity_loss_sums(path_affinities(logits[:, 0], radius), kinds)
    return IRNLoss(
        background=sums[0] / (background + EPSILON),
        foreground=sums[1] / (foreground + EPSILON),
        different=sums[2] / (different + EPSILON),
        foreground_displacement=(towards * kinds[1, :, None]).sum() / (2 * foreground + EPSILON),
        background_displacement=(displacement.abs() * kinds[0, :, None]).sum() / (2 * background + EPSILON),
    )


def edge_map(logits: Tensor) -> Tensor:
    """Return an image's edges ``(h, w)``, ``σ(e / 2 + mirrored e' / 2)``, from its logits and its mirror image's."""
    return (logits[0] / 2 + logits[1].flip(-1) / 2).sigmoid()


def inference_size(size: tuple[int, int], least: int = 512, stride: int = 16) -> tuple[int, int]:
    """Return the height and width to which an image is padded, right and below, for IRN's net.

    Sides up to 512 pixels are padded to 512, as in IRN's code, and larger ones, which that code crops, to the next
    multiple of 16.
    """
    height, width = (max(least, -(-side // stride) * stride) for side in size)
    return height, width


def irn_labels(maps: ClassMaps, edge: Tensor, recipe: WalkRecipe | None = None) -> Tensor:
    """Return the labels of an image after a random walk of its class maps that stops at edges: ``(H, W)`` uint8.

    Args:
        maps: of the image; without classes, all is background.
        edge: probabilities of class boundaries, ``(ceil(H / 4), ceil(W / 4))``.
        recipe: of the walk; None for AdvCAM's.

    Example:
        >>> ramp = torch.tensor([1.0, 0.5, 0.2, 0.0]).expand(1, 4, 4)
        >>> maps = ClassMaps(classes=(6,), size=(16, 16), cam=ramp, high_res=torch.zeros(1, 16, 16))
        >>> edge = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(4, 4)
        >>> irn_labels(maps, edge)[0]
        tensor([7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    """
    recipe = recipe or WalkRecipe()
    if not maps.classes:
        return torch.zeros(maps.size, dtype=torch.uint8, device=edge.device)
    cam = maps.cam.to(edge.device).clamp(min=0) ** recipe.exponent
    return edge_walk_labels(edge_walk(cam, edge, recipe.radius, recipe.beta, recipe.steps), maps, recipe.background)


def edge_walk_labels(walked: Tensor, maps: ClassMaps, background: float = 0.25) -> Tensor:
    """Return the labels ``(H, W)`` of an image from its class maps ``(K, ceil(H / 4), ceil(W / 4))`` after the walk.

    Maps are divided by the peak of all classes together, so that a weak class beside a strong one loses against the
    background's score (as in IRN's code).
    """
    height, width = maps.size
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[0, :, :height, :width]
    scores = large / large.amax().clamp(min=torch.finfo(large.dtype).tiny)
    return threshold_maps(scores, maps.classes, background)
