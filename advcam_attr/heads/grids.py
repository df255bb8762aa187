"""A tensor's shape in; how it lies over the image as a grid of features, out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Layout = Literal["NCHW", "NHWC", "NLC", "NCL"]


@dataclass(frozen=True)
class Grid:
    """A tensor read as features over the image: (h, w) cells after ``prefix`` other tokens."""

    layout: Layout
    grid: tuple[int, int]
    channels: int
    prefix: int


def is_vector(tensor: Tensor) -> bool:
    """Whether a tensor holds one number a channel and no grid."""
    return sum(size > 1 for size in tensor.shape[1:]) <= 1


def _token_grid(tokens: int, image: tuple[int, int], *, prefixes: int = 9) -> tuple[tuple[int, int], int] | None:
    """Factor a token count into a grid of the image's shape, after at most ``prefixes - 1`` other tokens."""
    height, width = image
    for prefix in range(min(prefixes, tokens - 3)):
        h = round(math.sqrt((tokens - prefix) * height / width))
        if h > 1 and (tokens - prefix) % h == 0 and abs(height * (tokens - prefix) / h - width * h) < 0.5 * max(image):
            return (h, (tokens - prefix) // h), prefix
    return None


def _fits(h: int, w: int, image: tuple[int, int]) -> bool:
    """Whether (h, w) can be the image's grid: the same shape up to rounding, and coarser than the image."""
    height, width = image
    return 1 < h <= height and 1 < w <= width and abs(h * width - w * height) < max(image) + min(h, w)


def as_grid(tensor: Tensor, image: tuple[int, int], prefer: Layout | None = None) -> Grid | None:
    """Read a tensor as a map of features over the image, or None if its shape does not allow it."""
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        options: list[tuple[Layout, int, int, int]] = [("NCHW", b, c, a), ("NHWC", a, b, c)]
        fitting = [o for o in options if _fits(o[1], o[2], image)]
        if prefer in ("NCHW", "NHWC"):
            fitting = [o for o in options if o[0] == prefer and min(o[1], o[2]) >= 1 and o[1] * o[2] > 1]
        if not fitting:
            return None
        layout, h, w, channels = fitting[0]
        return Grid(layout, (h, w), channels, 0)
    if tensor.ndim == 3:
        _, a, b = tensor.shape
        tokens: list[tuple[Layout, int, int]] = [("NLC", a, b), ("NCL", b, a)]
        for token_layout, length, channels in tokens:
            if prefer not in (None, token_layout):
                continue
            found = _token_grid(length, image, prefixes=1 if prefer or token_layout == "NCL" else 9)
            if found:
                return Grid(token_layout, found[0], channels, found[1])
    return None
