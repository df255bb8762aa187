"""Gaussian filtering of points with feature vectors on a permutohedral lattice.

The filter approximates, for every point p, ``out_p = sum_q exp(-|f_p - f_q|² / 2) value_q`` in time linear in the
number of points (Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010):

1. *Embed*: features of D dimensions are rotated and scaled into the hyperplane ``sum(x) = 0`` of D + 1 dimensions, in
   which the lattice is the integer points whose coordinates agree modulo D + 1.
2. *Splat*: each point's value is added to the D + 1 vertices of its simplex with its barycentric weights.
3. *Blur*: along each of the D + 1 lattice directions, each vertex becomes itself plus half of its two neighbours.
   Vertices without points around them are not stored and count as zero.
4. *Slice*: each point reads its simplex's vertices with the same weights; ``1 / (1 + 2^-D)`` compensates the blur.

Splat, blur and slice are sums of weighted rows of a table: `torch.nn.functional.embedding_bag`, on CPU and GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: Added to a point's sum of kernel weights before its inverse root is taken.
EPSILON = 1e-20


@dataclass(frozen=True)
class Lattice:
    """A filter over P points whose simplices have M vertices in all, made by `build`.

    Vertex M is always zero: it stands for neighbours that are not stored.

    Attributes:
        vertices, slice_weights: of each point's simplex, and its weights, ``(P, D + 1)``; indices are int32.
        members, splat_weights: the points around each vertex, vertex by vertex, and their weights, ``(P · (D + 1),)``.
        starts: the index of each vertex's first member, ``(M + 1,)``.
        neighbours: for each direction, each vertex and its two neighbours, ``(D + 1, M + 1, 3)``.
    """

    vertices: Tensor
    slice_weights: Tensor
    members: Tensor
    splat_weights: Tensor
    starts: Tensor
    neighbours: Tensor

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """Return the Gaussian-weighted sum of the values of all points, at each point: ``(P, K)`` to ``(P, K)``."""
        stencil = values.new_tensor([1.0, 0.5, 0.5]).expand(len(self.starts), 3).contiguous()
        table = _bags(values, self.members, self.splat_weights, self.starts)
        for direction in self.neighbours:
            table = _bags(table, direction, stencil)
        return _bags(table, self.vertices, self.slice_weights)

    def normalised(self) -> Lattice:
        """Return the filter normalised symmetrically: ``S K S`` with ``S = (K 1 + 1e-20)^(-1/2)``, as in their code."""
        scale = (self.filter(torch.ones_like(self.slice_weights[:, :1])) + EPSILON).rsqrt()
        return replace(
            self,
            slice_weights=self.slice_weights * scale,
            splat_weights=self.splat_weights * scale[:, 0].index_select(0, self.members),
        )


@torch.no_grad()
def build(features: Tensor) -> Lattice:
    """Return the lattice of the ``N · P`` points of N images; points of different images never mix.

    Args:
        features: ``(N, P, D)``, each dimension divided by its standard deviation; of the filter's dtype.
    """
    images, points, dimensions = features.shape
    if not features.numel() or not bool(features.isfinite().all()):
        raise AdvCAMError(f"lattice: features must be finite and not empty, got {tuple(features.shape)}")
    order = dimensions + 1
    nearest, rank, barycentric = _simplices(features.reshape(-1, dimensions))
    image = torch.arange(images, device=features.device).repeat_interleave(points)
    keys, steps = _keys(nearest, rank, image)

    ordered, places = keys.flatten().sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    vertices = torch.empty_like(places, dtype=torch.int32)
    vertices.scatter_(0, places, first.cumsum(0, dtype=torch.int32) - 1)
    starts = first.nonzero().flatten()
    return Lattice(
        vertices=vertices.reshape(order, -1).T.contiguous(),
        slice_weights=(barycentric / (1 + 2.0**-dimensions)).T.contiguous(),
        members=(places % keys.shape[1]).int(),
        splat_weights=barycentric.flatten().index_select(0, places),
        starts=F.pad(starts, (0, 1), value=len(ordered)).int(),
        neighbours=_neighbours(ordered[starts], steps),
    )


def _bags(table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sum weighted rows of ``table (T, K)``: those of each row of ``rows (B, S)``, or from each start to the next."""
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the simplex around each point ``(P, D)`` as three tensors ``(D + 1, P)``.

    They are the coordinates, over D + 1, of its vertex whose coordinates are multiples of D + 1; the rank of each
    coordinate among the point's offsets from it, the largest 0; and the weights of the vertices of remainder 0, 1, ...,
    D.
    """
    dimensions = features.shape[1]
    order = dimensions + 1
    position = _embed(features)
    nearest = (position * (1 / order)).round()
    offset = position - nearest * order
    rank = nearest.sum(0, dtype=torch.int32).repeat(order, 1)
    for i in range(order):
        for j in range(i + 1, order):
            below = offset[i] < offset[j]
            rank[i] += below
            rank[j] += ~below
    wrap = (rank < 0).int() - (rank > dimensions).int()
    nearest, offset, rank = nearest + wrap, (offset - order * wrap) * (1 / order), (rank + order * wrap).long()

    descending = torch.empty_like(offset).scatter_(0, rank, offset)
    barycentric = torch.empty_like(offset)
    barycentric[0] = 1 + descending[-1] - descending[0]
    barycentric[1:] = (descending[:-1] - descending[1:]).flip(0)
    return nearest.long(), rank, barycentric


def _embed(features: Tensor) -> Tensor:
    """Embed features ``(P, D)`` in the plane ``sum(x) = 0``, ``(D + 1, P)``, scaled to unit deviation of the blur.

    The scale is rounded to float32 where the reference code rounds it: pixels often lie on the border between
    simplices, and the last bit decides which vertices are stored.
    """
    dimensions = features.shape[1]
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=torch.float32).item()
    total = torch.zeros_like(features[:, 0])
    rows = []
    for i in range(dimensions, 0, -1):
        scaled = features[:, i - 1] * torch.tensor(deviation / math.sqrt(i * (i + 1)), dtype=torch.float32).item()
        rows.append(total - i * scaled)
        total = total + scaled
    return torch.stack([total, *reversed(rows)])


def _keys(nearest: Tensor, rank: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return one number for each vertex of each point's simplex, ``(D + 1, P)``, and its D + 1 steps to a neighbour.

    The vertex with remainder k has coordinates ``(D + 1) · (nearest - [rank > D - k]) + k``. Its number is their
    mixed-radix value, the last coordinate left out (coordinates sum to zero), the image as the highest digit.
    """
    order, dimensions = len(nearest), len(nearest) - 1
    low, high = (order * edge for edge in torch.aminmax(nearest[:dimensions], dim=1))
    ranges = (high - low + 4 * order).tolist()
    strides = [math.prod(ranges[:i]) for i in range(dimensions + 1)]
    if strides[-1] * (int(image[-1]) + 1) >= 2**62:
        raise AdvCAMError("lattice: features span too many standard deviations; use larger ones")
    stride = nearest.new_tensor([*strides[:-1], 0])[:, None]
    origin = image * strides[-1] + ((nearest[:dimensions] * order - low[:, None] + 2 * order) * stride[:-1]).sum(0)

    steps = stride.sum() - order * stride
    by_rank = torch.empty_like(rank).scatter_(0, rank, steps.expand_as(rank))
    keys = torch.empty_like(rank)
    keys[0] = origin
    keys[1:] = origin + by_rank[1:].flip(0).cumsum(0)
    return keys, steps.flatten()


def _neighbours(numbers: Tensor, steps: Tensor) -> Tensor:
    """Return each vertex and its two neighbours along each direction, ``(D + 1, M + 1, 3)``, from ascending numbers."""
    count = len(numbers)
    here = torch.arange(count + 1, device=numbers.device, dtype=torch.int32)
    table = here[:, None].repeat(len(steps), 1, 3)
    for direction, step in zip(table, steps, strict=True):
        direction[:, 1:] = count
        place = torch.searchsorted(numbers, numbers + step, out_int32=True)
        there = (numbers[place.clamp(max=count - 1)] == numbers + step).nonzero().flatten()
        direction[there, 1] = place[there]
        direction[place[there], 2] = there.int()
    return table
