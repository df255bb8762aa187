"""Matplotlib figures on the Agg canvas, without pyplot's global state."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Colours that stay distinct with any colour vision and in grey (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#666666"
CYCLE = (BLUE, RED, GREEN, ORANGE, "#cc79a7", "#56b4e9", GREY)


def figure(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """Return an empty figure and its axes, ``(rows, columns)``, each of this width and height in inches."""
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def style_axes(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """Set titles and labels, a light grid, and no spines at the top and right."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def show_image(axes: Any, image: np.ndarray, title: str = "", **options: Any) -> None:
    """Show an image without ticks and spines."""
    axes.imshow(image, **options)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
