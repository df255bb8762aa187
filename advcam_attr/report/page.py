"""An HTML page of tables, figures and galleries that embeds all its content."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from advcam_attr.data.masks import palette
from advcam_attr.tables.table import Table

T = TypeVar("T")

#: Long side of the gallery's thumbnails and heat maps, in pixels: 500 images of ten steps are 15 MB.
THUMBNAIL, HEAT = 200, 48


@dataclass(frozen=True)
class Figure:
    """A plot: caption (also read by screen readers), data URI, and description."""

    title: str
    source: str
    text: str = ""


@dataclass(frozen=True)
class Frame:
    """A map or label map of an entry, with its caption, e.g. ``"AdvCAM, t = 3"``.

    ``source`` is the data URI of a grey map, or of a label map in colours with a transparent background.
    """

    label: str
    source: str


@dataclass(frozen=True)
class Outline:
    """Boxes of one origin (``label``, e.g. ``"CAM"``), drawn over an entry's image.

    ``colour`` is a CSS colour; ``boxes`` are x, y, width and height in pixels of the thumbnail.
    """

    label: str
    colour: str
    boxes: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Entry:
    """An image of the gallery.

    Attributes:
        classes: Names of the mapped classes.
        source, size: Data URI, and width and height of the thumbnail.
        steps: Maps of the slider.
        labels: Label maps: seed, pseudo mask, truth.
        gain: Sort key; None if unknown.
        outlines: Boxes, the last on top.
    """

    name: str
    classes: tuple[str, ...]
    source: str
    size: tuple[int, int]
    steps: tuple[Frame, ...]
    labels: tuple[Frame, ...] = ()
    score: str = ""
    gain: float | None = None
    outlines: tuple[Outline, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page below a heading; ``gain`` names the entries' gain, e.g. ``"gain in IoU over CAM"``."""

    title: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    gallery: tuple[Entry, ...] = ()
    gain: str = "gain"


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page. All names are escaped, and a content security policy forbids requests."""
    environment = Environment(
        loader=PackageLoader("advcam_attr.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    parts: list[dict[str, Any]] = [
        {**vars(section), "id": f"s{number}", "entries": [asdict(entry) for entry in section.gallery]}
        for number, section in enumerate(sections)
    ]
    return environment.get_template("page.html.j2").render(
        title=title, subtitle=subtitle, sections=parts, heat=_heat_tables()
    )


def thumbnail(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Return the data URI of a small JPEG, with its width and height."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return _uri(small, "JPEG", quality=72), small.size


def heat_uri(heat: np.ndarray) -> str:
    """Return the data URI of a map ``(h, w)`` as a grey PNG, white at its peak and black where it is not positive."""
    positive = np.clip(np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0), 0, None)
    scaled = positive / max(float(positive.max()), np.finfo(np.float32).tiny)
    image = Image.fromarray(np.round(255 * scaled).astype(np.uint8))
    if max(image.size) > HEAT:
        image.thumbnail((HEAT, HEAT), Image.Resampling.BILINEAR)
    return _uri(image, "PNG", optimize=True)


def labels_uri(labels: np.ndarray) -> str:
    """Return the data URI of a label map ``(H, W)`` uint8 as a PNG in PASCAL VOC's colours, background transparent."""
    image = Image.fromarray(labels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    small = np.asarray(image)
    used = np.unique(small)
    colours = palette()[used]
    indexed = Image.fromarray(np.searchsorted(used, small).astype(np.uint8))
    indexed.putpalette(colours.ravel().tolist())
    clear = {"transparency": 0} if len(used) and used[0] == 0 else {}
    return _uri(indexed, "PNG", optimize=True, **clear)


def file_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return file_uri(buffer.getvalue(), f"image/{kind.lower()}")


def _heat_tables() -> dict[str, str]:
    """Red, green and blue of the colour map ``turbo`` as tables of an SVG filter."""
    import matplotlib

    colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, 33))
    return {name: " ".join(f"{v:.3f}" for v in colours[:, k]) for k, name in enumerate("RGB")}


def extremes(items: Sequence[T], gain: Callable[[T], float], limit: int) -> list[T]:
    """Return at most ``limit`` items, half of them those of the largest losses and half of the largest gains."""
    if len(items) <= limit:
        return list(items)
    ordered = sorted(items, key=gain)
    return ordered[: (limit + 1) // 2] + ordered[len(ordered) - limit // 2 :]


def parse_tables(text: str) -> tuple[tuple[Table, ...], tuple[str, ...]]:
    """Return the tables of a Markdown text written by `Table.markdown`, and the lines between them."""
    tables: list[Table] = []
    lines: list[str] = []
    rows: list[tuple[str, ...]] = []
    title = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]))
            continue
        if len(rows) > 1:
            words = sum(not mark.endswith(":") for mark in rows[1])
            tables.append(Table(title, rows[0], tuple(rows[2:]), words=words))
            title = ""
        rows = []
        if bold := re.fullmatch(r"\*\*(.+)\*\*", line.strip()):
            title = bold[1]
        elif line.strip():
            lines.append(line.strip())
    return tuple(tables), tuple(dict.fromkeys(lines))
