"""Image files in; their heights and widths, read from the headers alone, out."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from advcam_attr.types import AdvCAMError

#: EXIF orientations that lay a picture on its side.
_LYING = (5, 6, 7, 8)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the picture that `advcam_attr.data.images.read_rgb` makes of a file.

    The pixels are not read: a file whose end is missing still has a size.

    Args:
        path: an image file.

    Raises:
        AdvCAMError: the file is missing, or not an image.

    Example:
        >>> image_size("photograph.jpg")  # doctest: +SKIP
        (375, 500)
    """
    (height, width), lying = _header(path)
    return (width, height) if lying else (height, width)


def size_if_readable(path: str | Path) -> tuple[int, int] | None:
    """As `image_size`; None where there is no photograph that can be read, which whoever needs its pixels will tell."""
    try:
        return image_size(path)
    except AdvCAMError:
        return None


def stored_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the picture that `advcam_attr.data.images.read_stored_rgb` makes of a file.

    Raises:
        AdvCAMError: the file is missing, or not an image.
    """
    return _header(path)[0]


def _header(path: str | Path) -> tuple[tuple[int, int], bool]:
    """Height and width as they are stored, and whether the EXIF orientation lays the picture on its side."""
    try:
        with Image.open(path) as image:
            lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
            return (image.height, image.width), lying
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such image file: {path}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise AdvCAMError(f"not an image that can be read: {path}; convert it to JPEG or PNG") from error
