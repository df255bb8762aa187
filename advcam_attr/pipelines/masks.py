"""A label map in; a palette PNG in the layout of PASCAL VOC out, which says what settings it was made with."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from advcam_attr.data.masks import palette
from advcam_attr.files import write_bytes
from advcam_attr.types import AdvCAMError

#: The key of the PNG's text that names the settings.
_KEY = "advcam_settings"


def mask_path(folder: Path, id: str) -> Path:
    """Where the mask of an image is, or would be.

    Raises:
        AdvCAMError: an id that cannot name a file.
    """
    if not id or id.startswith(".") or any(c in id for c in "/\\\0"):
        raise AdvCAMError(f"image id {id!r} cannot name a file: use one without slashes that starts with no dot")
    return folder / f"{id}.png"


def write_mask(path: Path, labels: Tensor, settings: str = "") -> None:
    """Write a label map as an 8-bit palette PNG, whole or not at all; equal maps make equal bytes.

    Args:
        path: the file; folders are made as needed.
        labels: ``(H, W)`` uint8: 0 the background, k + 1 class k, 255 void.
        settings: a digest of what the map depends on, kept in the file's text.

    Raises:
        AdvCAMError: the file cannot be written.
    """
    image = Image.fromarray(labels.cpu().numpy())
    image.putpalette(palette().ravel().tolist())
    write_png(path, image, settings)


def write_png(path: Path, image: Image.Image, settings: str = "") -> None:
    """Write a picture as PNG, whole or not at all, with a digest of what it depends on."""
    about = PngImagePlugin.PngInfo()
    about.add_text(_KEY, settings)
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=about)
    write_bytes(path, content.getvalue())


def png_settings(path: Path) -> str | None:
    """The digest that `write_png` kept in a file, read from its header; None where there is no such file."""
    try:
        with Image.open(path) as image:
            found = image.info.get(_KEY)
    except (OSError, SyntaxError, ValueError):
        return None
    return found if isinstance(found, str) else None
