"""An ``instances_*.json`` of COCO in; its images and their instances, as arrays that are small and quick to send, out.

The JSON of ``train2014`` makes millions of Python objects. What masks are drawn from is kept as a few flat arrays
instead, which data loaders' workers share or receive at no great cost.
"""

from __future__ import annotations

import array
import contextlib
import gc
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from advcam_attr.data.lists import few
from advcam_attr.data.masks import VOID
from advcam_attr.types import AdvCAMError


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
