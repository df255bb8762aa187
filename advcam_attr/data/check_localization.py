"""The folder of CUB-200-2011 or ImageNet-1K in; what is there and what is wrong with it, out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advcam_attr.data import cub, imagenet
from advcam_attr.data.inventory import DataSetInventory, SplitInventory, problems
from advcam_attr.data.localization import missing_images
from advcam_attr.data.sizes import stored_size
from advcam_attr.types import AdvCAMError, Sample


@dataclass(frozen=True)
class FittingBoxes:
    """Checks that the image of a sample has the size that its boxes are for.

    Attributes:
        sizes: height and width by id.
    """

    sizes: Mapping[str, tuple[int, int]]

    def __call__(self, sample: Sample) -> None:
        """Nothing, if it has.

        Raises:
            AdvCAMError: it has not.
        """
        height, width = stored_size(sample.image)
        if (height, width) != self.sizes[sample.id]:
            noted = self.sizes[sample.id]
            raise AdvCAMError(
                f"{sample.image} is of {width}x{height} pixels, and its boxes are for {noted[1]}x{noted[0]}"
            )


def inspect_cub(folder: Path) -> DataSetInventory:
    """Take stock of the lists and photographs of a folder ``CUB_200_2011``."""
    splits: list[SplitInventory] = []
    unusable: list[str] = []
    unfit: list[str] = []
    classes: tuple[str, ...] = ()
    for name, (_, published) in cub.SPLITS.items():
        try:
            classes, samples, numbers = cub.read_samples(folder, name)
            listed = cub.read_table(folder / cub.BOXES, 4)
            cub.require_lines(folder / cub.BOXES, listed, numbers)
        except AdvCAMError as error:
            unusable.append(str(error))
            continue
        gone = {sample.id for sample in missing_images(samples)}
        sizes: dict[str, tuple[int, int]] = {}
        for sample, number in zip(samples, numbers, strict=True):
            try:
                if sample.id not in gone:
                    size = stored_size(sample.image)
                    cub.cub_box(listed[number], size, f"image {number}")
                    sizes[sample.id] = size
            except AdvCAMError as error:
                unfit.append(str(error))
        splits.append(_split(name, published, samples, gone, sizes))
    photographs = sum(len(os.listdir(place)) for place in (folder / "images").glob("*") if place.is_dir())
    return DataSetInventory(
        name="CUB-200-2011",
        root=folder,
        classes=classes,
        parts=(("images", f"{photographs} images"),),
        splits=tuple(splits),
        absent=(),
        problems=problems(
            ("splits that cannot be used", list(dict.fromkeys(unusable)), "mend the lists, or unpack them anew"),
            _missing(splits),
            ("images whose size or box cannot be used", unfit, f"unpack them anew, or mend {cub.BOXES}"),
        ),
        truth="boxes",
    )


def inspect_imagenet(folder: Path) -> DataSetInventory:
    """Take stock of the class folders, and of the annotations with boxes, of a folder of ImageNet."""
    splits: list[SplitInventory] = []
    absent: list[str] = []
    unusable: list[str] = []
    parts: list[tuple[str, str]] = []
    classes: tuple[str, ...] = ()
    for name, published in imagenet.SPLITS.items():
        try:
            place = imagenet.find_images(folder, name)
        except AdvCAMError as error:
            absent.append(f"{name} ({published} images): {error}")
            continue
        try:
            data = imagenet.read_imagenet(folder, name)
        except AdvCAMError as error:
            unusable.append(str(error))
            continue
        classes = max(classes, data.classes, key=len)
        parts.append((str(place.relative_to(folder)), f"{len(data.samples)} images"))
        splits.append(_split(name, published, data.samples, set(), data.sizes))
    return DataSetInventory(
        name="ImageNet-1K",
        root=folder,
        classes=classes,
        parts=tuple(parts),
        splits=tuple(splits),
        absent=tuple(absent),
        problems=problems(("splits that cannot be used", unusable, "mend them")),
        truth="boxes",
    )


def _split(
    name: str, published: int, samples: Sequence[Sample], gone: Collection[str], sizes: Mapping[str, tuple[int, int]]
) -> SplitInventory:
    ids = frozenset(sample.id for sample in samples)
    return SplitInventory(
        name, published, tuple(samples), ids - frozenset(gone), ids, frozenset(sizes), FittingBoxes(sizes)
    )


def _missing(splits: Sequence[SplitInventory]) -> tuple[str, list[str], str]:
    gone = [sample.id for split in splits for sample in split.samples if sample.id not in split.there]
    return "listed images that are not there", gone, "unpack them anew"
