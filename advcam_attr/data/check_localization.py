"""The folder of CUB-200-2011, ImageNet-1K or lists of Choe et al. in; what is there and what is wrong with it, out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advcam_attr.data import cub, imagenet, wsol_metadata
from advcam_attr.data.images import stored_size
from advcam_attr.data.inventory import DataSetInventory, SplitInventory, problems
from advcam_attr.data.masks import PixelMasks, read_pixel_truth
from advcam_attr.data.samples import LocalizationData, missing_images
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


@dataclass(frozen=True)
class ReadableMasks:
    """Checks that the true pixels of a sample can be read.

    Attributes:
        masks: their files by id.
    """

    masks: Mapping[str, PixelMasks]

    def __call__(self, sample: Sample) -> None:
        """Nothing, if they can.

        Raises:
            AdvCAMError: they cannot.
        """
        read_pixel_truth(self.masks[sample.id])


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


def inspect_metadata(folder: Path) -> DataSetInventory:
    """Take stock of the lists in ``metadata/<name>``, and of photographs and masks if ``dataset/<name>`` is there."""
    place = Path(os.path.abspath(folder))
    images = place.parent.parent / "dataset" / place.name
    looked_for = images.is_dir()
    masked = place.name == "OpenImages"
    found: list[LocalizationData] = []
    absent: list[str] = []
    unusable: list[str] = []
    published = dict(zip(wsol_metadata.SPLITS, wsol_metadata.PUBLISHED.get(place.name, ()), strict=False))
    for name in wsol_metadata.SPLITS:
        if not (folder / name).is_dir():
            images_of = f"{name} ({published[name]} images)" if published else name
            absent.append(f"{images_of}: it takes {name}/{wsol_metadata.IDS} and {name}/{wsol_metadata.LABELS}")
            continue
        try:
            found.append(wsol_metadata.read_wsol_metadata(place, images, name))
        except AdvCAMError as error:
            unusable.append(str(error))
            continue
        if name != "train" and not (folder / name / wsol_metadata.TRUTH).is_file():
            absent.append(f"{'masks' if masked else 'boxes'} of {name}: it takes {name}/{wsol_metadata.TRUTH}")
    masked = masked or any(data.masks for data in found)
    lost = {data.split: _lost_masks(data) if looked_for else {} for data in found}
    splits = [
        SplitInventory(
            data.split,
            published.get(data.split),
            data.samples,
            frozenset(s.id for s in data.samples) - {s.id for s in missing_images(data.samples)},
            frozenset(s.id for s in data.samples),
            frozenset(id for id in data.masks or data.boxes if id not in lost[data.split]),
            ReadableMasks(data.masks) if data.masks else FittingBoxes(data.sizes),
            looked_for,
        )
        for data in found
    ]
    return DataSetInventory(
        name=f"Lists of {place.name} (Choe et al.)",
        root=folder,
        classes=max((data.classes for data in found), key=len, default=()),
        parts=(
            *((f"{data.split}/{wsol_metadata.TRUTH}", _truth_told(data)) for data in found if data.boxes or data.masks),
            ("photographs", f"looked for in {images}" if looked_for else f"not looked for: there is no {images}"),
        ),
        splits=tuple(splits),
        absent=tuple(absent),
        problems=problems(
            ("splits that cannot be used", unusable, "mend the lists, or unpack them anew"),
            *([_missing(splits)] if looked_for else []),
            (
                "listed masks that are not there",
                (path for of in lost.values() for path in of.values()),
                "unpack them anew",
            ),
        ),
        truth="masks" if masked else "boxes",
    )


def _lost_masks(data: LocalizationData) -> dict[str, str]:
    """The first mask of an image that is not there, by the image's id."""
    files = ((id, file) for id, masks in data.masks.items() for file in (*masks.instances, masks.ignored))
    missing = missing_images(Sample(id, file, ()) for id, file in files if file is not None)
    return {sample.id: str(sample.image) for sample in reversed(missing)}


def _truth_told(data: LocalizationData) -> str:
    if data.masks:
        return f"{sum(len(masks.instances) for masks in data.masks.values())} masks of {len(data.masks)} images"
    return f"{sum(map(len, data.boxes.values()))} boxes of {len(data.boxes)} images"


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
