"""Paths and folders in, image files out; an image file in, an upright RGB picture out.

Whatever a photograph comes as (rotated by EXIF, CMYK, 16-bit, grey, palette, with transparency), the nets
see 8-bit RGB. What cannot be read is refused in one line that names the file.
"""

from __future__ import annotations

import difflib
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: File name endings that count as images when a folder is searched.
EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_WHITE = (255, 255, 255, 255)


def expand_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files and folders to the image files they stand for, in order, each file once.

    Folders are searched recursively and in sorted order for files that end like an image (`EXTENSIONS`);
    names that start with a dot are skipped. A file that is named itself is taken whatever it ends with.

    Args:
        paths: files and folders.

    Returns:
        The files. Of two names for one file, the first is kept.

    Raises:
        AdvCAMError: a path does not exist, or a folder holds no image.

    Example:
        >>> expand_images(["cat.jpg", "photographs/"])  # doctest: +SKIP
        [PosixPath('cat.jpg'), PosixPath('photographs/birds/1.png'), PosixPath('photographs/dog.jpg')]
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
    """Whether a file's name ends like an image's."""
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
    """Read an image file as an upright 8-bit RGB picture.

    The EXIF orientation is applied; 16-bit greys are scaled to 8 bits; transparency is composited on white;
    greyscale, palette, CMYK and YCbCr are converted. Of an animation, the first frame is taken. A 32-bit integer
    grey is read as 8-bit where it stays within 0..255, else as 16-bit; a float grey as 0..1, else as 0..255.

    Args:
        path: an image file of any format that Pillow reads.

    Returns:
        A PIL image of mode ``RGB``.

    Raises:
        AdvCAMError: the file is missing, truncated, not an image, or of a kind that has no RGB reading.

    Example:
        >>> read_rgb("photograph.jpg").mode  # doctest: +SKIP
        'RGB'
    """
    path = Path(path)
    return _decoded(_existing(path), path, ImageOps.exif_transpose)


def read_stored_rgb(path: str | Path) -> Image.Image:
    """Read an image file as `read_rgb` does, but as it is stored: the EXIF orientation is not applied.

    Boxes and sizes of data sets are given in the stored pixels; some photographs of ImageNet have an orientation.

    Raises:
        AdvCAMError: as `read_rgb`.
    """
    path = Path(path)
    return _decoded(_existing(path), path, _as_it_is)


def decode_stored_rgb(content: bytes, name: object) -> Image.Image:
    """The picture of an image file's content, as `read_stored_rgb` reads it.

    Args:
        content: of a file of any format that Pillow reads.
        name: what to call it in errors.

    Raises:
        AdvCAMError: as `read_rgb`.
    """
    return _decoded(io.BytesIO(content), name, _as_it_is)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise AdvCAMError(f"no such image file: {path}{_nearest(path)}")
    return path


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _decoded(file: Path | io.BytesIO, path: object, turn: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _to_rgb(turn(image))
    except UnidentifiedImageError as error:
        raise AdvCAMError(f"not an image that can be read: {path}; convert it to JPEG or PNG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise AdvCAMError(f"image has more than {Image.MAX_IMAGE_PIXELS} pixels: {path}; make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise AdvCAMError(f"cannot read image {path} ({_one_line(error)}): is it truncated or damaged?") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Greys ``(H, W)`` of 16 or 32 bits to uint8."""
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype.kind == "f":
        full = 1.0 if high <= 1 else 255.0
    else:
        full = 65535.0 if grey.dtype.itemsize == 2 or high > 255 else 255.0
    if not (low >= 0 and high <= full):
        raise ValueError(f"grey values from {low:g} to {high:g} where 0 to {full:g} was expected")
    return np.round(grey.astype(np.float64) * (255 / full)).astype(np.uint8)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


#: Of RGB values in 0..1, over ImageNet.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize_to(image: Image.Image, scale: float) -> Image.Image:
    """A picture scaled (bicubic), its sides rounded as IRN does: halves to the even number.

    Args:
        image: 8-bit, of ``W x H`` pixels.
        scale: above 0.

    Raises:
        AdvCAMError: nothing would be left of it.

    Example:
        >>> resize_to(Image.new("RGB", (333, 375)), 0.5).size
        (166, 188)
    """
    width, height = (int(side) for side in np.round(np.array(image.size) * scale))
    if min(width, height) < 1:
        raise AdvCAMError(f"an image of {image.size[0]}x{image.size[1]} pixels cannot be scaled by {scale:g}")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB picture as it is, ``(3, H, W)`` uint8.

    Example:
        >>> to_bytes(Image.new("RGB", (2, 1), "red")).tolist()
        [[[255, 255]], [[0, 0]], [[0, 0]]]
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised(pictures: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """8-bit pictures ``(..., 3, H, W)`` to what a net takes: ``(value / 255 - mean) / std``, float32.

    Args:
        pictures: uint8, on any device.
        mean, std: of each channel, or one for all.

    Example:
        >>> normalised(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3).flatten()
        tensor([2., 2., 2.])
    """
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=pictures.device)[:, None, None] for v in (mean, std))
    return (pictures.float() / 255 - shift) / scale


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
