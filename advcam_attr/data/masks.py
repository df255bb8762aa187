"""A mask's file, or a sample, in; a label map ``(H, W)`` out: 0 the background, k + 1 class k, 255 void."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from advcam_attr.data.images import read_rgb, size_if_readable
from advcam_attr.data.labels import few
from advcam_attr.files import files_digest, write_bytes
from advcam_attr.types import VOID, AdvCAMError, NoMaskError, Sample


def palette() -> np.ndarray:
    """The colours of PASCAL VOC's label maps, ``(256, 3)`` uint8.

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
    """Read a label map, whatever labels it holds.

    Palette and grey images hold the labels themselves. Where the labels were drawn out in the colours of `palette`
    (an RGB image, or a palette that was packed anew by a tool that saves space), the colours are read back.

    Args:
        path: a PNG, or a ``.mat`` file of the Semantic Boundaries Dataset (needs SciPy).
        num_classes: K, without the background; colours count as those of 0..K and 255.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        AdvCAMError: the file is missing or damaged, or holds colours that are no class's.

    Example:
        >>> read_labels("masks/2007_000032.png", 20).unique()  # doctest: +SKIP
        tensor([ 0,  1, 15], dtype=torch.uint8)
    """
    path = Path(path)
    if not path.is_file():
        raise AdvCAMError(f"no such mask: {path}")
    return torch.from_numpy(_read_sbd(path) if path.suffix == ".mat" else _read_image(path, num_classes))


