"""Overlays of maps and labels on images, and grids of images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import figure, show_image

_MARGIN = 6
_INK, _PAPER = (20, 20, 20), (255, 255, 255)

#: Opacity of the tint at a map's peak, and its colours.
ALPHA, COLOURS = 0.7, "turbo"

#: ``(H, W, 3)`` float in [0, 1].
ImageArray = np.ndarray

#: Left, top, right and bottom of a part of an image, in pixels; it may exceed the image.
Box = tuple[float, float, float, float]


def overlay(
    image: Image.Image | np.ndarray | Tensor,
    map: Tensor | np.ndarray,
    *,
    alpha: float = ALPHA,
    cmap: str = COLOURS,
    model: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    box: Box | None = None,
) -> Image.Image:
    """Tint an image by a map: the stronger the evidence, the more opaque; where there is none, the image stays.

    The map is rectified and divided by its peak, and enlarged to the image (bilinear). A map without positive values
    leaves the image as it is.

    Args:
        image: a PIL image; an array ``(H, W)`` or ``(H, W, 3)``, uint8 or in [0, 1]; or a tensor ``(C, H, W)`` or
            ``(1, C, H, W)``, uint8, in [0, 1], or as a model takes it.
        map: ``(h, w)``, ``(1, h, w)`` or ``(1, 1, h, w)``, e.g. of `advcam_attr.AdvCAM.attribute`.
        alpha: opacity at the peak.
        cmap: name of a colormap of Matplotlib.
        model: whose normalization a tensor has: a timm model with its data configuration, or any with ``mean`` and
            ``std``.
        mean, std: the normalization of a tensor, in place of the model's.
        box: the part of the image that the map shows, e.g. the crop that the model saw; None for the whole.

    Returns:
        RGB, of the image's own size.

    Raises:
        AdvCAMError: a map that is empty, not finite, constant but not zero, or of other proportions than the image; a
            tensor without its normalization; unknown colours.

    Example:
        >>> heat = np.zeros((4, 4))
        >>> heat[1, 1] = 1
        >>> picture = overlay(Image.new("RGB", (80, 80), "grey"), heat)
        >>> picture.size, picture.getpixel((79, 79))
        ((80, 80), (128, 128, 128))
    """
    photograph = image_array(image, model, mean, std)
    share = _on_image(_plane(map), photograph.shape[:2], box)
    return _drawing(_tinted(photograph, share, alpha, cmap))


def show(
    image: Image.Image | np.ndarray | Tensor,
    map: Tensor | np.ndarray,
    *,
    title: str = "",
    class_name: str = "",
    alpha: float = ALPHA,
    cmap: str = COLOURS,
    **options: Any,
) -> Image.Image:
    """Draw an overlay with a title and a colour bar, for notebooks, which display what the last line of a cell returns.

    Args:
        image, map: as of `overlay`.
        title: above the image, e.g. the method.
        class_name: after the title; of synonyms separated by commas, the first.
        alpha, cmap: as of `overlay`.
        **options: the others of `overlay`.

    Returns:
        RGB; ``.save(path)`` writes it.
    """
    picture = overlay(image, map, alpha=alpha, cmap=cmap, **options)
    aspect = picture.height / picture.width
    width = 5.0 if aspect <= 1 else max(2.0, 5.0 / aspect)
    drawing, ((axes,),) = figure(width=width + 0.9, height=width * aspect + 0.5)
    words = ": ".join(part for part in (title, short_name(class_name)) if part)
    show_image(axes, np.asarray(picture), "\n".join(textwrap.wrap(words, round(13 * width))))
    share = np.linspace(0, 1, 256, dtype=np.float32)
    colours = ListedColormap(_tinted(np.ones((1, 256, 3)), share[None], alpha, cmap)[0])
    bar = drawing.colorbar(ScalarMappable(cmap=colours), ax=axes, fraction=0.05, pad=0.03)
    bar.set_label("evidence, share of the peak (on white)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    drawing.set_dpi(120)
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def short_name(name: str) -> str:
    """Return the first of a class's synonyms.

    Example:
        >>> short_name("tabby, tabby cat")
        'tabby'
    """
    return name.split(",")[0].strip()


def image_array(
    image: Image.Image | np.ndarray | Tensor,
    model: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageArray:
    """Return an image as an array ``(H, W, 3)`` in [0, 1]; arguments as of `overlay`."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu().float().numpy() / (1 if image.is_floating_point() else 255)
        pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
        if pixels.ndim != 3 or len(pixels) not in (1, 3):
            raise AdvCAMError(f"an image tensor is (C, H, W) or (1, C, H, W), got {tuple(image.shape)}; give one image")
        pixels = _denormalized(pixels, *_normalization(model, mean, std)).transpose(1, 2, 0)
    else:
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        pixels = array / 255 if array.dtype == np.uint8 else array.astype(np.float64)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise AdvCAMError(f"an image array is (H, W) or (H, W, 3), got {array.shape}; a tensor is (C, H, W)")
    if pixels.size == 0 or not np.isfinite(pixels).all():
        raise AdvCAMError(f"an image of {pixels.shape[1]}x{pixels.shape[0]} pixels must hold finite values")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise AdvCAMError(
            f"the image has values from {low:.2f} to {high:.2f}: give model=, or mean= and std=, for a normalized "
            "tensor; other images are uint8, or in 0..1"
        )
    return np.broadcast_to(pixels.clip(0, 1), (*pixels.shape[:2], 3))


