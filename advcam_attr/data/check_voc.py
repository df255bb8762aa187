"""The folder of PASCAL VOC 2012 in; what is there and what is wrong with it, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from advcam_attr.data import voc
from advcam_attr.data.inventory import DataSetInventory, SplitInventory, problems
from advcam_attr.data.labels import IdList, read_annotation
from advcam_attr.types import AdvCAMError, Sample


def inspect_voc(folder: Path) -> DataSetInventory:
    """Take stock of the lists, annotations and names of files of a folder ``VOC2012``."""
    sbd = voc.find_sbd(folder)
    photographs = voc.find_photographs(folder)
    annotations = {file.stem for file in (folder / "Annotations").glob("*.xml")}
    lists, absent, unusable = _lists(folder, sbd)
    listed = dict.fromkeys(id for ids in lists.values() for id in ids.ids)
    public = dict.fromkeys(id for name, ids in lists.items() if name != "test" for id in ids.ids)
    labels, damaged = _labels(folder, [id for id in public if id in annotations])
    splits = [_split(folder, name, ids, photographs, labels, sbd) for name, ids in lists.items()]
    masked = [split for split in splits if split.name != "test"]
    return DataSetInventory(
        name="PASCAL VOC 2012",
        root=folder,
        classes=voc.CLASSES,
        parts=(
            ("JPEGImages", f"{sum(map(len, photographs.values()))} images"),
            ("Annotations", f"{len(annotations)} annotations"),
            *((part, f"{len(list((folder / part).glob('*.png')))} masks") for part in (voc.MASKS, voc.MASKS_AUG)),
            *([(str(sbd / "cls"), f"{len(list((sbd / 'cls').glob('*.mat')))} masks")] if sbd else []),
        ),
        splits=tuple(splits),
        absent=tuple(absent),
        problems=problems(
            ("lists that cannot be used", unusable, "mend them"),
            (
                "ids with two images",
                (f"{id}: {twins[0].name}, {twins[1].name}" for id, twins in photographs.items() if len(twins) > 1),
                "keep one of each",
            ),
            (
                "listed images that are not there",
                (id for id in listed if id not in photographs),
                "unpack JPEGImages anew",
            ),
            (
                "listed images without annotation",
                (id for id in public if id not in annotations),
                "unpack Annotations anew, or give a cls_labels.npy",
            ),
            ("annotations that cannot be used", damaged, "unpack them anew"),
            (
                "listed images without mask",
                (s.id for split in masked for s in split.samples if s.id not in split.masked),
                f"unpack {voc.MASKS}, and {voc.MASKS_AUG} for train_aug, anew",
            ),
        ),
    )


def _lists(folder: Path, sbd: Path | None) -> tuple[dict[str, IdList], list[str], list[str]]:
    """The splits that can be read, what the absent ones would take, and what is wrong with lists that are there."""
    lists: dict[str, IdList] = {}
    absent: list[str] = []
    unusable: list[str] = []
    for split, published in voc.SPLITS.items():
        try:
            lists[split] = voc.find_list(folder, split, sbd)[1]
        except AdvCAMError as error:
            if (folder / "ImageSets" / "Segmentation" / f"{split}.txt").exists():
                unusable.append(str(error))
            else:
                absent.append(f"{split} ({published} images): {error}")
    return lists, absent, unusable


def _labels(folder: Path, ids: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The classes by id, and what is wrong with the annotations of the others."""
    labels: dict[str, tuple[int, ...]] = {}
    damaged: list[str] = []
    for id in ids:
        try:
            labels[id] = read_annotation(folder / "Annotations" / f"{id}.xml", voc.CLASSES)
        except AdvCAMError as error:
            damaged.append(str(error))
    return labels, damaged


def _split(
    folder: Path,
    name: str,
    listed: IdList,
    photographs: Mapping[str, Sequence[Path]],
    labels: Mapping[str, tuple[int, ...]],
    sbd: Path | None,
) -> SplitInventory:
    mask = voc.find_masks(folder, name, listed, sbd)
    known = {} if name == "test" else labels
    return SplitInventory(
        name=name,
        published=voc.SPLITS[name],
        samples=tuple(Sample(id, photographs.get(id, [folder])[0], known.get(id, ())) for id in listed.ids),
        there=frozenset(id for id in listed.ids if id in photographs),
        known=frozenset(known),
        masked=frozenset(id for id in listed.ids if mask.find(id)),
        mask=mask,
    )
