"""Random walks of class maps along the affinities of nearby pixels.

Of an h × w grid, each pixel i has affinities ``a_ij`` in [0, 1] to the pixels j within a radius, ``a_ii = 1`` and
``a_ij = a_ji``. Columns of ``a^β`` are divided by their sums, which gives the transition matrix T; a map x, as a row
vector, becomes ``x T^t`` (Ahn and Kwak, PSA, 2018; Ahn, Cho and Kwak, IRN, 2019). T is sparse: a step takes each
pixel's weighted mean over its neighbours. Walks are computed in float64: in float32, 256 steps drift by 1e-4.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.pairs import neighbours, paths
from advcam_attr.refine.recipes import LARGEST_RADIUS as LARGEST_RADIUS
from advcam_attr.types import AdvCAMError

#: The remainder at which the series of `random_walk` is cut off, relative to the maps' peak.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Transition:
    """One step of a random walk on an h × w grid, made by `transition`.

    Attributes:
        size: h and w.
        matrix: the transpose of T, ``(n, n)`` sparse CSR float64 with n = h · w; its rows sum to one.
    """

    size: tuple[int, int]
    matrix: Tensor

    def __call__(self, columns: Tensor) -> Tensor:
        """Take one step of K maps as columns ``(n, K)`` float64."""
        return self.matrix @ columns


def edge_affinities(edge: Tensor, radius: int = 5) -> Tensor:
    """Return the affinities ``(O, h, w)`` of pixels across edges ``(h, w)``, ``1 - max over the path of edge``.

    As in IRN's code, which pads the edges with ones, paths that leave the grid have affinity 0.
    """
    if edge.ndim != 2 or not bool(((edge >= 0) & (edge <= 1)).all()):
        raise AdvCAMError(f"walk: edges must be (h, w) probabilities, got {tuple(edge.shape)}; apply the sigmoid first")
    height, width = edge.shape
    margin = radius - 1
    padded = F.pad(edge, (margin, margin, 0, margin), value=1.0)

    def shifted(y: int, x: int) -> Tensor:
        return padded[y : y + height, margin + x : margin + x + width]

    return torch.stack([1 - torch.stack([shifted(y, x) for y, x in path]).amax(0) for path in paths(radius)])


def transition(affinities: Tensor, radius: int = 5, beta: float = 10.0) -> Transition:
    """Return the step of a random walk along affinities.

    Args:
        affinities: ``(O, h, w)`` in [0, 1], in the order of `advcam_attr.refine.pairs.paths`.
        radius: of neighbours.
        beta: the power of affinities; 10 in IRN's code, 8 in PSA's.
    """
    ends = neighbours(radius)
    if affinities.ndim != 3 or len(affinities) != len(ends):
        raise AdvCAMError(
            f"walk: radius {radius} has {len(ends)} neighbours, got affinities {tuple(affinities.shape)}; they must be "
            "(neighbours, h, w)"
        )
    height, width = affinities.shape[1:]
    margin = radius - 1
    number = torch.arange(height * width, device=affinities.device).reshape(height, width)
    numbers = F.pad(number, (margin,) * 4, value=-1)
    padded = F.pad(affinities.double() ** beta, (margin,) * 4)

    def shifted(map: Tensor, y: int, x: int) -> Tensor:
        return map[margin + y : margin + y + height, margin + x : margin + x + width].flatten()

    weights = {(0, 0): torch.ones_like(shifted(padded[0], 0, 0))}
    for forward, (y, x) in zip(padded, ends, strict=True):
        weights |= {(y, x): shifted(forward, 0, 0), (-y, -x): shifted(forward, -y, -x)}
    offsets = sorted(weights)
    columns = torch.stack([shifted(numbers, *offset) for offset in offsets], 1)
    inside = columns >= 0
    weight = torch.stack([weights[offset] for offset in offsets], 1) * inside
    starts = F.pad(inside.sum(1).cumsum(0), (1, 0))
    size = (height * width, height * width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            starts, columns[inside], (weight / weight.sum(1, keepdim=True))[inside], size, check_invariants=True
        )
    return Transition((height, width), matrix)


@torch.no_grad()
def random_walk(maps: Tensor, step: Transition, steps: int = 256) -> Tensor:
    """Return the maps after a random walk, ``x T^t``: ``(K, h, w)``.

    The power is summed as its Chebyshev series ``z^t = 2^(1-t) Σ' C(t, (t-k)/2) T_k(z)`` over k = t, t-2, ... >= 0 (the
    term of k = 0 halved). T has real eigenvalues in [-1, 1], on which each T_k is at most 1, so terms can be dropped
    while their coefficients sum to at most `TOLERANCE`: 256 steps take about 90 products with T.

    Args:
        maps: ``(K, h, w)``, on the transition's device.
        step: the transition.
        steps: t; 256 in IRN's and PSA's code, which square a dense T eight times.

    Example:
        >>> wall = edge_affinities(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]).expand(4, 6))
        >>> maps = torch.zeros(1, 4, 6)
        >>> maps[:, :, 0] = 1
        >>> random_walk(maps, transition(wall))[0, 0]
        tensor([0.5000, 0.5000, 0.0000, 0.0000, 0.0000, 0.0000])
    """
    if maps.shape[1:] != step.size:
        raise AdvCAMError(
            f"walk: maps {tuple(maps.shape)} do not fit the grid of {step.size[0]} x {step.size[1]}; resize one of them"
        )
    columns = maps.double().flatten(1).T.contiguous()
    before, now = columns, step(columns)
    coefficients = _power_series(steps)
    total = coefficients[0] * before
    for coefficient in coefficients[1:]:
        total.add_(now, alpha=coefficient)
        before, now = now, 2 * step(now) - before
    return total.T.reshape(maps.shape).to(maps.dtype)


def _power_series(power: int) -> list[float]:
    """Chebyshev coefficients of ``z^power``, without the highest ones that sum to at most `TOLERANCE`."""
    series = [0.0] * (power + 1)
    for k in range(power, -1, -2):
        series[k] = math.comb(power, (power - k) // 2) / 2 ** (power - 1 if k else power)
    dropped = 0.0
    while len(series) > 1 and dropped + series[-1] <= TOLERANCE:
        dropped += series.pop()
    return series


def edge_walk(cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Tensor:
    """Return class maps ``(K, h, w)`` after IRN's walk, ``(cam · (1 - edge)) T^steps``, which does not cross edges.

    Maps are already raised to a power if at all; ``edge`` holds probabilities of class boundaries, ``(h, w)``.
    """
    if cam.ndim != 3 or cam.shape[1:] != edge.shape:
        raise AdvCAMError(
            f"walk: maps {tuple(cam.shape)} and edges {tuple(edge.shape)} differ in size; maps must be (K, h, w)"
        )
    return random_walk(cam * (1 - edge), transition(edge_affinities(edge, radius), radius, beta), steps)
