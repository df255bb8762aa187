"""The folder of MS COCO 2014 in; its splits out, with label maps drawn from the published JSON."""

from __future__ import annotations

import array
import contextlib
import gc
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advcam_attr.data.images import size_if_readable
from advcam_attr.data.labels import coco_key, few, look_up, read_label_table, read_list
from advcam_attr.data.masks import MaskFiles
from advcam_attr.data.samples import SegmentationData
from advcam_attr.types import VOID, AdvCAMError, NoMaskError, Sample

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

    A photograph that is not there is no error before it is read; `advcam_attr.data.samples.without_missing`
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


@dataclass(frozen=True)
class CocoImage:
    """An image of the JSON.

    Attributes:
        number: its id.
        file: its file's name.
        size: height and width.
        instances: where the image's instances begin and end in `CocoInstances`.
    """

    number: int
    file: str
    size: tuple[int, int]
    instances: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CocoInstances:
    """All instances, those of an image together and in the order of the file.

    Attributes:
        classes: 0-based class of each instance, ``(A,)`` uint8.
        crowd: which stand for groups, ``(A,)`` bool.
        polygons: where the polygons of each instance begin, ``(A + 1,)``; none for a run-length code.
        vertices: where the numbers of each polygon begin, ``(P + 1,)``.
        coordinates: x and y in turn, float64.
        codes: run-length codes (``size`` and ``counts``) by instance.
    """

    classes: np.ndarray
    crowd: np.ndarray
    polygons: np.ndarray
    vertices: np.ndarray
    coordinates: np.ndarray
    codes: Mapping[int, Mapping[str, Any]]

    def labels(self, image: CocoImage) -> tuple[int, ...]:
        """The classes of an image's instances, crowds included, ascending."""
        return tuple(np.unique(self.classes[slice(*image.instances)]).tolist())

    def draw(self, image: CocoImage) -> np.ndarray:
        """The image's label map ``(H, W)`` uint8.

        Instances are painted in the order of decreasing area, so that what is in front of something larger stays
        visible; of equal areas, the later in the file is above. A crowd is painted as void (255), in the same order:
        it covers the larger things that it is part of, and leaves single things in front of it their class. COCO
        defines no label maps; order and crowds are this project's choice, as the maps in use document neither.

        Raises:
            AdvCAMError: pycocotools is not installed, or a shape cannot be drawn.
        """
        coder = _pycocotools()
        try:
            shapes = [self._code(coder, index, *image.size) for index in range(*image.instances)]
            mask = np.zeros(image.size, np.uint8)
            order = sorted(range(len(shapes)), key=lambda i: -int(coder.area(shapes[i])))
            for i in order:
                index = image.instances[0] + i
                mask[coder.decode(shapes[i]) > 0] = VOID if self.crowd[index] else self.classes[index] + 1
        except (ValueError, TypeError, KeyError) as error:
            complaint = str(error) if isinstance(error, _Misfit) else f"an instance that cannot be drawn ({error})"
            raise AdvCAMError(f"{image.file} has {complaint}; take the published annotations") from error
        return mask

    def _code(self, coder: Any, index: int, height: int, width: int) -> Any:
        """pycocotools' run-length code of an instance."""
        if index not in self.codes:
            ends = self.vertices[self.polygons[index] : self.polygons[index + 1] + 1]
            corners = [self.coordinates[a:b].tolist() for a, b in itertools.pairwise(ends)]
            nothing = [[0.0] * 6]  # a polygon without area
            return coder.merge(coder.frPyObjects(corners or nothing, height, width))
        (rows, columns), counts = self.codes[index]["size"], self.codes[index]["counts"]
        if (rows, columns) != (height, width):
            raise _Misfit(f"a run-length code of {columns}x{rows} pixels in {width}x{height}")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode()}
        if sum(counts) != height * width:
            raise _Misfit(f"a run-length code of {sum(counts)} pixels in {width}x{height}")
        return coder.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)


