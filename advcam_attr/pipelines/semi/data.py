"""Labelled and unlabelled images with their masks, and pairs of them for CCT."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.data.images import image_size, read_rgb
from advcam_attr.data.masks import mask_path, read_mask
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.semi.config import SemiDataConfig
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.runs.provenance import fingerprint
from advcam_attr.types import VOID, AdvCAMError, Sample

MaskReader = Callable[[Sample], Tensor]


@dataclass(frozen=True)
class SemiData:
    """The images of a training; ``pseudo`` reads the pseudo mask, ``(H, W)`` uint8, of an unlabelled image, if any."""

    labelled: SegmentationData
    unlabelled: SegmentationData
    pseudo: MaskReader | None
    val: SegmentationData | None

    def fingerprints(self, workers: int = 0) -> dict[str, str | None]:
        """Read all masks, and return what identifies images and masks; invalid masks raise."""
        pseudo = masks_digest(self.unlabelled.samples, self.pseudo, workers) if self.pseudo else None
        return {
            "labelled": fingerprint(self.labelled),
            "unlabelled": fingerprint(self.unlabelled),
            "val": None if self.val is None else fingerprint(self.val),
            "masks": masks_digest(self.labelled.samples, self.labelled.mask, workers),
            "pseudo": pseudo,
        }


def read_semi(config: SemiDataConfig) -> SemiData:
    """Read the splits; validation images that overlap with training ones, or missing pseudo masks, raise."""
    labelled = config.read(config.labelled)
    if config.labelled_count is not None:
        count, total = config.labelled_count, len(labelled.samples)
        if count > total:
            raise AdvCAMError(f"{labelled.name} {labelled.split} has {total} images, fewer than {count}")
        labelled = replace(labelled, samples=labelled.samples[:count], split=f"{labelled.split}[:{count}]")
    present, _ = without_missing(config.read(config.unlabelled))
    ids = {sample.id for sample in labelled.samples}
    unlabelled = replace(present, samples=tuple(sample for sample in present.samples if sample.id not in ids))
    if not unlabelled.samples:
        raise AdvCAMError(
            f"no unlabelled images: all {len(present.samples)} of {present.name} {present.split} that are there are "
            "labelled; give data.unlabelled another split, or a smaller data.labelled_count"
        )
    val = None if config.val is None else config.read(config.val)
    for data in (labelled, unlabelled):
        shared = {sample.id for sample in val.samples} & {sample.id for sample in data.samples} if val else set()
        if val and shared:
            raise AdvCAMError(
                f"{len(shared)} images of {data.name} {data.split} are in {val.split} too, e.g. {min(shared)}; "
                "training and validation images must differ"
            )
    pseudo = None if config.pseudo is None else PseudoMaskFolder(path_of(config.pseudo), len(present.classes))
    if pseudo is not None:
        pseudo.require(unlabelled.samples)
    return SemiData(labelled, unlabelled, pseudo, val)


@dataclass(frozen=True)
class PseudoMaskFolder:
    """Reads pseudo masks ``<id>.png``, palette or grey PNGs in which 255 is ignored."""

    folder: Path
    num_classes: int

    def require(self, samples: Sequence[Sample]) -> None:
        present = {file.name for file in self.folder.glob("*.png")}
        missing = [sample.id for sample in samples if mask_path(self.folder, sample.id).name not in present]
        if missing:
            raise AdvCAMError(
                f"pseudo masks of {len(missing)} of {len(samples)} unlabelled images are missing in {self.folder}, "
                f"e.g. {missing[0]}.png; make them first, or leave data.pseudo out"
            )

    def __call__(self, sample: Sample) -> Tensor:
        return read_mask(mask_path(self.folder, sample.id), self.num_classes, image_size(sample.image))


def masks_digest(samples: Sequence[Sample], read: MaskReader, workers: int) -> str:
    """Read all masks, and return a digest of their contents; the first that cannot be read raises."""
    content = hashlib.sha256()
    for sample, mask in zip(samples, prefetched(read, samples, workers=workers, ahead=8), strict=True):
        content.update(f"{sample.id} {tuple(mask.shape)};".encode() + mask.numpy().tobytes())
    return content.hexdigest()[:16]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a labelled and an unlabelled image by the index of the latter, each augmented on its own.

    Labelled images are cycled across epochs, so that each comes equally often. The released code repeats whole batches
    of an epoch with their first augmentation; here each is augmented again.
    """

    data: SemiData
    augmentation: PairedAugmentation
    epoch: int = 0

    def of_epoch(self, epoch: int) -> Pairs:
        return replace(self, epoch=epoch)

    def __len__(self) -> int:
        return len(self.data.unlabelled.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return images, ``(2, 3, S, S)`` float32, and labels, ``(2, S, S)`` uint8, void without pseudo masks."""
        labelled = self.data.labelled
        place = (self.epoch * len(self) + index) % len(labelled.samples)
        first = self._read(labelled.samples[place], labelled.mask)
        second = self._read(self.data.unlabelled.samples[index], self.data.pseudo)
        images, labels = zip(first, second, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _read(self, sample: Sample, mask: MaskReader | None) -> tuple[Tensor, Tensor]:
        image = read_rgb(sample.image)
        size = (image.height, image.width)
        labels = torch.full(size, VOID, dtype=torch.uint8) if mask is None else mask(sample)
        if tuple(labels.shape) != size:
            raise AdvCAMError(f"the mask of {sample.id} is {tuple(labels.shape)} and its image {size}")
        augmented, labels = self.augmentation(image, labels)
        return augmented, labels
