"""An oracle of grids: which cell of a mapped tensor moves most when one patch of the image does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from advcam_attr import heads


def probe(model: nn.Module, x: Tensor, layer: str | None = None) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield cells of the grid and the cell that moved most when the image changed within each.

    Args:
        model: with random weights, best in float64.
        x: ``(1, C, H, W)``; both sides of the grid should be as different as the image allows.
    """
    view = heads.view(model, layer)
    h, w = view.inspect(x).grid
    with torch.no_grad():
        before = view(x).features
        for row, column in {(0, 0), (0, w - 1), (h - 1, 0), (h // 2, w // 2), (h // 3, (2 * w) // 3)}:
            top, bottom = (round(x.shape[2] * (row + end) / h) for end in (0, 1))
            left, right = (round(x.shape[3] * (column + end) / w) for end in (0, 1))
            changed = x.clone()
            changed[..., top:bottom, left:right] += torch.randn(
                1, x.shape[1], bottom - top, right - left, dtype=x.dtype, generator=torch.Generator().manual_seed(0)
            )
            moved = (view(changed).features - before).square().sum(1)[0]
            # the middle of what moved clearly: neighbours see the patch too
            weight = (moved / moved.max()).pow(2)
            rows, columns = torch.arange(h).to(weight), torch.arange(w).to(weight)
            at = (float((weight.sum(1) * rows).sum()), float((weight.sum(0) * columns).sum()))
            yield (row, column), tuple(round(place / float(weight.sum())) for place in at)


def misplaced(model: nn.Module, x: Tensor, layer: str | None = None, *, away: int = 1) -> list[str]:
    """Return the probed cells of which another one moved, more than ``away`` cells off."""
    return [
        f"{wanted} moves {moved}"
        for wanted, moved in probe(model, x, layer)
        if max(abs(a - b) for a, b in zip(wanted, moved, strict=True)) > away
    ]
