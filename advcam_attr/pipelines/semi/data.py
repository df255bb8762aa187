"""A configuration in; labelled and unlabelled images, their masks checked, and pairs to learn from, out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.data.images import image_size, read_rgb
from advcam_attr.data.masks import mask_path, read_mask
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.pipelines.config import MaskedData, path_of
from advcam_attr.pipelines.semi.config import SemiDataConfig
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import VOID, AdvCAMError, Sample

MaskOf = Callable[[Sample], Tensor]


@dataclass(frozen=True)
class SemiData:
    """What a net learns from.

    Attributes:
        labelled: images with true masks.
        unlabelled: other images.
        pseudo: reads an unlabelled image's pseudo mask ``(H, W)`` uint8; None where there are none.
        val: images with true masks that nothing is learned from; None leaves that out.
    """

    labelled: SegmentationData
    unlabelled: SegmentationData
    pseudo: MaskOf | None
    val: SegmentationData | None


def read_semi(config: SemiDataConfig) -> SemiData:
    """Read the splits.

    Raises:
        AdvCAMError: one cannot be read, there are no unlabelled images, pseudo masks are missing, or images that are
            learned from are among those of the validation.
    """
    labelled = read_part(config, config.labelled)
    whole = f"{labelled.name} {labelled.split}"
    if config.labelled_count is not None:
        if config.labelled_count > len(labelled.samples):
            raise AdvCAMError(f"{whole} has {len(labelled.samples)} images, fewer than {config.labelled_count}")
        first = labelled.samples[: config.labelled_count]
        labelled = dataclasses.replace(labelled, samples=first, split=f"{labelled.split}[:{config.labelled_count}]")
    listed, _ = without_missing(read_part(config, config.unlabelled))
    known = {sample.id for sample in labelled.samples}
    rest = tuple(sample for sample in listed.samples if sample.id not in known)
    if not rest:
        raise AdvCAMError(
            f"no unlabelled images: all {len(listed.samples)} of {listed.name} {listed.split} that are there are "
            "labelled; give data.unlabelled another split, or a smaller data.labelled_count"
        )
    unlabelled = dataclasses.replace(listed, samples=rest)
    val = None if config.val is None else read_part(config, config.val)
    for data in (labelled, unlabelled):
        seen = {sample.id for sample in val.samples} & {sample.id for sample in data.samples} if val else set()
        if val and seen:
            raise AdvCAMError(
                f"{len(seen)} images of {data.name} {data.split} are in {val.split} too, e.g. {min(seen)}; what is "
                "validated on must not be learned from"
            )
    pseudo = None if config.pseudo is None else PseudoMasks(path_of(config.pseudo), len(listed.classes))
    if pseudo is not None:
        pseudo.require(unlabelled.samples)
    return SemiData(labelled, unlabelled, pseudo, val)


def read_part(config: SemiDataConfig, split: str) -> SegmentationData:
    """One split of the configured data set.

    Raises:
        AdvCAMError: it cannot be read.
    """
    return MaskedData(config.root, config.kind, config.labels, config.masks).read(split)


@dataclass(frozen=True)
class PseudoMasks:
    """Reads pseudo masks ``<id>.png`` of a folder.

    Attributes:
        folder: of palette or grey PNGs; 255 is learned nothing from.
        num_classes: of the foreground.
    """

    folder: Path
    num_classes: int

    def require(self, samples: Sequence[Sample]) -> None:
        """That each sample has a file.

        Raises:
            AdvCAMError: some have none.
        """
        there = {file.name for file in self.folder.glob("*.png")}
        missing = [sample.id for sample in samples if mask_path(self.folder, sample.id).name not in there]
        if missing:
            raise AdvCAMError(
                f"pseudo masks of {len(missing)} of {len(samples)} unlabelled images are missing in {self.folder}, "
                f"e.g. {missing[0]}.png; make them first, or leave data.pseudo out"
            )

    def __call__(self, sample: Sample) -> Tensor:
        """The mask ``(H, W)`` uint8.

        Raises:
            AdvCAMError: it is damaged, of another size than the photograph, or holds labels above the classes.
        """
        return read_mask(mask_path(self.folder, sample.id), self.num_classes, image_size(sample.image))


def masks_digest(samples: Sequence[Sample], read: MaskOf, workers: int) -> str:
    """Read all masks, so that a bad one is told before anything is learned, and say what tells them from others.

    Raises:
        AdvCAMError: some cannot be read; the first is told.
    """
    content = hashlib.sha256()
    failed: list[str] = []

    def attempt(sample: Sample) -> Tensor | str:
        try:
            return read(sample)
        except AdvCAMError as error:
            return str(error)

    for sample, found in zip(samples, prefetched(attempt, samples, workers=workers, ahead=8), strict=True):
        if isinstance(found, str):
            failed.append(found)
        else:
            content.update(f"{sample.id} {tuple(found.shape)};".encode() + found.numpy().tobytes())
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise AdvCAMError(failed[0] + more)
    return content.hexdigest()[:16]


@dataclass(frozen=True)
class Pairs:
    """A labelled image and an unlabelled one by the unlabelled one's index, each augmented on its own.

    The labelled images are cycled on over the epochs, so that each comes equally often. In the released code, the
    cycle repeats whole batches of an epoch with the augmentation that they had at first; here each is augmented anew.

    Attributes:
        data: the images.
        augmentation: of both.
        epoch: from 0.
    """

    data: SemiData
    augmentation: PairedAugmentation
    epoch: int = 0

    def of_epoch(self, epoch: int) -> Pairs:
        """The pairs of an epoch."""
        return dataclasses.replace(self, epoch=epoch)

    def __len__(self) -> int:
        return len(self.data.unlabelled.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Images ``(2, 3, S, S)`` float32 and their labels ``(2, S, S)`` uint8, void without pseudo masks.

        Raises:
            AdvCAMError: an image or a mask is missing or damaged, or they differ in size.
        """
        labelled = self.data.labelled
        place = (self.epoch * len(self) + index) % len(labelled.samples)
        first = self._read(labelled.samples[place], labelled.mask)
        second = self._read(self.data.unlabelled.samples[index], self.data.pseudo)
        images, labels = zip(first, second, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _read(self, sample: Sample, mask: MaskOf | None) -> tuple[Tensor, Tensor]:
        picture = read_rgb(sample.image)
        size = (picture.height, picture.width)
        labels = torch.full(size, VOID, dtype=torch.uint8) if mask is None else mask(sample)
        if tuple(labels.shape) != size:
            raise AdvCAMError(f"the mask of {sample.id} is {tuple(labels.shape)} and its photograph {size}")
        image, labels = self.augmentation(picture, labels)
        return image, labels
