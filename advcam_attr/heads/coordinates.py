"""Coordinates in the image of a tensor's entries, and the grid of features that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Coordinates of entries, ``row + 1j * column`` in image pixels: complex128 on the CPU, as many axes as the tensor, of
#: size 1 where the coordinates do not vary. 0 is an entry without position (a class token, a padded cell).
Coordinates = Tensor
#: A product of two tensors with positions has both: an attention matrix those of its queries and of its keys.
#: None: what came of them in a call cannot be followed.
Positions = tuple[Coordinates, ...] | None

_ORIGIN = float(2**20)  # keeps every coordinate far from 0
_SAME = 1e-6  # pixels


@dataclass(frozen=True)
class Grid:
    """A tensor as features over the image.

    Attributes:
        layout: a letter for each axis: N, C, H, W, and L for axes that together hold all h·w positions.
        grid: (h, w).
        channels: C.
        prefix: entries before the grid's on the axis L.
        order: the grid's entries, row by row, among those of all its axes; None where they follow each other.
    """

    layout: str
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    order: tuple[int, ...] | None = None


def pixels(height: int, width: int) -> tuple[Coordinates, ...]:
    """Coordinates of an image ``(1, C, height, width)``."""
    rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5 + _ORIGIN for size in (height, width))
    return merge([(rows[:, None] + 1j * columns)[None, None]])


def close(a: Coordinates, b: Coordinates) -> bool:
    return bool(((a - b).abs() < _SAME).all())


def average(z: Coordinates, axes: Sequence[int]) -> Coordinates:
    """The mean over axes, which keep size 1, of the entries with a position."""
    axes = [axis for axis in axes if z.shape[axis] > 1]
    if not axes:
        return z
    count = (z != 0).sum(axes, keepdim=True)
    return z.sum(axes, keepdim=True) / count.clamp_min(1)


def compact(z: Coordinates) -> Coordinates:
    """Give size 1 to the axes along which the entries with a position have the same."""
    z = z[tuple(slice(1) if stride == 0 else slice(None) for stride in z.stride())]
    gaps = bool((z == 0).any())
    for axis in reversed(range(z.ndim)):
        if z.shape[axis] < 2:
            continue
        first, last = z.narrow(axis, 0, 1), z.narrow(axis, z.shape[axis] - 1, 1)
        if close(last, first) and close(z, first):  # the ends alone tell most axes that vary
            z = first
        elif gaps and _alike(last, first):
            mean = average(z, [axis])
            z = mean if _alike(z, mean) else z
    return z


def _alike(a: Coordinates, b: Coordinates) -> bool:
    """Whether entries of both that have a position have the same."""
    return bool((((a - b).abs() < _SAME) | (a == 0) | (b == 0)).all())


def varying(z: Coordinates) -> set[int]:
    return {axis for axis, size in enumerate(z.shape) if size > 1}


def merge(found: Sequence[Coordinates]) -> tuple[Coordinates, ...]:
    """Drop coordinates that are one position, and those that others know more finely; the first of several alike."""
    return finest([compact(z) for z in found])


def finest(found: Sequence[Coordinates]) -> tuple[Coordinates, ...]:
    """As `merge`, of coordinates that are compact."""
    kept: list[Coordinates] = []
    for z in sorted(found, key=lambda z: -len(varying(z))):
        if varying(z) and not any(varying(z) <= varying(other) for other in kept):
            kept.append(z)
    return tuple(kept)


def arrange(z: Coordinates, axes: Sequence[int | None]) -> Coordinates:
    """Put the axes of ``z`` in the order of ``axes``, None being a new one; average over the others."""
    kept = [axis for axis in axes if axis is not None]
    gone = [axis for axis in range(z.ndim) if axis not in kept]
    z = average(z, gone).permute(*kept, *gone).reshape([z.shape[axis] for axis in kept])
    return z[tuple(None if axis is None else slice(None) for axis in axes)]


def resample(z: Coordinates, axis: int, old: int, new: int) -> Coordinates:
    """Spread the coordinates of an axis evenly over its new size."""
    if old == new or z.shape[axis] == 1:
        return z
    z = _extrapolated(z, axis)
    at = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
    low = at.floor().clamp(0, old - 2).long()
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(z.ndim)])
    return z.index_select(axis, low) * (1 - share) + z.index_select(axis, low + 1) * share


def _extrapolated(z: Coordinates, axis: int) -> Coordinates:
    """Continue the coordinates of an axis over padded cells at its ends."""
    others = [a for a in range(z.ndim) if a != axis]
    where = ((z != 0).sum(others) > 0).nonzero().flatten()
    first, last = int(where[0]), int(where[-1])
    if last - first + 1 == z.shape[axis] or first == last:
        return z
    step = z.narrow(axis, first + 1, 1) - z.narrow(axis, first, 1)
    away = torch.arange(z.shape[axis], dtype=torch.float64).reshape([-1 if a == axis else 1 for a in range(z.ndim)])
    line = z.narrow(axis, first, 1) + (away - first) * step
    outside = ((away < first) | (away > last)) & (z.narrow(axis, first, 1) != 0)
    return torch.where(outside, line, z)


def same_cells(given: Sequence[Coordinates]) -> Coordinates | None:
    """The mean of tensors that hold the same cells, but for places within them (as of unshuffled pixels), or None."""
    if any(z.shape != given[0].shape for z in given):
        return None
    stacked = torch.stack(list(given))
    mean = average(stacked, [0])
    return mean[0] if within_cells((stacked - mean) * (stacked != 0), mean[0]) else None


def within_cells(away: Coordinates, cells: Coordinates) -> bool:
    """Whether entries that are ``away`` from cells are nearer than half the distance to the next cell."""
    for part, at in ((away.real, cells.real), (away.imag, cells.imag)):
        steps = torch.cat([torch.zeros(0), *(at.diff(dim=axis).abs().flatten() for axis in varying(cells))])
        steps = steps[steps > _SAME]
        if float(part.abs().amax()) > (float(steps.amin()) / 2 - _SAME if len(steps) else _SAME):
            return False
    return True


def grid_of(z: Coordinates, shape: tuple[int, ...]) -> Grid | None:
    """A tensor of this shape as features over the image, with the axis of channels averaged if it varies in a cell."""
    found = _plain_grid(z, shape)
    for axis in varying(z) if found is None else ():
        cells = average(z, [axis])
        found = found or (_plain_grid(cells, shape) if within_cells((z - cells) * (z != 0), cells) else None)
    return found


def _plain_grid(z: Coordinates, shape: tuple[int, ...]) -> Grid | None:
    positional = varying(z)
    batch = 0
    if 0 in positional:  # tokens first, then images
        batch = 1
        if positional != {0} or len(shape) != 3 or shape[1] != 1:
            return None
    down = {a for a in positional if not close(z.real, z.real.narrow(a, 0, 1))}
    across = {a for a in positional if not close(z.imag, z.imag.narrow(a, 0, 1))}
    letters = ["C"] * len(shape)
    letters[batch] = "N"
    if len(down) <= 1 and len(across) <= 1 and not down & across and len(shape) == 4:
        for axis in down:
            letters[axis] = "H"
        for axis in across:
            letters[axis] = "W"
        missing = {"H", "W"} - set(letters)
        single = [a for a in range(1, 4) if shape[a] == 1 and letters[a] == "C"]
        if missing and not single:
            return None
        if missing:
            (letter,) = missing
            beside = next(iter(positional)) + (1 if letter == "W" else -1)
            letters[beside if beside in single else single[-1]] = letter
        places = [letters.index("H"), letters.index("W")]
    else:
        places = sorted(positional)
        for axis in places:
            letters[axis] = "L"
    if letters.count("C") != 1:
        return None
    channel = letters.index("C")
    # a line of all entries, H before W or axis by axis, and the row and column of the grid that each belongs to
    values = z.permute(batch, channel, *places).reshape(-1)
    cells = values.nonzero().flatten()
    if "H" in letters:
        size = [z.shape[place] for place in places]
        rows = _rank(z.real.select(places[1], 0).flatten())[:, None].expand(size).flatten()
        columns = _rank(z.imag.select(places[0], 0).flatten()).expand(size).flatten()
    else:
        rows, columns = (_rank(part[cells], joint=True) for part in (values.real, values.imag))
    h, w = int(rows.max()) + 1, int(columns.max()) + 1
    at = rows * w + columns
    by_place = at.argsort(stable=True)
    if not torch.equal(at[by_place], torch.arange(h * w)):
        return None
    order = cells[by_place]
    prefix = int(order.min())
    plain = torch.equal(order, torch.arange(prefix, prefix + h * w))
    return Grid("".join(letters), (h, w), shape[channel], prefix, None if plain else tuple(order.tolist()))


def _rank(values: Tensor, joint: bool = False) -> Tensor:
    """The place of each value among all, or among the different ones (``joint``)."""
    if joint:
        return torch.unique((values / _SAME).round(), return_inverse=True)[1]
    return values.argsort(stable=True).argsort()
