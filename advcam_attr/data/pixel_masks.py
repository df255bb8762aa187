"""The mask files of an image's objects in; which pixels are true, false, or not counted, out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advcam_attr.data.masks import VOID
from advcam_attr.types import AdvCAMError


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
