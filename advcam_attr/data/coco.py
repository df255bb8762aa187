"""MS COCO 2014, with label maps drawn from the instances of the published JSON."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advcam_attr.data.images import size_if_readable
from advcam_attr.data.labels import coco_key, few, look_up, read_label_table, read_list
from advcam_attr.data.masks import MaskFiles
from advcam_attr.data.samples import MissingSplitError, SegmentationData, find_root
from advcam_attr.reading import MAX_BYTES, read_json
from advcam_attr.types import VOID, AdvCAMError, Instances, NoMaskError, Sample

#: In the order of the categories' ids, which have gaps; class k is k + 1 in label maps.
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

#: The splits and the numbers of their published images.
SPLITS = {"train2014": 82783, "val2014": 40504}

_ALIASES = {"train": "train2014", "val": "val2014"}

#: The folder of ready masks in the layout of RIB.
MASKS = "coco_seg_anno"

#: Read the masks in the folder `MASKS` if there is one, and draw them otherwise.
AUTO = "auto"

#: Draw the masks from the JSON.
DRAW = "draw"

#: The most pixels of all masks of an image together; published ones have a tenth.
_MOST_NUMBERS = 1 << 30

#: How far a vertex may lie outside of its image, in pixels.
_SLACK = 2.0


def read_coco(
    root: str | Path,
    split: str = "train2014",
    *,
    masks: str | Path = AUTO,
    labels: str | Path | None = None,
    ids: str | Path | None = None,
) -> SegmentationData:
    """Read a split of MS COCO 2014, 80 classes; needs pycocotools.

    Labels are the categories of an image's annotations, possibly none. Images may be in ``<split>``, ``images/<split>``
    or ``JPEGImages`` (RIB), named as in the JSON or by their number of twelve digits; ids are the files' stems. Reading
    the annotations of ``train2014`` takes about 10 seconds. Missing image files raise when they are read;
    `advcam_attr.data.samples.without_missing` finds them.

    Args:
        root: the folder of ``annotations``, or the one above ``coco``.
        split: ``train2014`` or ``train``, ``val2014`` or ``val``, or any x with an ``annotations/instances_x.json``.
        masks: a folder of ready label maps, named as the images or by their number of twelve digits; ``"draw"`` to draw
            them from the JSON (see `CocoMasks`); or ``"auto"``, from the folder ``coco_seg_anno`` if there is one, else
            drawn.
        labels: a ``cls_labels.npy`` with the labels of all images, instead of the JSON's.
        ids: a list of images to read, in its order.

    Raises:
        AdvCAMError: the JSON is missing or malformed, no image is there, or the list or the table of labels does not
            fit.
    """
    folder = find_coco(root)
    split = _ALIASES.get(split, split)
    path = _find_json(folder, split)
    classes, images, instances = read_instances(path)
    files = _find_images(folder, split, images)
    if ids is not None:
        images = _listed(images, Path(ids))
    if labels is None:
        shown = [instances.labels(image) for image in images]
    else:
        table = read_label_table(labels, len(classes), coco_key)
        shown = look_up(table, [str(image.number) for image in images], labels)
    by_id = {files[image.number].stem: image for image in images}
    if len(by_id) < len(images):
        raise AdvCAMError(f"{path} has two images of one file name")
    samples = (Sample(id, files[image.number], k) for (id, image), k in zip(by_id.items(), shown, strict=True))
    ready = folder / MASKS if masks == AUTO else Path(masks)
    drawn = CocoMasks(by_id, instances)
    read: CocoMasks | CocoMaskFiles
    if masks == DRAW or (masks == AUTO and not ready.is_dir()):
        read = drawn
    elif ready.is_dir():
        read = CocoMaskFiles((ready,), len(classes))
    else:
        raise AdvCAMError(f"no such folder of masks: {ready}")
    return SegmentationData("coco", folder, split, classes, tuple(samples), read, drawn.objects)


class CocoMaskFiles(MaskFiles):
    """Reads the true label map of a sample from a PNG named by its id or by the digits of its number."""

    def find(self, id: str) -> Path | None:
        return super().find(id) or super().find(id[-12:])


@dataclass(frozen=True, eq=False)
class CocoMasks:
    """Draws the true label map of a sample from the instances; ``images`` is by the samples' ids."""

    images: Mapping[str, CocoImage]
    instances: CocoInstances

    def __call__(self, sample: Sample) -> Tensor:
        """Draw the label map ``(H, W)`` uint8; raises `NoMaskError` where the JSON does not have the image."""
        return torch.from_numpy(self.instances.draw(self._image(sample)))

    def objects(self, sample: Sample) -> Instances:
        """Return the instances; raises `NoMaskError` where the JSON does not have the image."""
        return self.instances.objects(self._image(sample))

    def _image(self, sample: Sample) -> CocoImage:
        image = self.images.get(sample.id)
        if image is None:
            raise NoMaskError(f"no mask of {sample.id}: the annotations do not have this image")
        size = size_if_readable(sample.image)
        if size is not None and size != image.size:
            raise AdvCAMError(
                f"image {sample.image} has {size[1]}x{size[0]} pixels, and {image.size[1]}x{image.size[0]} in the "
                "annotations; use the published image, or scale the annotations with it"
            )
        return image


