"""A folder of label maps and the images they are of, in; which of them a net can learn from, and its batches, out."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from advcam_attr.data.images import image_size, read_rgb
from advcam_attr.data.labels import few
from advcam_attr.data.masks import mask_path, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import SegmentationTrain
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import VOID, AdvCAMError, Sample


@dataclass(frozen=True)
class PseudoMasks:
    """Label maps that were looked at.

    Attributes:
        folder: of the PNGs.
        samples: the images whose label maps say something.
        void: the ids of those whose label maps are void alone, which are left out.
        digest: what tells the label maps from others.
    """

    folder: Path
    samples: tuple[Sample, ...]
    void: tuple[str, ...]
    digest: str


def look_at_masks(folder: Path, data: SegmentationData, workers: int = 0) -> PseudoMasks:
    """Read all label maps of a data set once, before a training that takes hours meets a bad one.

    Args:
        folder: ``<id>.png`` of each image: 0 the background, k + 1 class k, 255 void.
        data: the images and classes; their true masks are not read.
        workers: threads that read.

    Raises:
        AdvCAMError: label maps are missing, damaged, of another size than their image, or hold labels above the
            classes; or there is none that a net can learn from. The first are named.
    """
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [s.id for s in data.samples if mask_path(folder, s.id).name not in there]
    if missing:
        raise AdvCAMError(
            f"masks of {len(missing)} of {len(data.samples)} images are missing in {folder}, e.g. of {few(missing)}; "
            "make them first"
        )

    def look(sample: Sample) -> tuple[str, bool] | AdvCAMError:
        try:
            labels = read_mask(mask_path(folder, sample.id), len(data.classes), image_size(sample.image))
        except AdvCAMError as error:
            return error
        return hashlib.sha256(labels.numpy().tobytes()).hexdigest(), bool((labels == VOID).all())

    found = list(prefetched(look, data.samples, workers=workers, ahead=64))
    wrong = [str(one) for one in found if isinstance(one, AdvCAMError)]
    if wrong:
        more = f" (and {len(wrong) - 1} more of {len(found)} masks cannot be used)" if len(wrong) > 1 else ""
        raise AdvCAMError(wrong[0] + more)
    usable, void, content = [], [], hashlib.sha256()
    for sample, (digest, empty) in zip(data.samples, (one for one in found if isinstance(one, tuple)), strict=True):
        content.update(f"{sample.id} {digest}\n".encode())
        if empty:
            void.append(sample.id)
        else:
            usable.append(sample)
    if not usable:
        raise AdvCAMError(f"all {len(void)} masks in {folder} are void (255) alone: nothing can be learnt")
    return PseudoMasks(folder, tuple(usable), tuple(void), content.hexdigest()[:16])


class MaskedImages:
    """Images and their label maps by index, augmented together.

    Args:
        masks: the label maps.
        num_classes: of the foreground.
        transform: see `advcam_attr.data.transforms.SegmentationTrain`.
    """

    def __init__(self, masks: PseudoMasks, num_classes: int, transform: SegmentationTrain) -> None:
        self.masks, self.num_classes, self.transform = masks, num_classes, transform

    def __len__(self) -> int:
        return len(self.masks.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image ``(3, S, S)`` float32 and its labels ``(S, S)`` uint8, with S the crop.

        Raises:
            AdvCAMError: one of them is missing or damaged, or they differ in size.
        """
        sample = self.masks.samples[index]
        picture = read_rgb(sample.image)
        size = (picture.height, picture.width)
        labels = read_mask(mask_path(self.masks.folder, sample.id), self.num_classes, size)
        return self.transform(picture, labels)
