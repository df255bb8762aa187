"""PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD).

``train_aug``, on which weakly supervised segmentation trains, has no published list: it is the images with a mask in
either data set, without VOC's ``val`` (10 582 images). It is read from a list if there is one, and else derived.
"""

from __future__ import annotations

import os
from pathlib import Path

from advcam_attr.data.images import is_image
from advcam_attr.data.instances import OBJECTS, ObjectFiles
from advcam_attr.data.labels import IdList, few, look_up, read_annotation, read_label_table, read_list, voc_id
from advcam_attr.data.masks import MaskFiles
from advcam_attr.data.samples import MissingSplitError, SegmentationData, find_root
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError, Sample

#: Class k is k + 1 in label maps.
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

#: The splits and the numbers of their published images.
SPLITS = {"train": 1464, "train_aug": 10582, "val": 1449, "trainval": 2913, "test": 1456}

_ALIASES = {"trainaug": "train_aug"}

#: Folders of lists: VOC's own, and where codebases put the one of train_aug.
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug")

#: Folders of masks: VOC's own, and SBD's as PNGs.
MASKS, MASKS_AUG = "SegmentationClass", "SegmentationClassAug"

#: Where SBD is looked for, below the root of VOC or beside it.
_SBD_FOLDERS = ("benchmark_RELEASE/dataset", "SBD/benchmark_RELEASE/dataset", "SBD", "sbd")


def read_voc(
    root: str | Path,
    split: str | Path = "train_aug",
    *,
    labels: str | Path | None = None,
    sbd: str | Path | None = None,
) -> SegmentationData:
    """Read a split of PASCAL VOC 2012, 20 classes.

    Labels are the classes of the annotations' objects; those of ``test`` are withheld, so its samples have no labels
    unless a table gives them. Masks are read on demand: of ``train_aug`` from ``SegmentationClassAug``, then
    ``SegmentationClass``, then SBD's own files; of VOC's splits from ``SegmentationClass``; of a list from the folder
    that it names. SBD's masks have no void. Instances are read from
    ``SegmentationObject``. Missing image files raise when they are read;
    `advcam_attr.data.samples.without_missing` finds them.

    Args:
        root: ``VOC2012``, the ``VOCdevkit`` above it, or the folder above that.
        split: ``train``, ``train_aug``, ``val``, ``trainval``, ``test``, another list in ``ImageSets/Segmentation``,
            or a list's path.
        labels: a ``cls_labels.npy`` with the labels, instead of the annotations.
        sbd: the folder ``benchmark_RELEASE/dataset`` of SBD; by default it is looked for in and beside the root.

    Raises:
        AdvCAMError: the list is missing or unusable, none of its images is there, an image has two files, or an image
            has no labels.
    """
    folder = find_voc(root)
    sbd = _find_sbd(folder, sbd)
    name, listed = _find_list(folder, split, sbd)
    images = _find_images(folder)
    files = [images.get(id, [folder / "JPEGImages" / f"{id}.jpg"]) for id in listed.ids]
    if not any(id in images for id in listed.ids):
        raise AdvCAMError(f"none of the {len(listed.ids)} images of {name} is in {folder / 'JPEGImages'}")
    if twins := [paths for paths in files if len(paths) > 1]:
        raise AdvCAMError(f"two images of one id: {twins[0][0]} and {twins[0][1].name}; remove one")
    if labels is not None:
        classes = look_up(read_label_table(labels, len(CLASSES), voc_id), listed.ids, labels)
    elif name == "test":
        classes = [()] * len(listed.ids)
    else:
        classes = _annotated(folder, listed.ids, name)
    samples = (Sample(id, path, labels) for id, (path,), labels in zip(listed.ids, files, classes, strict=True))
    masks = _find_masks(folder, name, listed, sbd)
    return SegmentationData("voc", folder, name, CLASSES, tuple(samples), masks, ObjectFiles(folder / OBJECTS, masks))


def find_voc(root: str | Path) -> Path:
    """Return the folder ``VOC2012`` in or below a root."""
    looked_for = f"JPEGImages, beside ImageSets, Annotations or {MASKS}, in it, in VOC2012 and in VOCdevkit/VOC2012"
    return find_root("PASCAL VOC 2012", root, ["VOC2012", "VOCdevkit/VOC2012"], _is_voc, looked_for)