def find_coco(root: str | Path) -> Path:
    """Return the folder of COCO's ``annotations``: a root, or ``coco`` in it."""
    looked_for = "annotations/instances_train2014.json and the like, in it and in coco"
    return find_root("MS COCO", root, ["coco", "COCO", "MSCOCO"], lambda folder: bool(json_splits(folder)), looked_for)


def json_splits(coco: Path) -> list[str]:
    """Return the names of the splits whose annotations are there."""
    return sorted(f.stem.removeprefix("instances_") for f in (coco / "annotations").glob("instances_*.json"))


def _find_json(coco: Path, split: str) -> Path:
    path = coco / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        there = ", ".join(json_splits(coco))
        raise MissingSplitError(f"no split {split!r} of COCO: looked for {path}; there are {there}")
    return path


def _find_images(coco: Path, split: str, images: Sequence[CocoImage]) -> dict[int, Path]:
    """Return the image files by number, in the layout that most of them are found in."""
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
    by_key = {str(image.number): image for image in images}
    listed = [coco_key(id) for id in read_list(path).ids]
    missing = [id for id in listed if id not in by_key]
    if missing:
        raise AdvCAMError(f"{path} names {len(missing)} images that the annotations do not have ({few(missing)})")
    return [by_key[id] for id in listed]


@dataclass(frozen=True)
class CocoImage:
    """An image of the JSON: its id, file name, and height and width."""

    number: int
    file: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CocoInstances:
    """The instances of all images: an indexed ``pycocotools.coco.COCO``, and 0-based classes by category id."""

    api: Any
    class_of: Mapping[int, int]

    def of(self, image: CocoImage) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.imgToAnns.get(image.number, [])
        return found

    def labels(self, image: CocoImage) -> tuple[int, ...]:
        """Return the classes of an image's instances, crowds included, ascending."""
        return tuple(sorted({self.class_of[annotation["category_id"]] for annotation in self.of(image)}))

    def draw(self, image: CocoImage) -> np.ndarray:
        """Draw the label map ``(H, W)`` uint8 of an image.

        Instances are painted by decreasing area, so that what is in front of something larger stays visible; of equal
        areas, the later in the file is on top. Crowds are painted as void (255), in the same order: they cover the
        larger instances that they are part of. COCO defines no label maps; order and crowds are this project's choice,
        as the maps in use document neither.
        """
        mask = np.zeros(image.size, np.uint8)
        for annotation, shape in sorted(self._shapes(image), key=lambda pair: -int(pair[1].sum())):
            mask[shape] = VOID if annotation.get("iscrowd") else self.class_of[annotation["category_id"]] + 1
        return mask

    def objects(self, image: CocoImage) -> Instances:
        """Return an image's instances as they are annotated: they may overlap."""
        shapes = self._shapes(image)
        masks = np.stack([shape for _, shape in shapes]) if shapes else np.zeros((0, *image.size), bool)
        crowds = frozenset(i for i, (annotation, _) in enumerate(shapes) if annotation.get("iscrowd"))
        classes = tuple(self.class_of[annotation["category_id"]] for annotation, _ in shapes)
        return Instances(classes, torch.from_numpy(masks), crowds=crowds)

    def _shapes(self, image: CocoImage) -> list[tuple[dict[str, Any], np.ndarray]]:
        """The annotations of an image, each with its mask ``(H, W)`` bool."""
        decode = _pycocotools().mask.decode
        try:
            if len(self.of(image)) * image.size[0] * image.size[1] > _MOST_NUMBERS:
                raise ValueError(f"{len(self.of(image))} masks of {image.size[0]} x {image.size[1]} pixels")
            shapes = [_checked_shape(annotation["segmentation"], *image.size) for annotation in self.of(image)]
            codes = [self.api.annToRLE({"image_id": image.number, "segmentation": shape}) for shape in shapes]
            return [(a, decode(code).astype(bool)) for a, code in zip(self.of(image), codes, strict=True)]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise AdvCAMError(f"{image.file} has an instance with {error}; use the published annotations") from error