class _Misfit(ValueError):
    """Says in words what an image has that does not fit it."""


def read_instances(path: Path) -> tuple[tuple[str, ...], list[CocoImage], CocoInstances]:
    """Read an ``instances_*.json``.

    Args:
        path: the file; the one of ``train2014`` takes about 10 seconds.

    Returns:
        The names of the classes in the order of their categories' ids, the images in the order of the file, and the
        instances.

    Raises:
        AdvCAMError: the file is missing, damaged or of another kind, two images share an id, or an annotation names an
            image or a category that the file does not define.
    """
    try:
        with _no_collection():
            names, images, instances = _parse(path, json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise AdvCAMError(f"no such annotations: {path}") from error
    except AdvCAMError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise AdvCAMError(f"{path} is no instances_*.json of COCO ({type(error).__name__}: {error})") from error
    except (OSError, ValueError) as error:
        raise AdvCAMError(f"cannot read {path} ({error}): is it truncated or damaged?") from error
    if not images or len(names) >= VOID:
        raise AdvCAMError(f"{path} lists {len(images)} images and {len(names)} categories; label maps hold 1 to 254")
    return tuple(names[number] for number in sorted(names)), images, instances


def _parse(path: Path, content: Any) -> tuple[dict[int, str], list[CocoImage], CocoInstances]:
    names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    annotations = content["annotations"]
    numbers = [int(image["id"]) for image in content["images"]]
    owners = _positions(path, "image", numbers, [a["image_id"] for a in annotations])
    classes = _positions(path, "category", sorted(names), [a["category_id"] for a in annotations])
    order = np.argsort(owners, kind="stable")
    instances = _flatten([annotations[i] for i in order.tolist()], classes[order])
    ends = np.searchsorted(owners[order], np.arange(len(numbers) + 1)).tolist()
    images = [
        CocoImage(number, PurePosixPath(image["file_name"]).name, (int(image["height"]), int(image["width"])), span)
        for number, image, span in zip(numbers, content["images"], itertools.pairwise(ends), strict=True)
    ]
    return names, images, instances


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A block that makes millions of objects and no cycles: looking for cycles would take longer than the block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _positions(path: Path, what: str, known: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    """Where each wanted id stands among the known ones, ``(A,)`` int64."""
    position = {number: index for index, number in enumerate(known)}
    if len(position) < len(known):
        twice = [number for number, count in Counter(known).items() if count > 1]
        raise AdvCAMError(f"{path} has two images of one id: {few(twice)}; keep one of each")
    strangers = {number for number in wanted if number not in position}
    if strangers:
        raise AdvCAMError(f"{path} has annotations of {what} {few(strangers)}, which it does not define")
    return np.array([position[number] for number in wanted], np.int64)


def _flatten(annotations: Sequence[Mapping[str, Any]], classes: np.ndarray) -> CocoInstances:
    coordinates = array.array("d")
    vertices, polygons, codes = [0], [0], {}
    for index, annotation in enumerate(annotations):
        shape = annotation["segmentation"]
        if isinstance(shape, Mapping):
            codes[index] = {"size": tuple(shape["size"]), "counts": shape["counts"]}
        else:
            for corners in shape:
                if len(corners) >= 6:  # two corners have no area (and pycocotools would take them for a box)
                    coordinates.extend(corners)
                    vertices.append(len(coordinates))
        polygons.append(len(vertices) - 1)
    return CocoInstances(
        classes=classes.astype(np.uint8),
        crowd=np.array([bool(a.get("iscrowd")) for a in annotations], bool),
        polygons=np.array(polygons),
        vertices=np.array(vertices),
        coordinates=np.array(coordinates, np.float64),
        codes=codes,
    )


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise AdvCAMError(
            "drawing COCO's masks needs pycocotools: pip install 'advcam_attr[segmentation]', or give a folder of masks"
        ) from error
    return mask
