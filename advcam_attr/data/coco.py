"""The folder of MS COCO 2014 in; its splits out, with label maps drawn from the published JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.data.coco_instances import CocoImage, CocoInstances, read_instances
from advcam_attr.data.labels import coco_key, look_up, read_label_table
from advcam_attr.data.lists import few, read_list
from advcam_attr.data.masks import MaskFiles
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.sizes import size_if_readable
from advcam_attr.types import AdvCAMError, NoMaskError, Sample

#: In the order of the categories' ids, which leave gaps; class k is k + 1 in label maps.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

#: The splits, and how many photographs the published ones have.
SPLITS = {"train2014": 82783, "val2014": 40504}

_ALIASES = {"train": "train2014", "val": "val2014"}

#: Where ready masks lie in the layout of RIB.
MASKS = "coco_seg_anno"

#: Take the folder `MASKS` if there is one, and else draw.
AUTO = "auto"

#: Draw the masks from the JSON.
DRAW = "draw"


def read_coco(
    root: str | Path,
    split: str = "train2014",
    *,
    masks: str | Path = AUTO,
    labels: str | Path | None = None,
    ids: str | Path | None = None,
) -> SegmentationData:
    """Read a split of MS COCO 2014.

    The labels are the categories of an image's annotations; an image without any is a sample with empty labels. The
    photographs may lie in ``<split>``, ``images/<split>`` or (as RIB has them) ``JPEGImages``, and be named as in the
    JSON or by their number of twelve digits; a sample's id is its file's stem.

    A photograph that is not there is no error before it is read; `advcam_attr.data.segmentation.without_missing`
    finds them.

    Args:
        root: the folder that ``annotations`` is in.
        split: ``train2014`` or ``train``, ``val2014`` or ``val``, or any x with an ``annotations/instances_x.json``.
        masks: a folder of ready label maps, named as the photographs or by their number of twelve digits; or
            ``"draw"``, to draw them from the JSON (see `CocoInstances.draw`); or ``"auto"``: from the folder
            ``coco_seg_anno`` if there is one, else drawn.
        labels: a ``cls_labels.npy`` to take the labels from, in place of the JSON; it must have all images.
        ids: a list of the images to keep, in its order.

    Returns:
        The split, 80 classes.

    Raises:
        AdvCAMError: the JSON is missing, damaged or names an image twice, no photograph is there, or the list or the
            table of labels does not fit.

    Example:
        >>> data = read_coco("coco", "train")  # doctest: +SKIP
        >>> len(data.samples), data.samples[0].id  # doctest: +SKIP
        (82783, 'COCO_train2014_000000057870')
    """
    folder = find_coco(root)
    split = _ALIASES.get(split, split)
    classes, images, instances = read_instances(find_json(folder, split))
    photographs = find_photographs(folder, split, images)
    if ids is not None:
        images = _listed(images, Path(ids))
    if labels is None:
        shown = [instances.labels(image) for image in images]
    else:
        table = read_label_table(labels, len(classes), coco_key)
        shown = look_up(table, [str(image.number) for image in images], labels)
    by_id = {photographs[image.number].stem: image for image in images}
    if len(by_id) < len(images):
        raise AdvCAMError(f"{find_json(folder, split)} has two images of one file name")
    samples = (
        Sample(id, photographs[image.number], labels) for (id, image), labels in zip(by_id.items(), shown, strict=True)
    )
    ready = folder / MASKS if masks == AUTO else Path(masks)
    read: CocoMasks | CocoMaskFiles
    if masks == DRAW or (masks == AUTO and not ready.is_dir()):
        read = CocoMasks(by_id, instances)
    elif ready.is_dir():
        read = CocoMaskFiles((ready,), len(classes))
    else:
        raise AdvCAMError(f"no such folder of masks: {ready}")
    return SegmentationData("coco", folder, split, classes, tuple(samples), read)


@dataclass(frozen=True, eq=False)
class CocoMasks:
    """Draws the true label map of a sample.

    Attributes:
        images: by the samples' ids.
        instances: of all images.
    """

    images: Mapping[str, CocoImage]
    instances: CocoInstances

    def __call__(self, sample: Sample) -> Tensor:
        """The label map ``(H, W)`` uint8.

        Raises:
            NoMaskError: there is none.
            AdvCAMError: it cannot be drawn, or the photograph is of another size than the JSON says.
        """
        image = self.images.get(sample.id)
        if image is None:
            raise NoMaskError(f"no mask of {sample.id}: the annotations do not have this image")
        size = size_if_readable(sample.image)
        if size is not None and size != image.size:
            raise AdvCAMError(
                f"image {sample.image} is of {size[1]}x{size[0]} pixels, and of {image.size[1]}x{image.size[0]} in the "
                "annotations; take the published photograph, or scale the annotations with it"
            )
        return torch.from_numpy(self.instances.draw(image))


class CocoMaskFiles(MaskFiles):
    """Reads the true label map of a sample from PNGs named as the samples or by the digits of their number."""

    def find(self, id: str) -> Path | None:
        """The file of an id's mask, if it has one."""
        return super().find(id) or super().find(id[-12:])


def find_coco(root: str | Path) -> Path:
    """The folder that COCO's ``annotations`` are in: a root, or ``coco`` in it.

    Raises:
        AdvCAMError: there is none.
    """
    root = Path(root)
    for folder in (root, root / "coco", root / "COCO", root / "MSCOCO"):
        if any((folder / "annotations").glob("instances_*.json")):
            return folder
    raise AdvCAMError(
        f"no MS COCO at {root}: looked for annotations/instances_train2014.json and the like, in it and in coco"
        + ("" if root.is_dir() else "; there is no such folder")
    )


def find_json(coco: Path, split: str) -> Path:
    """A split's annotations.

    Raises:
        AdvCAMError: there are none.
    """
    path = coco / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        there = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
        raise AdvCAMError(f"no split {split!r} of COCO: looked for {path}; there are {', '.join(there)}")
    return path


def find_photographs(coco: Path, split: str, images: Sequence[CocoImage]) -> dict[int, Path]:
    """The image files by number, in the layout that most of them are found in; also those that are not there.

    Raises:
        AdvCAMError: none is there.
    """
    folders = [coco / split, coco / "images" / split, coco / "JPEGImages"]
    best, most = {}, 0
    for folder in folders:
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        for names in ({i.number: i.file for i in images}, {i.number: f"{i.number:012d}.jpg" for i in images}):
            found = len(there.intersection(names.values()))
            if found > most:
                best, most = {number: folder / name for number, name in names.items()}, found
    if not best:
        raise AdvCAMError(f"none of the {len(images)} images of {split} is there: looked in {few(folders)}")
    return best


def _listed(images: Sequence[CocoImage], path: Path) -> list[CocoImage]:
    known = {str(image.number): image for image in images}
    listed = [coco_key(id) for id in read_list(path).ids]
    missing = [id for id in listed if id not in known]
    if missing:
        raise AdvCAMError(f"{path} names {len(missing)} images that the annotations do not have ({few(missing)})")
    return [known[id] for id in listed]
