"""Pairs of nearby grid cells, and the affinity losses that IRN and PSA compute on them.

Each cell is paired with its neighbours to the right and below within a radius r. As in the released codes, only cells
that have all neighbours are sources: the first h' = h - (r - 1) rows without r - 1 columns at either side,
w' = w - 2 (r - 1). Grids of pairs are ``(..., O, h', w')`` with the O neighbours in the order of `paths`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from advcam_attr.types import VOID, AdvCAMError

#: Keeps logarithms finite and counts of pairs above zero (the released codes).
EPSILON = 1e-5

#: Row and column of a cell relative to another.
Offset = tuple[int, int]


@functools.cache
def paths(radius: int) -> tuple[tuple[Offset, ...], ...]:
    """Return the paths from a cell to its neighbours to the right and below, as offsets (y, x) that end in (0, 0).

    Neighbours are (0, x) for 0 < x < r, and (y, x) for 0 < y < r, |x| < r, x² + y² < r². The path to (dy, dx) holds the
    cells of the rectangle between the two whose distance from the straight line is below one.
    """
    ends = [(0, x) for x in range(1, radius)]
    ends += [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x * x + y * y < radius * radius]
    return tuple(_path(dy, dx) for dy, dx in ends)


def _path(dy: int, dx: int) -> tuple[Offset, ...]:
    between = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    near = [(y, x) for y, x in between if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]
    return tuple(sorted(near, key=lambda p: p[0] ** 2 + p[1] ** 2, reverse=True))


def neighbours(radius: int) -> tuple[Offset, ...]:
    """Return the offsets of the O neighbours, in the order of `paths`."""
    return tuple(path[0] for path in paths(radius))


def check_grid(grid: Tensor, radius: int) -> None:
    """Raise where no cell of ``(..., h, w)`` has all neighbours."""
    height, width = grid.shape[-2:]
    if radius < 2 or height < radius or width < 2 * radius - 1:
        least = max(radius, 2)
        raise AdvCAMError(
            f"a grid of {height} x {width} cells has no pairs of radius {radius}: it must be at least "
            f"{least} x {2 * least - 1}; use larger crops or a smaller radius"
        )


def shifted(grid: Tensor, offset: Offset, radius: int) -> Tensor:
    """Return ``(..., h, w)`` at an offset from the sources, ``(..., h', w')``."""
    (dy, dx), margin = offset, radius - 1
    height, width = grid.shape[-2:]
    return grid[..., dy : dy + height - margin, margin + dx : width - margin + dx]


def pair_kinds(labels: Tensor, radius: int) -> Tensor:
    """Return which pairs are of background, of one foreground class, and of two labels: ``(3, N, O, h', w')`` bool.

    Labels are ``(N, h, w)``: 0 the background, 255 undecided; pairs with an undecided cell are of no kind. Below a
    radius of 2 there are no pairs.
    """
    if radius < 2:
        return labels.new_zeros((3, len(labels), 0, *labels.shape[1:]), dtype=torch.bool)
    check_grid(labels, radius)
    source = shifted(labels, (0, 0), radius)[:, None]
    ends = torch.stack([shifted(labels, offset, radius) for offset in neighbours(radius)], 1)
    decided, equal = (source != VOID) & (ends != VOID), source == ends
    return torch.stack([decided & equal & (source == 0), decided & equal & (source != 0), decided & ~equal])


def pair_counts(labels: Tensor, radius: int) -> Tensor:
    """Return the number of pairs of each of the `pair_kinds`, ``(3,)`` float32."""
    return pair_kinds(labels, radius).flatten(1).sum(1).float()


def affinity_loss_sums(affinity: Tensor, kinds: Tensor) -> Tensor:
    """Return the sums of the cross-entropy of affinities a over the pairs of each kind, ``(3,)``.

    Pairs of one label lose ``-log(a + 1e-5)``, pairs of two labels ``-log(1 + 1e-5 - a)``.
    """
    alike, apart = -(affinity + EPSILON).log(), -(1 + EPSILON - affinity).log()
    return torch.stack([(kinds[0] * alike).sum(), (kinds[1] * alike).sum(), (kinds[2] * apart).sum()])
