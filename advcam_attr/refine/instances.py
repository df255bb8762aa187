"""Instance masks from IRN's displacement field and class boundaries (Ahn, Cho and Kwak, CVPR 2019, section 4).

Each cell follows the displacements to a centroid. Cells whose centroids lie in one connected region of short
displacements are one cluster. The map of each class is split by clusters, each part walks as far as the boundaries let
it, and the pixels where it is the strongest are an instance. Numbers are those of IRN's code, which AdvCAM's repeats.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.opencv import opencv
from advcam_attr.refine.random_walk import edge_affinities, random_walk, transition
from advcam_attr.refine.recipes import InstanceRecipe
from advcam_attr.types import MOST_INSTANCES, AdvCAMError, ClassMaps, Instances

#: Parts of class maps that walk at once; they share each product with the transition matrix.
_PARTS = 64


def centroids(displacement: Tensor, iterations: int = 300) -> Tensor:
    """Return the cell ``(2, h, w)`` int64, y then x, that each cell reaches by following the displacements.

    A step adds the displacement at the present place, interpolated bilinearly between cells, and stays on the grid.

    Args:
        displacement: ``(2, h, w)``, y then x, in cells.
        iterations: steps; 300 in IRN's code, which calls 100 enough.

    Example:
        >>> towards_the_third = torch.stack([torch.zeros(1, 5), 2 - torch.arange(5.0)[None]])
        >>> centroids(towards_the_third)[1]
        tensor([[2, 2, 2, 2, 2]])
    """
    if displacement.ndim != 3 or len(displacement) != 2 or not bool(displacement.isfinite().all()):
        raise AdvCAMError(f"instances: displacements must be (2, h, w) and finite, got {tuple(displacement.shape)}")
    field = displacement.double()
    height, width = field.shape[1:]
    axes = (torch.arange(side, dtype=field.dtype, device=field.device) for side in (height, width))
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    last = field.new_tensor([height - 1, width - 1])[:, None, None]
    for _ in range(iterations):
        moved = torch.minimum((place + _interpolated(field, place)).clamp(min=0), last)
        if torch.equal(moved, place):
            break
        place = moved
    return place.round().long()


def _interpolated(field: Tensor, place: Tensor) -> Tensor:
    (top, left), (bottom, right) = place.floor().long(), place.ceil().long()
    y, x = place - place.floor()
    above = field[:, top, left] * (1 - x) + field[:, top, right] * x
    below = field[:, bottom, left] * (1 - x) + field[:, bottom, right] * x
    return above * (1 - y) + below * y


def clusters(displacement: Tensor, iterations: int = 300, threshold: float = 2.5) -> Tensor:
    """Return the number ``(h, w)`` int64, from 0 on, of each cell's cluster.

    Cells of one cluster have their centroids in one 4-connected region of displacements shorter than ``threshold``;
    those whose centroids lie in none are a cluster, too, as in IRN's code.

    Args:
        displacement: ``(2, h, w)``, y then x, in cells.
        iterations: steps to the centroids.
        threshold: length in cells; 2.5 in IRN's code.
    """
    y, x = centroids(displacement, iterations)
    regions = connected_components(displacement.double().norm(dim=0) < threshold)
    numbers: Tensor = regions[y, x].unique(return_inverse=True)[1]
    return numbers


def connected_components(mask: Tensor) -> Tensor:
    """Return the numbers, from 1 on, of the 4-connected components of a mask ``(H, W)``, 0 outside of it: int64."""
    found = opencv().connectedComponents(mask.cpu().numpy().astype(np.uint8), connectivity=4)[1]
    return torch.from_numpy(found).long().to(mask.device)


@torch.no_grad()
def irn_instances(
    maps: ClassMaps, edge: Tensor, displacement: Tensor, recipe: InstanceRecipe | None = None
) -> Instances:
    """Return the instances of an image's classes by decreasing score; their masks are disjoint.

    Scores are peaks of the walked maps, divided by the image's strongest. A mask smaller than ``recipe.smallest`` of
    the image has score 0. Of more than `advcam_attr.types.MOST_INSTANCES`, the lowest scores and smallest are left out.

    Args:
        maps: of the image; without classes, there are no instances.
        edge: probabilities of class boundaries, ``(ceil(H / 4), ceil(W / 4))``.
        displacement: ``(2, ceil(H / 4), ceil(W / 4))``, y then x, in cells of 4 pixels.
        recipe: None for IRN's.

    Example:
        >>> maps = ClassMaps((6,), (4, 32), torch.ones(1, 1, 8), torch.ones(1, 4, 32))
        >>> x = torch.tensor([[1.0, 0.0, -1.0, -4.0, 4.0, 1.0, 0.0, -1.0]])
        >>> edge = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
        >>> found = irn_instances(maps, edge, torch.stack([torch.zeros(1, 8), x]))
        >>> found.classes, found.masks.int().sum((1, 2)).tolist()
        ((6, 6), [52, 52])
    """
    recipe = recipe or InstanceRecipe()
    walk, size, grid = recipe.walk, maps.size, tuple(edge.shape)
    if (maps.classes and maps.cam.shape != (len(maps.classes), *grid)) or displacement.shape[1:] != grid:
        raise AdvCAMError(
            f"instances: maps {tuple(maps.cam.shape)}, edges {grid} and displacements {tuple(displacement.shape)} "
            "differ in size; they must be (K, h, w), (h, w) and (2, h, w) of one grid"
        )
    if not maps.classes:
        return Instances((), torch.zeros(0, *size, dtype=torch.bool, device=edge.device), ())
    numbers = clusters(displacement, recipe.iterations, recipe.threshold)
    start = maps.cam.to(edge.device).clamp(min=0) ** walk.exponent * (1 - edge)
    step = transition(edge_affinities(edge, walk.radius), walk.radius, walk.beta)
    best = torch.zeros(size, dtype=start.dtype, device=start.device)
    strongest = torch.full(size, -1, dtype=torch.long, device=start.device)
    parts = _parts(start, numbers)
    for first in range(0, len(parts), _PARTS):
        # a walk averages, so that neither it nor any later part, which peaks lower, can exceed the background's score
        if parts[first][0] <= walk.background * float(best.max()):
            break
        some = [(k, cluster) for _, k, cluster in parts[first : first + _PARTS]]
        walked = random_walk(torch.stack([start[k] * (numbers == cluster) for k, cluster in some]), step, walk.steps)
        for number, part in enumerate(walked, start=first):
            large = F.interpolate(part[None, None], scale_factor=4, mode="bilinear", align_corners=False)
            large = large[0, 0, : size[0], : size[1]]
            strongest[large > best] = number
            best = torch.maximum(best, large)
    score = best / best.max().clamp(min=torch.finfo(best.dtype).tiny)
    strongest[score <= walk.background] = -1
    return _detected(score, strongest, [maps.classes[k] for _, k, _ in parts], recipe.smallest)


def _parts(start: Tensor, numbers: Tensor) -> list[tuple[float, int, int]]:
    """Peak, class and cluster of the parts of class maps that are not zero, by decreasing peak."""
    count = int(numbers.max()) + 1
    peaks = start.new_zeros(len(start), count)
    peaks = peaks.scatter_reduce(1, numbers.flatten().expand(len(start), -1), start.flatten(1), "amax")
    parts = [(peak, k, c) for k, row in enumerate(peaks.tolist()) for c, peak in enumerate(row) if peak > 0]
    return sorted(parts, key=lambda part: -part[0])


def _detected(score: Tensor, strongest: Tensor, classes: list[int], smallest: float) -> Instances:
    """The connected components of the pixels of each part, by its number in ``classes``; -1 is background."""
    components, shown = torch.zeros_like(strongest), [-1]
    for part in strongest.unique().tolist():
        if part >= 0:
            own = connected_components(strongest == part)
            components += (own + len(shown) - 1) * (own > 0)
            shown += [classes[part]] * int(own.max())
    ids = components.flatten()
    pixels = ids.bincount(minlength=len(shown)).tolist()
    peaks = score.new_zeros(len(shown)).scatter_reduce(0, ids, score.flatten(), "amax").tolist()
    scores = [peak if n >= smallest * ids.numel() else 0.0 for peak, n in zip(peaks, pixels, strict=True)]
    order = sorted(range(1, len(shown)), key=lambda n: (-scores[n], -pixels[n]))[:MOST_INSTANCES]
    masks = components == ids.new_tensor(order)[:, None, None]
    return Instances(tuple(shown[n] for n in order), masks, tuple(scores[n] for n in order))
