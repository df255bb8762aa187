"""Image files: finding them, reading them as 8-bit RGB, their sizes, and conversion to tensors."""

from __future__ import annotations

import contextlib
import difflib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from advcam_attr.types import AdvCAMError, check_resized

#: File name endings that count as images when a folder is searched.
EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Pillow's decoders of these files. Others stay off: that of EPS, for one, starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

#: Mean and standard deviation of RGB values in 0..1 over ImageNet.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@contextlib.contextmanager
def open_image(
    file: str | Path | io.BytesIO, *, name: object = None, noun: str = "image", formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """Open an image for the block that decodes it; any error of a decoder becomes one `AdvCAMError`.

    So do missing files, other formats and decompression bombs (more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels).
    ``name`` names a content in errors, ``noun`` describes it.
    """
    name = file if name is None else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats) as image:
                yield image
    except AdvCAMError:
        raise
    except FileNotFoundError as error:
        near = _nearest(Path(str(file)))
        raise AdvCAMError(f"no such {'image file' if noun == 'image' else noun}: {name}{near}") from error
    except UnidentifiedImageError as error:
        article = "an" if noun[0] in "aeiou" else "a"
        raise AdvCAMError(f"not {article} {noun} that can be read: {name}; convert it to JPEG or PNG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise AdvCAMError(f"{noun} {name} has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller") from error
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AdvCAMError(f"cannot read {noun} {name} ({reason}): is it truncated or damaged?") from error


def expand_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that files and folders stand for, in order and unique.

    Folders are searched recursively, in sorted order, for files with an ending in `EXTENSIONS`; hidden files and
    folders are skipped. A file that is given itself may have any ending.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = _images_below(path) if path.is_dir() else [path]
        if not path.exists():
            raise AdvCAMError(f"no such image file or folder: {path}{_nearest(path)}")
        if not found:
            raise AdvCAMError(f"no images in folder {path}: looked for files ending in {' '.join(EXTENSIONS)}")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if is_image(file)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _nearest(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    return f" (is it {' or '.join(near)}?)" if near else ""


def read_rgb(path: str | Path) -> Image.Image:
    """Read an image file as an upright 8-bit RGB image.

    The EXIF orientation is applied; transparency is composited on white; of an animation, the first frame is taken.
    16-bit greys are scaled to 8 bits; a 32-bit integer grey is taken as 8-bit where it stays within 0..255, else as
    16-bit; a float grey as 0..1, else as 0..255.
    """
    with open_image(path) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def read_stored_rgb(path: str | Path) -> Image.Image:
    """Read an image file as `read_rgb` does, without applying the EXIF orientation.

    Boxes and sizes of data sets refer to the stored pixels; some images of ImageNet have an orientation.
    """
    with open_image(path) as image:
        image.load()
        return _to_rgb(image)


def decode_stored_rgb(content: bytes, name: object) -> Image.Image:
    """Decode the content of an image file as `read_stored_rgb` does; ``name`` names it in errors."""
    with open_image(io.BytesIO(content), name=name) as image:
        image.load()
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype.kind == "f":
        full = 1.0 if high <= 1 else 255.0
    else:
        full = 65535.0 if grey.dtype.itemsize == 2 or high > 255 else 255.0
    if not (low >= 0 and high <= full):
        raise ValueError(f"grey values from {low:g} to {high:g} where 0 to {full:g} was expected")
    return np.round(grey.astype(np.float64) * (255 / full)).astype(np.uint8)


#: EXIF orientations that swap width and height.
_LYING = (5, 6, 7, 8)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of the image that `read_rgb` would return, from the file's header."""
    with open_image(path) as image:
        lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
        return (image.width, image.height) if lying else (image.height, image.width)


def size_if_readable(path: str | Path) -> tuple[int, int] | None:
    """Return `image_size`, or None where the image cannot be read."""
    try:
        return image_size(path)
    except AdvCAMError:
        return None


def stored_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of the image that `read_stored_rgb` would return, from the file's header."""
    with open_image(path) as image:
        return image.height, image.width


def resize_to(image: Image.Image, scale: float) -> Image.Image:
    """Resize an image (bicubic) by a factor; as in IRN, sides are rounded to the nearest integer, halves to even."""
    check_resized(image.height * scale, image.width * scale, f"lower the scale {scale:g}")
    width, height = (int(side) for side in np.round(np.array(image.size) * scale))
    if min(width, height) < 1:
        raise AdvCAMError(f"an image of {image.size[0]}x{image.size[1]} pixels cannot be scaled by {scale:g}")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_bytes(image: Image.Image) -> Tensor:
    """Convert an RGB image to ``(3, H, W)`` uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalise 8-bit images ``(..., 3, H, W)`` to ``(value / 255 - mean) / std``, float32, by channel."""
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=images.device)[:, None, None] for v in (mean, std))
    return (images.float() / 255 - shift) / scale