def read_mask(path: str | Path, num_classes: int, size: tuple[int, int] | None = None) -> Tensor:
    """Read a true label map: as `read_labels`, and checked.

    Args:
        path, num_classes: as for `read_labels`.
        size: the photograph's height and width, where they are to be checked.

    Returns:
        ``(H, W)`` uint8, in 0..K or 255.

    Raises:
        AdvCAMError: as `read_labels`; the mask is of another size than the photograph, or holds labels above K.

    Example:
        >>> read_mask("SegmentationClass/2007_000032.png", 20).unique()  # doctest: +SKIP
        tensor([  0,   1,  15, 255], dtype=torch.uint8)
    """
    labels = read_labels(path, num_classes)
    if size is not None and tuple(labels.shape) != tuple(size):
        raise AdvCAMError(
            f"mask {path} is of {labels.shape[1]}x{labels.shape[0]} pixels and its photograph of "
            f"{size[1]}x{size[0]}; they must be of one size"
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
    """Reads the true label map of a sample: the first of its files that is there.

    Attributes:
        folders: of PNGs, or of SBD's ``.mat`` files, named as the samples.
        num_classes: K.
    """

    folders: tuple[Path, ...]
    num_classes: int

    def find(self, id: str) -> Path | None:
        """The file of an id's mask, if it has one."""
        files = (folder / f"{id}{ending}" for folder in self.folders for ending in (".png", ".mat"))
        return next((file for file in files if file.is_file()), None)

    def __call__(self, sample: Sample) -> Tensor:
        """The label map ``(H, W)`` uint8.

        Raises:
            NoMaskError: there is none.
            AdvCAMError: it cannot be read or does not fit the photograph.
        """
        path = self.find(sample.id)
        if path is None:
            raise NoMaskError(f"no mask of {sample.id}: it is not in {few(self.folders)}")
        return read_mask(path, self.num_classes, size_if_readable(sample.image))


def _read_image(path: Path, num_classes: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
            mode, pixels, colours = image.mode, np.array(image), image.getpalette()
            rgb = np.asarray(image.convert("RGB")) if mode in ("RGB", "RGBA") else None
    except UnidentifiedImageError as error:
        raise AdvCAMError(f"not a mask that can be read: {path}; masks are palette or grey PNGs") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise AdvCAMError(f"cannot read mask {path} ({error}): is it truncated or damaged?") from error
    if rgb is not None:
        return _labels_of_colours(path, rgb, num_classes)
    if mode == "P" and colours is not None:
        return _labels_of_palette(pixels, np.reshape(colours, (-1, 3)), num_classes)
    if pixels.ndim != 2 or pixels.dtype.kind not in "bui" or pixels.min() < 0 or pixels.max() > VOID:
        raise AdvCAMError(f"mask {path} is an image of mode {mode}; masks are palette or grey PNGs of 8 bits")
    return pixels.astype(np.uint8)


def _labels_of_palette(pixels: np.ndarray, colours: np.ndarray, num_classes: int) -> np.ndarray:
    """The indices, unless their colours are those of other classes: then what the colours say."""
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
    packed = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    colours, inverse = np.unique(packed, return_inverse=True)
    known = _labels_by_colour(num_classes)
    labels = [known.get((c >> 16, c >> 8 & 255, c & 255)) for c in colours.tolist()]
    if None in labels:
        strange = int(colours[labels.index(None)])
        raise AdvCAMError(
            f"mask {path} holds the colour {(strange >> 16, strange >> 8 & 255, strange & 255)}, which is none of the "
            f"{num_classes} classes'; save label maps as palette or grey PNGs"
        )
    return np.array(labels, np.uint8)[inverse].reshape(packed.shape)


def _labels_by_colour(num_classes: int) -> dict[tuple[int, ...], int]:
    colours = palette().tolist()
    return {tuple(colours[k]): k for k in (*range(num_classes + 1), VOID)}


def _read_sbd(path: Path) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise AdvCAMError(
            f"reading {path} needs SciPy: pip install scipy, or use SegmentationClassAug's PNGs"
        ) from error
    try:
        labels = loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
    except Exception as error:  # damaged files make the parser raise whatever it happens to meet
        raise AdvCAMError(f"cannot read mask {path}: not a GTcls file of the Semantic Boundaries Dataset") from error
    return np.array(labels, np.uint8)


#: The endings of maps, in the order in which they are looked for.
_ENDINGS = (".png", ".jpg", ".jpeg")

#: How far the channels of a grey picture may differ: JPEG changes them a little.
_GREY = 24

#: How far a map's proportions may be off its photograph's, besides a pixel of rounding.
_PROPORTION = 0.02


@dataclass(frozen=True)
class SaliencyFolder:
    """Reads saliency maps: 8-bit grey images (0 the background, 255 what stands out) that are named as the samples.

    A map of another size than the photograph is resized to it (bilinear); one of other proportions is refused.

    Attributes:
        path: the folder.

    Raises:
        AdvCAMError: there is no such folder.

    Example:
        >>> saliency = SaliencyFolder("saliency")  # doctest: +SKIP
        >>> background = saliency(sample, (375, 500)) < 0.5  # doctest: +SKIP
    """

    path: str | Path

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir():
            raise AdvCAMError(f"no such folder of saliency maps: {self.path}")

    def find(self, id: str) -> Path | None:
        """The file of an id's map, if it has one."""
        files = (Path(self.path) / f"{id}{ending}" for ending in _ENDINGS)
        return next((file for file in files if file.is_file()), None)

    def digest(self, ids: Iterable[str]) -> str:
        """What tells the maps of some images from others: 16 hexadecimal digits. Images without a map are passed over.

        Raises:
            AdvCAMError: a map cannot be read.
        """
        return files_digest(file for id in ids if (file := self.find(id)) is not None)

    def __call__(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """The saliency of a sample's pixels.

        Args:
            sample: whose.
            size: the photograph's height and width.

        Returns:
            ``(H, W)`` float32 in 0..1.

        Raises:
            AdvCAMError: there is no map, or it is damaged, coloured, or of other proportions than the photograph.
        """
        file = self.find(sample.id)
        if file is None:
            raise AdvCAMError(
                f"no saliency map of {sample.id} in {self.path}: looked for {sample.id}{' and '.join(_ENDINGS[:2])}"
            )
        picture = read_rgb(file)
        channels = np.asarray(picture).astype(int)
        if int(np.ptp(channels, axis=-1).max()) > _GREY:
            raise AdvCAMError(f"{file} is a colour picture; saliency maps are grey")
        height, width = size
        proportion = picture.height * width / (picture.width * height)
        if abs(proportion - 1) > _PROPORTION + 1 / min(picture.size):
            raise AdvCAMError(
                f"saliency map {file} is of {picture.width}x{picture.height} pixels, which are not the proportions of "
                f"its photograph of {width}x{height}"
            )
        saliency = torch.from_numpy(np.array(picture.convert("L"))).float() / 255
        if saliency.shape == size:
            return saliency
        return F.interpolate(saliency[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class PixelMasks:
    """The true pixels of an image, as OpenImages30k keeps them.

    Attributes:
        instances: one grey picture for each object; bright where the object is.
        ignored: a grey picture, bright where nothing is known; or None.
    """

    instances: tuple[Path, ...]
    ignored: Path | None


def read_pixel_truth(masks: PixelMasks, size: tuple[int, int] = (224, 224)) -> Tensor:
    """Which pixels of an image are its objects', as the pixel-wise average precision (PxAP) of Choe et al. counts them.

    Each mask is resized by taking the nearest pixel above and left (OpenCV's ``INTER_NEAREST``); above half a grey
    level is bright. Pixels of several objects are true; what is ignored is so only where no object is.

    Args:
        masks: the files.
        size: height and width to resize to.

    Returns:
        ``(H, W)`` uint8: 1 true, 0 false, 255 not counted.

    Raises:
        AdvCAMError: a file is missing or not an image, or there is no mask.
    """
    if not masks.instances:
        raise AdvCAMError("an image without masks has no true pixels; leave it out of the list")
    true = torch.stack([_bright(file, size) for file in masks.instances]).any(0)
    truth = true.to(torch.uint8)
    if masks.ignored is not None:
        truth[_bright(masks.ignored, size) & ~true] = VOID
    return truth


def _bright(path: Path, size: tuple[int, int]) -> Tensor:
    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such mask: {path}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise AdvCAMError(f"cannot read mask {path}: is it truncated or damaged?") from error
    return F.interpolate(torch.from_numpy(grey.astype(np.float32))[None, None], size, mode="nearest")[0, 0] > 0.5


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