def _is_voc(folder: Path) -> bool:
    others = any((folder / part).is_dir() for part in ("ImageSets", MASKS, MASKS_AUG))
    return (folder / "JPEGImages").is_dir() and (others or any((folder / "Annotations").glob("*.xml")))


def _find_sbd(voc: Path, sbd: str | Path | None = None) -> Path | None:
    """Return the folder of SBD: the given one, or one below VOC or up to two folders above it, if any."""
    if sbd is not None:
        given = Path(sbd)
        for folder in (given, given / "dataset", given / "benchmark_RELEASE" / "dataset"):
            if _is_sbd(folder):
                return folder
        raise AdvCAMError(f"no Semantic Boundaries Dataset at {given}: looked for cls and train.txt")
    places = (above / name for above in (voc, *voc.resolve().parents[:2]) for name in _SBD_FOLDERS)
    return next((folder for folder in places if _is_sbd(folder)), None)


def _is_sbd(folder: Path) -> bool:
    return (folder / "cls").is_dir() or (folder / "train.txt").is_file()


def _find_list(voc: Path, split: str | Path, sbd: Path | None = None) -> tuple[str, IdList]:
    if isinstance(split, Path) or split.endswith(".txt") or "/" in split:
        return _ALIASES.get(Path(split).stem, Path(split).stem), read_list(split)
    name = _ALIASES.get(split, split)
    names = (name, *(alias for alias, of in _ALIASES.items() if of == name))
    files = [voc / folder / f"{n}.txt" for folder in _LIST_FOLDERS for n in names]
    for file in files:
        if file.is_file():
            return name, read_list(file)
    if name == "train_aug":
        return name, IdList(_derive_train_aug(voc, sbd), ())
    there = {file.stem for folder in _LIST_FOLDERS for file in (voc / folder).glob("*.txt")}
    raise MissingSplitError(
        f"no list of the split {name!r}: looked for {files[0]}"
        + ("" if name in SPLITS else nearest(name, there | set(SPLITS)))
    )


def _derive_train_aug(voc: Path, sbd: Path | None) -> tuple[str, ...]:
    if (voc / MASKS_AUG).is_dir():
        augmented = {file.stem for file in (voc / MASKS_AUG).glob("*.png")}
    elif sbd is not None and (sbd / "train.txt").is_file():
        lists = [file for file in (sbd / "train.txt", sbd / "val.txt") if file.is_file()]
        augmented = {id for file in lists for id in read_list(file).ids}
    elif sbd is not None:
        augmented = {file.stem for file in (sbd / "cls").glob("*.mat")}
    else:
        raise MissingSplitError(
            f"no train_aug at {voc}: it needs a list ImageSets/Segmentation/train_aug.txt, the folder {MASKS_AUG}, or "
            "the Semantic Boundaries Dataset (benchmark_RELEASE/dataset) beside it; or use the split train"
        )
    train, val = (set(_find_list(voc, split)[1].ids) for split in ("train", "val"))
    return tuple(sorted((augmented | train) - val))


def _find_images(voc: Path) -> dict[str, list[Path]]:
    folder = voc / "JPEGImages"
    found: dict[str, list[Path]] = {}
    for path in (folder / name for name in sorted(os.listdir(folder))):
        if is_image(path):
            found.setdefault(path.stem, []).append(path)
    return found


def _find_masks(voc: Path, split: str, listed: IdList, sbd: Path | None = None) -> MaskFiles:
    own, augmented = (voc / MASKS,), (voc / MASKS_AUG,)
    boundaries = (sbd / "cls",) if sbd is not None else ()
    if listed.mask_folders:
        return MaskFiles((*(voc / folder for folder in listed.mask_folders), *own), len(CLASSES))
    if split == "train_aug":
        return MaskFiles(augmented + own + boundaries, len(CLASSES))
    if split in SPLITS:
        return MaskFiles(own, len(CLASSES))
    return MaskFiles(own + augmented + boundaries, len(CLASSES))


def _annotated(voc: Path, ids: tuple[str, ...], split: str) -> list[tuple[int, ...]]:
    folder = voc / "Annotations"
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [id for id in ids if f"{id}.xml" not in there]
    if missing:
        raise AdvCAMError(
            f"no labels for {len(missing)} of {len(ids)} images of {split}: {folder} lacks {few(missing)}; "
            "unpack the annotations of VOCtrainval, or give a cls_labels.npy"
        )
    return [read_annotation(folder / f"{id}.xml", CLASSES) for id in ids]
