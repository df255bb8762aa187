"""What IRN's net says of an image and labels or class maps in; its training loss, or refined labels, out.

IRN (Ahn, Cho and Kwak, 2019) learns from confident labels whether pairs of pixels near each other are of one class: by
the boundary that lies between them, and by the difference of their displacements to an object's centre. Its edges then
steer a random walk of the class maps. Grids are of stride 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.random_walk import LARGEST_RADIUS, Offset, edge_walk, paths
from advcam_attr.types import VOID, AdvCAMError, ClassMaps

#: The radius of pairs in training, in cells of the grid (IRN's code); the walk's is 5.
TRAINING_RADIUS = 10

#: What keeps logarithms and means of nothing finite (IRN's code).
_EPSILON = 1e-5


@dataclass(frozen=True)
class Pairs:
    """What is known of each pair of a pixel and one of its neighbours; all are ``(N, O, h', w')`` bool.

    Attributes:
        background: both are background.
        foreground: both are of one class.
        different: they are of two labels, the background being one.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor

    def counts(self) -> Tensor:
        """How many pairs of each kind there are, in the order of the attributes, ``(3,)`` float32."""
        return torch.stack([kind.sum() for kind in (self.background, self.foreground, self.different)]).float()


@dataclass(frozen=True)
class IRNLoss:
    """The terms of IRN's loss, each a mean over its pairs.

    Attributes:
        background: of the affinity of pairs of background.
        foreground: of the affinity of pairs of one class.
        different: of the affinity of pairs of two labels.
        foreground_displacement: of the displacements of pairs of one class, which should point to one centre.
        background_displacement: of those of pairs of background, which should be equal.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor
    foreground_displacement: Tensor
    background_displacement: Tensor

    @property
    def total(self) -> Tensor:
        """What is trained on."""
        affinity = (self.background / 2 + self.foreground / 2 + self.different) / 2
        return affinity + (self.foreground_displacement + self.background_displacement) / 2


def grid_labels(labels: Tensor) -> Tensor:
    """Label maps on the grid of stride 4: the nearest pixel of each cell, which is its third in both directions.

    Args:
        labels: ``(N, H, W)``; sides are multiples of 4.

    Returns:
        ``(N, H / 4, W / 4)``.

    Example:
        >>> grid_labels(torch.arange(16).reshape(1, 4, 4)).item()
        10
    """
    return labels[:, 2::4, 2::4]


def pair_labels(labels: Tensor, radius: int = TRAINING_RADIUS) -> Pairs:
    """Which pairs agree. Pairs with an undecided pixel are of no kind.

    Pairs are of the pixels that have all neighbours (the first h - (r - 1) rows, without r - 1 columns left and right)
    and their neighbours, in the order of `advcam_attr.refine.random_walk.paths`.

    Args:
        labels: on the grid, ``(N, h, w)``: 0 the background, 255 undecided.
        radius: r.

    Raises:
        AdvCAMError: a grid on which no pixel has all neighbours.

    Example:
        >>> pairs = pair_labels(torch.tensor([[[0, 0, 7], [0, 7, 255]]]), radius=2)
        >>> pairs.background.flatten().tolist(), pairs.different.flatten().tolist()
        ([False, True, False, False], [True, False, True, False])
    """
    source, ends = _pairs(labels, radius)
    source = source[:, None]
    known = (source != VOID) & (ends != VOID)
    same = known & (source == ends)
    return Pairs(same & (source == 0), same & (source != 0), known & (source != ends))


def path_affinities(edge: Tensor, radius: int = TRAINING_RADIUS) -> Tensor:
    """``1 - max over the way of σ(edge)`` of each pair.

    The gradient goes to the pixel of the way where the edge is strongest, which is all that is kept for the backward.

    Args:
        edge: logits on the grid, ``(N, h, w)``.
        radius: r.

    Returns:
        ``(N, O, h', w')`` in [0, 1], in the order of `pair_labels`.
    """
    _check_grid(edge, radius)
    numbers = torch.arange(edge[0].numel(), device=edge.device).reshape(edge.shape[1:])
    sources = _shifted(numbers, 0, 0, radius - 1)
    highest = [_highest(edge.detach(), way, radius - 1) + sources for way in paths(radius)]
    place = torch.stack(highest, 1)
    return 1 - edge.flatten(1).gather(1, place.flatten(1)).view(place.shape).sigmoid()


def _highest(edge: Tensor, way: tuple[Offset, ...], margin: int) -> Tensor:
    """Where on the way from each pixel the edge is strongest: how many cells further, in the order of rows."""
    best = _shifted(edge, *way[0], margin)
    place = torch.full_like(best, way[0][0] * edge.shape[2] + way[0][1], dtype=torch.long)
    for y, x in way[1:]:
        other = _shifted(edge, y, x, margin)
        place.masked_fill_(other > best, y * edge.shape[2] + x)
        best = torch.maximum(best, other)
    return place


def pair_displacements(displacement: Tensor, radius: int = TRAINING_RADIUS) -> Tensor:
    """The displacement of each pixel without that of its neighbour: where both point to one centre, the way between.

    Args:
        displacement: on the grid, y then x, ``(N, 2, h, w)``.
        radius: r.

    Returns:
        ``(N, 2, O, h', w')``.
    """
    source, ends = _pairs(displacement, radius)
    return source[:, :, None] - ends


def irn_loss(logits: Tensor, labels: Tensor, radius: int = TRAINING_RADIUS, counts: Tensor | None = None) -> IRNLoss:
    """IRN's loss: affinities by cross-entropy, displacements by absolute differences.

    Args:
        logits: of IRN's net, ``(N, 3, h, w)``: edge, and displacement y and x.
        labels: confident ones on the same grid, ``(N, h, w)``.
        radius: of the pairs.
        counts: `Pairs.counts` to divide by, in place of those of these images: where several processes share a batch,
            the mean of theirs, so that the mean of their losses is that of the batch.

    Raises:
        AdvCAMError: grids of different sizes, or too small for the radius.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0], [0, 0, 0]]])
        >>> loss = irn_loss(torch.zeros(1, 3, 2, 3), labels, radius=2)
        >>> round(loss.background.item(), 4), loss.background_displacement.item(), loss.different.item()
        (0.6931, 0.0, 0.0)
    """
    if logits.shape != (len(labels), 3, *labels.shape[1:]):
        raise AdvCAMError(
            f"irn: logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}; they must be (N, 3, h, w) and "
            "(N, h, w) of one grid"
        )
    pairs = pair_labels(labels, radius)
    affinity = path_affinities(logits[:, 0], radius)
    together, apart = -(affinity + _EPSILON).log(), -(1 + _EPSILON - affinity).log()
    displacement = pair_displacements(logits[:, 1:], radius)
    ways = torch.tensor([way[0] for way in paths(radius)], dtype=logits.dtype, device=logits.device)
    towards = (displacement - ways.T[:, :, None, None]).abs()
    background, foreground, different = (pairs.counts() if counts is None else counts).to(logits).unbind()
    return IRNLoss(
        background=(together * pairs.background).sum() / (background + _EPSILON),
        foreground=(together * pairs.foreground).sum() / (foreground + _EPSILON),
        different=(apart * pairs.different).sum() / (different + _EPSILON),
        foreground_displacement=(towards * pairs.foreground[:, None]).sum() / (2 * foreground + _EPSILON),
        background_displacement=(displacement.abs() * pairs.background[:, None]).sum() / (2 * background + _EPSILON),
    )


def _pairs(x: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """``(..., h, w)`` at the pixels that have all neighbours, and at their neighbours, ``(..., O, h', w')``."""
    _check_grid(x, radius)
    ends = [_shifted(x, *way[0], radius - 1) for way in paths(radius)]
    return _shifted(x, 0, 0, radius - 1), torch.stack(ends, -3)


def _shifted(x: Tensor, dy: int, dx: int, margin: int) -> Tensor:
    """``(..., h, w)`` at an offset from the pixels that have all neighbours."""
    height, width = x.shape[-2:]
    return x[..., dy : dy + height - margin, margin + dx : width - margin + dx]


def _check_grid(x: Tensor, radius: int) -> None:
    height, width = x.shape[-2:]
    if radius < 2 or height < radius or width < 2 * radius - 1:
        raise AdvCAMError(
            f"irn: on a grid of {height} x {width} no pixel has all neighbours of radius {radius}; "
            f"it must be at least {max(radius, 2)} x {2 * max(radius, 2) - 1}: use larger crops or a smaller radius"
        )


def edge_map(logits: Tensor) -> Tensor:
    """The edges of an image from those of itself and its mirror image.

    Args:
        logits: of edges, ``(2, h, w)``: the image's and the mirror image's.

    Returns:
        ``(h, w)`` in [0, 1]: ``σ(e / 2 + mirrored e' / 2)``.

    Example:
        >>> edge_map(torch.tensor([[[0.0, 2.0]], [[-2.0, 0.0]]]))
        tensor([[0.5000, 0.5000]])
    """
    return (logits[0] / 2 + logits[1].flip(-1) / 2).sigmoid()


def inference_size(size: tuple[int, int], least: int = 512, stride: int = 16) -> tuple[int, int]:
    """To what height and width an image is padded, right and below, before IRN's net sees it.

    Sides up to 512 pixels are padded to 512, as in IRN's code. That code pads larger ones by a negative number, which
    cuts them off; here they are padded to the next multiple of 16, and nothing is lost.

    Example:
        >>> inference_size((375, 500)), inference_size((480, 640)), inference_size((513, 8))
        ((512, 512), (512, 640), (528, 512))
    """
    height, width = (max(least, -(-side // stride) * stride) for side in size)
    return height, width


@dataclass(frozen=True)
class WalkRecipe:
    """How class maps walk and become labels.

    Attributes:
        exponent: of the class maps before the walk: 1.5 in AdvCAM's code, 1 in IRN's, 1.3 in RIB's.
        background: the score of the background: 0.25 in IRN's and AdvCAM's code, 0.27 in RIB's (0.22 for COCO).
        radius: of the walk's neighbours, in cells; 5 in IRN's code, at most 32.
        beta: the power of affinities; 10 in IRN's code.
        steps: of the walk; 2^8 in IRN's code.
    """

    exponent: float = 1.5
    background: float = 0.25
    radius: int = 5
    beta: float = 10.0
    steps: int = 256

    def __post_init__(self) -> None:
        if not (self.exponent > 0 and self.beta > 0 and 0 <= self.background <= 1):
            raise AdvCAMError(f"walk: exponents must be positive, and the background's score in 0..1, got {self}")
        if self.radius < 2 or self.steps < 0:
            raise AdvCAMError(f"walk: the radius must be at least 2 and the steps not negative, got {self}")
        if self.radius > LARGEST_RADIUS:
            raise AdvCAMError(f"walk: the radius must be at most {LARGEST_RADIUS} cells, got {self.radius}; lower it")


def irn_labels(maps: ClassMaps, edge: Tensor, recipe: WalkRecipe | None = None) -> Tensor:
    """The labels of an image: its class maps, after a walk that edges steer.

    Args:
        maps: of the image; of no class, all becomes background.
        edge: probabilities of class boundaries, ``(ceil(H / 4), ceil(W / 4))``.
        recipe: of the walk; None takes AdvCAM's.

    Returns:
        ``(H, W)`` uint8 on the edges' device: 0 the background, k + 1 class k.

    Raises:
        AdvCAMError: maps and edges of different grids.

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
    """The labels of an image from its class maps after a walk.

    Maps are enlarged four times, cut to the image, and divided by the peak of all classes together, so that a weak
    class loses against the background's score beside a strong one (as in IRN's code). Where all maps are zero, all is
    background.

    Args:
        walked: ``(K, ceil(H / 4), ceil(W / 4))``.
        maps: of the image, for its size and classes.
        background: the score of the background, which wins ties.

    Returns:
        ``(H, W)`` uint8: 0 the background, k + 1 class k.

    Example:
        >>> maps = ClassMaps((3, 8), (2, 2), torch.zeros(2, 1, 1), torch.zeros(2, 2, 2))
        >>> edge_walk_labels(torch.tensor([[[0.1]], [[0.4]]]), maps), edge_walk_labels(torch.zeros(2, 1, 1), maps)
        (tensor([[9, 9],
                [9, 9]], dtype=torch.uint8), tensor([[0, 0],
                [0, 0]], dtype=torch.uint8))
    """
    height, width = maps.size
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[0, :, :height, :width]
    scores = large / large.amax().clamp(min=torch.finfo(large.dtype).tiny)
    labels = torch.tensor([0, *(k + 1 for k in maps.classes)], dtype=torch.uint8, device=walked.device)
    return labels[F.pad(scores, (0, 0, 0, 0, 1, 0), value=background).argmax(0)]