def _checked_shape(shape: Any, height: int, width: int) -> Any:
    """Return a segmentation that pycocotools can take; on others it may hang or crash."""
    if isinstance(shape, dict):
        size, counts = shape["size"], shape["counts"]
        if size != [height, width]:
            raise ValueError(f"a run-length code of size {str(size)[:40]} in an image of {[height, width]}")
        counts = _uncompressed(counts) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError("a run-length code that is not made of counts")
        if sum(counts) != height * width:
            raise ValueError(f"a run-length code of {sum(counts)} pixels in an image of {height * width}")
        return {"size": [height, width], "counts": counts}
    polygons = []
    for corners in shape:
        beyond = (corners < -_SLACK) | (corners > np.resize((width + _SLACK, height + _SLACK), len(corners)))
        if beyond.any() or not np.isfinite(corners).all():
            raise ValueError("a vertex outside of the image")
        if len(corners) >= 6:  # two vertices have no area, and pycocotools would take them for a box
            polygons.append(corners)
    return polygons or [np.zeros(6)]


def _uncompressed(text: str) -> list[int]:
    """Return the counts of a compressed run-length code.

    A count is written in groups of 5 bits, the lowest first, with a sign bit; from the third on, it is the difference
    from the count two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        group = character - 48
        if not 0 <= group < 64 or shift > 35:
            raise ValueError("a compressed run-length code that cannot be decoded")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group & 16) << 1 << (shift - 5)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def read_instances(path: Path) -> tuple[tuple[str, ...], list[CocoImage], CocoInstances]:
    """Read an ``instances_*.json``: classes by their categories' ids, images in the file's order, and instances."""
    api = _pycocotools().coco.COCO()
    try:
        content = read_json(path, MAX_BYTES)
        names = {_integer(category["id"]): str(category["name"]) for category in content["categories"]}
        images = [_image(image) for image in content["images"]]
        for annotation in content["annotations"]:
            shape = annotation["segmentation"]
            if not shape or not isinstance(shape, (list, dict)):
                raise ValueError(f"annotation {annotation['id']} has no segmentation")
            if isinstance(shape, list):
                annotation["segmentation"] = [_polygon(corners) for corners in shape]
        _require_known(path, "image", (a["image_id"] for a in content["annotations"]), {i.number for i in images})
        _require_known(path, "category", (a["category_id"] for a in content["annotations"]), names.keys())
        api.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            api.createIndex()
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such annotations: {path}") from error
    except AdvCAMError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise AdvCAMError(f"{path} is no instances_*.json of COCO ({type(error).__name__}: {error})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdvCAMError(f"cannot read {path} ({error}): is it truncated or damaged?") from error
    if not images or len(names) >= VOID:
        raise AdvCAMError(f"{path} lists {len(images)} images and {len(names)} categories; label maps hold 1 to 254")
    repeated = [number for number, count in Counter(image.number for image in images).items() if count > 1]
    if repeated:
        raise AdvCAMError(f"{path} has two images of one id: {few(repeated)}; remove one of each")
    class_of = {number: k for k, number in enumerate(sorted(names))}
    return tuple(names[number] for number in class_of), images, CocoInstances(api, class_of)


def _image(image: Mapping[str, Any]) -> CocoImage:
    height, width = _integer(image["height"]), _integer(image["width"])
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not (height > 0 and width > 0 and height * width <= limit):
        raise ValueError(f"image {image['id']} of {width}x{height} pixels")
    name = PurePosixPath(image["file_name"]).name
    if not name:
        raise ValueError(f"image {image['id']} without a file name")
    return CocoImage(_integer(image["id"]), name, (height, width))


def _polygon(corners: Any) -> np.ndarray:
    """Return x and y in turn as float64, which takes a quarter of the memory of a list."""
    polygon = np.array(corners)
    if polygon.ndim != 1 or len(polygon) % 2 or (len(polygon) and polygon.dtype.kind not in "if"):
        raise ValueError(f"a polygon is not a list of x, y, x, y, ...: {str(corners)[:40]}")
    return polygon.astype(np.float64)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} where a whole number belongs")
    return value


def _require_known(path: Path, what: str, wanted: Iterable[Any], known: Iterable[int]) -> None:
    unknown = set(wanted) - set(known)
    if unknown:
        raise AdvCAMError(f"{path} has annotations of {what} {few(unknown)}, which it does not define")


def _pycocotools() -> Any:
    try:
        import pycocotools
        import pycocotools.coco
        import pycocotools.mask
    except ImportError as error:
        raise AdvCAMError("reading COCO needs pycocotools: pip install 'advcam_attr[segmentation]'") from error
    return pycocotools
