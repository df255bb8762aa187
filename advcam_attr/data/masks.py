"""Label maps, saliency maps and binary object masks as image files.

A label map is ``(H, W)`` uint8: 0 is the background, k + 1 is class k, 255 is void.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F

from advcam_attr.data.images import open_image, read_rgb, size_if_readable
from advcam_attr.data.labels import few
from advcam_attr.data.mat import read_field
from advcam_attr.files import files_digest, write_bytes
from advcam_attr.reading import read_bytes
from advcam_attr.types import VOID, AdvCAMError, NoMaskError, Sample

#: Formats whose compression has a loss, or may have.
_LOSSY = {"JPEG", "MPO", "WEBP"}


def palette() -> np.ndarray:
    """Return the colours of PASCAL VOC's label maps, ``(256, 3)`` uint8.

    Bit j of a label is bit 7 - j // 3 of the colour's channel j % 3 (the development kit's rule).

    Example:
        >>> palette()[[0, 1, 2, 20, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 64, 128], [224, 224, 192]]
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((labels >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


def read_labels(path: str | Path, num_classes: int) -> Tensor:
    """Read a label map, ``(H, W)`` uint8, without checking its labels.

    Palette and grey images hold the labels. RGB images, and palettes reordered by an optimiser, are decoded by the
    colours of `palette`.

    Args:
        path: an image, or a ``.mat`` file of the Semantic Boundaries Dataset.
        num_classes: K, without the background; the colours of 0..K and 255 are decoded.
    """
    path = Path(path)
    return torch.from_numpy(_read_sbd(path) if path.suffix == ".mat" else _read_image(path, num_classes))


def read_mask(path: str | Path, num_classes: int, size: tuple[int, int] | None = None) -> Tensor:
    """Read a true label map, ``(H, W)`` uint8 in 0..K or 255, and check its labels and, if given, its size."""
    labels = read_labels(path, num_classes)
    if size is not None and tuple(labels.shape) != tuple(size):
        raise AdvCAMError(
            f"mask {path} has {labels.shape[1]}x{labels.shape[0]} pixels and its image {size[1]}x{size[0]}; they must "
            "be of one size"
        )
    counts = np.bincount(labels.numpy().ravel(), minlength=256)
    if counts[num_classes + 1 : VOID].any():
        beyond = [int(k) for k in np.flatnonzero(counts) if num_classes < k < VOID]
        raise AdvCAMError(
            f"mask {path} holds the label{'s' * (len(beyond) > 1)} {', '.join(map(str, beyond[:5]))}, but there are "
            f"{num_classes} classes; labels are 0 to {num_classes}, and 255 for void"
        )
    return labels


@dataclass(frozen=True)
class MaskFiles:
    """Reads the true label map of a sample from the first folder that has it.

    Folders are of PNGs, or of SBD's ``.mat`` files, named by the samples' ids.
    """

    folders: tuple[Path, ...]
    num_classes: int

    def find(self, id: str) -> Path | None:
        files = (folder / f"{id}{ending}" for folder in self.folders for ending in (".png", ".mat"))
        return next((file for file in files if file.is_file()), None)

    def __call__(self, sample: Sample) -> Tensor:
        """Read the label map ``(H, W)`` uint8; raises `NoMaskError` where there is none."""
        path = self.find(sample.id)
        if path is None:
            raise NoMaskError(f"no mask of {sample.id}: it is not in {few(self.folders)}")
        return read_mask(path, self.num_classes, size_if_readable(sample.image))


@contextlib.contextmanager
def _open_mask(path: Path) -> Iterator[Image.Image]:
    with open_image(path, noun="mask") as image:
        if image.format in _LOSSY:
            raise AdvCAMError(f"mask {path} is a {image.format}, whose compression changes labels; save it as PNG")
        yield image


def _read_image(path: Path, num_classes: int) -> np.ndarray:
    with _open_mask(path) as image:
        image.load()
        mode, pixels, colours = image.mode, np.array(image), image.getpalette()
        rgb = np.asarray(image.convert("RGB")) if mode in ("RGB", "RGBA") else None
    if rgb is not None:
        return _labels_of_colours(path, rgb, num_classes)
    if mode == "P" and colours is not None:
        return _labels_of_palette(pixels, np.reshape(colours, (-1, 3)), num_classes)
    if pixels.ndim != 2 or pixels.dtype.kind not in "bui" or pixels.min() < 0 or pixels.max() > VOID:
        raise AdvCAMError(f"mask {path} is an image of mode {mode}; masks are palette or grey PNGs of 8 bits")
    return pixels.astype(np.uint8)


def _labels_of_palette(pixels: np.ndarray, colours: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the indices; or where the palette has the colours of other classes, the labels of these colours."""
    used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=1))
    if used[-1] >= len(colours) or (len(colours) > 1 and (colours == colours[0]).all()):
        return pixels
    known = _labels_by_colour(num_classes)
    labels = [known.get(tuple(colour)) for colour in colours[used].tolist()]
    if len(set(labels) - {None}) < len(labels):
        return pixels
    table = np.zeros(256, np.uint8)
    table[used] = np.array(labels, np.uint8)
    return table[pixels]


def _labels_of_colours(path: Path, rgb: np.ndarray, num_classes: int) -> np.ndarray:
    packed = rgb[..., 0].astype(np.int32) << 16
    packed |= rgb[..., 1].astype(np.int32) << 8
    packed |= rgb[..., 2]
    label_of = np.full(1 << 24, -1, np.int16)
    for (red, green, blue), label in _labels_by_colour(num_classes).items():
        label_of[red << 16 | green << 8 | blue] = label
    labels = label_of[packed]
    if (strange := packed[labels < 0]).size:
        c = int(strange.min())
        raise AdvCAMError(
            f"mask {path} holds the colour {(c >> 16, c >> 8 & 255, c & 255)}, which is none of the "
            f"{num_classes} classes'; save label maps as palette or grey PNGs"
        )
    return labels.astype(np.uint8)


def _labels_by_colour(num_classes: int) -> dict[tuple[int, ...], int]:
    colours = palette().tolist()
    return {tuple(colours[k]): k for k in (*range(num_classes + 1), VOID)}


#: Largest file of the Semantic Boundaries Dataset that is read, in bytes.
_MAX_SBD = 1 << 24


def _read_sbd(path: Path) -> np.ndarray:
    if not path.is_file():
        raise AdvCAMError(f"no such mask: {path}")
    try:
        labels = read_field(read_bytes(path, _MAX_SBD), "GTcls", "Segmentation")
        if labels.ndim != 2 or not ((labels >= 0) & (labels <= VOID)).all():
            raise ValueError("no labels")
    except AdvCAMError:
        raise
    except (OSError, ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise AdvCAMError(f"cannot read mask {path}: not a GTcls file of the Semantic Boundaries Dataset") from error
    return np.array(labels, np.uint8)


#: Largest difference of the channels of a grey image; JPEG changes them a little.
_GREY = 24

#: Largest relative difference of a map's aspect ratio from its image's, besides a pixel of rounding.
_ASPECT = 0.02


@dataclass(frozen=True)
class SaliencyFolder:
    """Reads saliency maps: 8-bit grey images named by the samples' ids (0 is background, 255 is salient).

    A map of another size is resized to the image (bilinear) if the aspect ratio is the same.
    """

    path: str | Path

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir():
            raise AdvCAMError(f"no such folder of saliency maps: {self.path}")

    def find(self, id: str) -> Path | None:
        files = (Path(self.path) / f"{id}{ending}" for ending in (".png", ".jpg", ".jpeg"))
        return next((file for file in files if file.is_file()), None)

    def digest(self, ids: Iterable[str]) -> str:
        """Return a digest of 16 hexadecimal digits of the maps of some images; images without one are skipped."""
        return files_digest(file for id in ids if (file := self.find(id)) is not None)

    def __call__(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """Read the saliency ``(H, W)`` float32 in 0..1 of a sample, whose image has height and width ``size``."""
        file = self.find(sample.id)
        if file is None:
            raise AdvCAMError(f"no saliency map of {sample.id} in {self.path}: looked for {sample.id}.png and .jpg")
        image = read_rgb(file)
        channels = np.asarray(image)
        if int((channels.max(-1) - channels.min(-1)).max()) > _GREY:
            raise AdvCAMError(f"{file} is a colour image; saliency maps are grey")
        height, width = size
        aspect = image.height * width / (image.width * height)
        if abs(aspect - 1) > _ASPECT + 1 / min(image.size):
            raise AdvCAMError(
                f"saliency map {file} has {image.width}x{image.height} pixels and its image {width}x{height}; the "
                "proportions must be the same"
            )
        saliency = torch.from_numpy(np.array(image.convert("L"))).float() / 255
        if saliency.shape == size:
            return saliency
        return F.interpolate(saliency[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class PixelMasks:
    """The binary masks of an image, as in OpenImages30k: grey images, bright on each object or on ignored pixels."""

    instances: tuple[Path, ...]
    ignored: Path | None


def read_pixel_truth(masks: PixelMasks, size: tuple[int, int] = (224, 224)) -> Tensor:
    """Read the true pixels of an image for PxAP (Choe et al.): ``(H, W)`` uint8, 1 true, 0 false, 255 ignored.

    Masks are resized to the nearest pixel above and left (OpenCV's ``INTER_NEAREST``) and thresholded at half a grey
    level. Ignored pixels that belong to an object are true.
    """
    if not masks.instances:
        raise AdvCAMError("an image without masks has no true pixels; leave it out of the list")
    true = torch.stack([_bright(file, size) for file in masks.instances]).any(0)
    truth = true.to(torch.uint8)
    if masks.ignored is not None:
        truth[_bright(masks.ignored, size) & ~true] = VOID
    return truth


def _bright(path: Path, size: tuple[int, int]) -> Tensor:
    with _open_mask(path) as image:
        grey = np.asarray(image.convert("L"))
    return F.interpolate(torch.from_numpy(grey.astype(np.float32))[None, None], size, mode="nearest")[0, 0] > 0.5


#: The key of the PNG's text that holds the digest of the settings.
_KEY = "advcam_settings"


def mask_path(folder: Path, id: str) -> Path:
    """Return the path of the mask of an image; an id that cannot name a file raises `AdvCAMError`."""
    if not id or id.startswith(".") or any(c in id for c in "/\\\0"):
        raise AdvCAMError(f"image id {id!r} cannot name a file: use one without slashes that starts with no dot")
    return folder / f"{id}.png"


def write_mask(path: Path, labels: Tensor, settings: str = "") -> None:
    """Write a label map ``(H, W)`` uint8 as an 8-bit palette PNG, atomically; equal maps make equal bytes.

    ``settings`` is a digest of what the map depends on, stored in the file's text.
    """
    image = Image.fromarray(labels.cpu().numpy())
    image.putpalette(palette().ravel().tolist())
    write_png(path, image, settings)


def write_png(path: Path, image: Image.Image, settings: str = "", text: Mapping[str, str] = {}) -> None:
    """Write an image as PNG, atomically, with a digest of what it depends on, and more text by key."""
    about = PngImagePlugin.PngInfo()
    for key, value in {_KEY: settings, **text}.items():
        about.add_text(key, value)
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=about)
    write_bytes(path, content.getvalue())


def png_settings(path: Path) -> str | None:
    """Return the digest that `write_png` stored, from the file's header; None where there is none."""
    try:
        with open_image(path) as image:
            found = image.info.get(_KEY)
    except AdvCAMError:
        return None
    return found if isinstance(found, str) else None
