"""A folder of saliency maps in; the map of a sample, at its photograph's size and in 0..1, out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from advcam_attr.data.images import read_rgb
from advcam_attr.files import files_digest
from advcam_attr.types import AdvCAMError, Sample

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
