"""Pseudo masks as training data of segmentation nets."""

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
    """The checked masks of a folder.

    Attributes:
        samples: images whose masks have labels.
        void: ids of images whose masks are void throughout, which are left out.
        digest: of all masks.
    """

    folder: Path
    samples: tuple[Sample, ...]
    void: tuple[str, ...]
    digest: str


def check_masks(folder: Path, data: SegmentationData, workers: int = 0) -> PseudoMasks:
    """Read all masks ``folder/<id>.png`` of a data set once, so that a bad one does not stop a training after hours.

    Raises:
        AdvCAMError: Masks are missing, damaged, of another size than their image, hold other labels, or are all void.
    """
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: check its list")
    existing = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [s.id for s in data.samples if mask_path(folder, s.id).name not in existing]
    if missing:
        raise AdvCAMError(
            f"masks of {len(missing)} of {len(data.samples)} images are missing in {folder}, e.g. of {few(missing)}; "
            "make them first"
        )

    def check(sample: Sample) -> tuple[str, bool] | AdvCAMError:
        try:
            labels = read_mask(mask_path(folder, sample.id), len(data.classes), image_size(sample.image))
        except AdvCAMError as error:
            return error
        return hashlib.sha256(labels.numpy().tobytes()).hexdigest(), bool((labels == VOID).all())

    checked = list(prefetched(check, data.samples, workers=workers, ahead=64))
    wrong = [str(one) for one in checked if isinstance(one, AdvCAMError)]
    if wrong:
        more = f" (and {len(wrong) - 1} more of {len(checked)} masks cannot be used)" if len(wrong) > 1 else ""
        raise AdvCAMError(wrong[0] + more)
    usable: list[Sample] = []
    void: list[Sample] = []
    content = hashlib.sha256()
    for sample, (digest, empty) in zip(data.samples, (one for one in checked if isinstance(one, tuple)), strict=True):
        content.update(f"{sample.id} {digest}\n".encode())
        (void if empty else usable).append(sample)
    if not usable:
        raise AdvCAMError(f"all {len(void)} masks in {folder} are void (255) throughout: there is nothing to learn")
    return PseudoMasks(folder, tuple(usable), tuple(s.id for s in void), content.hexdigest()[:16])


class MaskedImages:
    """Images and their masks by index, augmented together."""

    def __init__(self, masks: PseudoMasks, num_classes: int, transform: SegmentationTrain) -> None:
        self.masks, self.num_classes, self.transform = masks, num_classes, transform

    def __len__(self) -> int:
        return len(self.masks.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image ``(3, S, S)`` float32 and its labels ``(S, S)`` uint8, with S the crop."""
        sample = self.masks.samples[index]
        picture = read_rgb(sample.image)
        size = (picture.height, picture.width)
        labels = read_mask(mask_path(self.masks.folder, sample.id), self.num_classes, size)
        return self.transform(picture, labels)
