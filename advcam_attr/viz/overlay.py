"""Overlays of maps and labels on images, and grids of images, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 6
_INK, _PAPER = (20, 20, 20), (255, 255, 255)

#: ``(H, W, 3)`` float in [0, 1].
ImageArray = np.ndarray


def heat_over(image: ImageArray, heat: np.ndarray, colours: str = "turbo") -> ImageArray:
    """Overlay a map ``(H, W)``, rectified and divided by its maximum, on an image."""
    heat = np.clip(heat, 0, None)
    heat = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    share = 0.35 + 0.3 * heat[..., None]
    over: ImageArray = (1 - share) * image + share * matplotlib.colormaps[colours](heat)[..., :3]
    return over


def labels_over(image: ImageArray, labels: np.ndarray, colours: str = "tab10") -> ImageArray:
    """Overlay a label map ``(H, W)`` on an image: one colour a class, the background (0) darkened."""
    palette = matplotlib.colormaps[colours]
    inside = (labels > 0)[..., None]
    tint = palette((np.maximum(labels, 1) - 1) % palette.N)[..., :3]
    over: ImageArray = np.where(inside, 0.3 * image + 0.7 * tint, 0.4 * image)
    return over


def panels(
    rows: Sequence[Sequence[ImageArray]], titles: Sequence[str], captions: Sequence[str] = (), cell: int = 224
) -> Image.Image:
    """Draw images in a grid with a title above each column and a caption below each row.

    Args:
        rows: images ``(H, W, 3)`` in [0, 1]; one per title in each row.
        titles: one a column.
        captions: one a row, or none.
        cell: the height to which every image is resized, in pixels.

    Returns:
        The drawing, mode ``RGB``.
    """
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    line = 20
    drawn = [[_resized(image, cell) for image in row] for row in rows]
    widths = [max(row[column].width for row in drawn) for column in range(len(titles))]
    below = line if captions else 0
    width = sum(widths) + _MARGIN * (len(widths) + 1)
    height = line + _MARGIN + len(drawn) * (cell + below + _MARGIN)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [_MARGIN + sum(widths[:column]) + _MARGIN * column for column in range(len(titles))]
    for left, title, room in zip(lefts, titles, widths, strict=True):
        draw.text((left, 4), _fitted(title, font, room), fill=_INK, font=font)
    for index, row in enumerate(drawn):
        top = line + _MARGIN + index * (cell + below + _MARGIN)
        for left, image in zip(lefts, row, strict=True):
            sheet.paste(image, (left, top))
        if captions:
            text = _fitted(captions[index], font, width - 2 * _MARGIN)
            draw.text((_MARGIN, top + cell + 2), text, fill=_INK, font=font)
    return sheet


def _resized(image: ImageArray, height: int) -> Image.Image:
    drawn = Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))
    width = max(1, round(drawn.width * height / drawn.height))
    return drawn.resize((width, height), Image.Resampling.BICUBIC)


def _fitted(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