def _normalization(
    model: nn.Module | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """The given mean and std, or those of a model's data configuration."""
    if model is not None and (mean is None or std is None):
        own = getattr(model, "pretrained_cfg", None) or {n: getattr(model, n, None) for n in ("mean", "std")}
        mean, std = (given or own.get(name) for name, given in (("mean", mean), ("std", std)))
        if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
            raise AdvCAMError(f"{type(model).__name__} has no data configuration: give mean= and std=")
    if (mean is None) != (std is None):
        raise AdvCAMError("give mean= and std= both")
    return mean, std


def _denormalized(pixels: np.ndarray, mean: Sequence[float] | None, std: Sequence[float] | None) -> np.ndarray:
    if mean is None or std is None:
        return pixels
    if len(mean) not in (1, len(pixels)) or len(std) not in (1, len(pixels)):
        raise AdvCAMError(f"mean and std must have 1 or {len(pixels)} numbers, got {len(mean)} and {len(std)}")
    # rounding, and steps of a climb, may leave the range of colours a little
    return (pixels * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))).clip(0, 1)


def _plane(map: Tensor | np.ndarray) -> np.ndarray:
    """The map ``(h, w)`` float32, rectified and divided by its peak."""
    found = np.asarray(map.detach().cpu().float().numpy() if isinstance(map, Tensor) else map, np.float32)
    if found.ndim < 2 or found.size == 0 or found.size != found.shape[-1] * found.shape[-2]:
        raise AdvCAMError(
            f"a map is (H, W), (1, H, W) or (1, 1, H, W) and not empty, got {tuple(found.shape)}; give one of several"
        )
    if not np.isfinite(found).all():
        raise AdvCAMError("the map is not finite (NaN or infinite): look at what made it")
    positive = found.reshape(found.shape[-2:]).clip(min=0)
    peak = float(positive.max())
    if peak > 0 and peak == float(found.min()):
        raise AdvCAMError(f"the map is constant ({peak:g}): it points nowhere; is it of another layer or class?")
    return positive / max(peak, np.finfo(np.float32).tiny)


def _on_image(share: np.ndarray, size: tuple[int, int], box: Box | None) -> np.ndarray:
    """Enlarge a map ``(h, w)`` to its box of an image, zero outside: ``(H, W)``."""
    (height, width), (h, w) = size, share.shape
    left, top, right, bottom = (0, 0, width, height) if box is None else box
    if not (right > left and bottom > top):
        raise AdvCAMError(f"a box is left, top, right, bottom with an extent, got {box}")
    cell_width, cell_height = (right - left) / w, (bottom - top) / h
    if box is None and max(cell_width / cell_height, cell_height / cell_width) > 1.02 + 1 / min(h, w):
        raise AdvCAMError(
            f"a map of {w}x{h} does not fit an image of {width}x{height} pixels: give the image that the model saw, or "
            "box= with the part that it saw"
        )
    at = (1 / cell_width, 0, -left / cell_width, 0, 1 / cell_height, -top / cell_height)
    return np.asarray(
        Image.fromarray(share).transform((width, height), Image.Transform.AFFINE, at, Image.Resampling.BILINEAR)
    )


def _tinted(image: ImageArray, share: np.ndarray, alpha: float, colours: str) -> ImageArray:
    if not 0 <= alpha <= 1:
        raise AdvCAMError(f"alpha is an opacity from 0 to 1, got {alpha}")
    if colours not in matplotlib.colormaps:
        raise AdvCAMError(f"unknown colormap {colours!r}{nearest(colours, matplotlib.colormaps)}")
    opacity = alpha * share[..., None]
    over: ImageArray = (1 - opacity) * image + opacity * matplotlib.colormaps[colours](share)[..., :3]
    return over


def heat_over(image: ImageArray, heat: np.ndarray, colours: str = COLOURS) -> ImageArray:
    """Tint an image by a map ``(H, W)`` of its size, as `overlay` does."""
    heat = np.clip(heat, 0, None)
    return _tinted(image, heat / max(float(heat.max()), np.finfo(np.float32).tiny), ALPHA, colours)


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
        titles: one a column, which is at least as wide.
        captions: one a row, or none; wrapped to the width of the row.
        cell: the height to which every image is resized, in pixels.

    Returns:
        The drawing, mode ``RGB``.
    """
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    line = 20
    drawn = [[_resized(image, cell) for image in row] for row in rows]
    columns = range(len(titles))
    widths = [max(round(font.getlength(titles[c]) + 0.5), *(row[c].width for row in drawn)) for c in columns]
    width = sum(widths) + _MARGIN * (len(widths) + 1)
    below = [_wrapped(caption, font, width - 2 * _MARGIN) for caption in captions] or [[]] * len(drawn)
    height = line + _MARGIN + sum(cell + line * len(lines) + _MARGIN for lines in below)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [_MARGIN + sum(widths[:c]) + _MARGIN * c for c in columns]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, 4), title, fill=_INK, font=font)
    top = line + _MARGIN
    for row, lines in zip(drawn, below, strict=True):
        for left, image in zip(lefts, row, strict=True):
            sheet.paste(image, (left, top))
        for number, text in enumerate(lines):
            draw.text((_MARGIN, top + cell + 2 + line * number), text, fill=_INK, font=font)
        top += cell + line * len(lines) + _MARGIN
    return sheet


def _drawing(image: ImageArray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _resized(image: ImageArray, height: int) -> Image.Image:
    drawn = _drawing(image)
    width = max(1, round(drawn.width * height / drawn.height))
    return drawn.resize((width, height), Image.Resampling.BICUBIC)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """The lines of a text that fit into a width in pixels; a longer word has a line of its own, broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return lines
