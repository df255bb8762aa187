"""Slow references of pairs and random walks: one pair at a time, and a dense transition matrix that is squared."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Cell = tuple[int, int]


def slow_pairs(height: int, width: int, radius: int) -> Iterator[tuple[Cell, Cell]]:
    """All pairs of cells by their definition, each once."""
    for y in range(height - (radius - 1)):
        for x in range(radius - 1, width - (radius - 1)):
            for dy in range(radius):
                for dx in range(1 - radius, radius):
                    ahead = dy > 0 or dx > 0
                    if ahead and (dy == 0 or dx * dx + dy * dy < radius * radius):
                        yield (y, x), (y + dy, x + dx)


def strongest_between(edge: Tensor, i: Cell, j: Cell) -> float:
    """The strongest edge on the path between two cells."""
    (y, x), (dy, dx) = i, (j[0] - i[0], j[1] - i[1])
    return max(
        float(edge[y + v, x + u])
        for v in range(dy + 1)
        for u in range(min(dx, 0), max(dx, 0) + 1)
        if abs(dy * u - dx * v) < math.hypot(dy, dx)
    )


def affinity_matrix(height: int, width: int, radius: int, affinity: Callable[[Cell, Cell], float]) -> Tensor:
    """The dense symmetric matrix of affinities, with ones on its diagonal."""
    matrix = torch.eye(height * width, dtype=torch.float64)
    for i, j in slow_pairs(height, width, radius):
        one, other = i[0] * width + i[1], j[0] * width + j[1]
        matrix[one, other] = matrix[other, one] = affinity(i, j)
    return matrix


def walked(maps: Tensor, affinities: Tensor, beta: float, squarings: int) -> Tensor:
    """Maps times the power of the transition matrix, as in the released codes."""
    matrix = affinities.double() ** beta
    matrix = matrix / matrix.sum(0, keepdim=True)
    for _ in range(squarings):
        matrix = matrix @ matrix
    return (maps.double().flatten(1) @ matrix).reshape(maps.shape)


def dense_edge_walk(cam: Tensor, edge: Tensor, beta: float = 10, squarings: int = 8, radius: int = 5) -> Tensor:
    """IRN's walk: the grid padded with edges, so that all its cells are sources, and the padding dropped again."""
    height, width = edge.shape
    padded = torch.ones(height + 5, width + 10, dtype=edge.dtype)
    padded[:height, 5 : 5 + width] = edge
    matrix = affinity_matrix(*padded.shape, radius, lambda i, j: 1 - strongest_between(padded, i, j))
    inside = torch.arange(padded.numel()).reshape(padded.shape)[:height, 5 : 5 + width].flatten()
    return walked(cam.double() * (1 - edge.double()), matrix[inside][:, inside], beta, squarings)
