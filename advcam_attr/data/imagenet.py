"""ImageNet-1K and ImageNetV2: class folders, or a flat folder, with the boxes of XML annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from advcam_attr.data.images import is_image, stored_size
from advcam_attr.data.labels import few, read_xml
from advcam_attr.data.samples import (
    Box,
    LocalizationData,
    MissingSplitError,
    checked_box,
    clipped_box,
    find_root,
    image_ids,
)
from advcam_attr.reading import read_lines
from advcam_attr.types import AdvCAMError, Sample

#: The splits and the numbers of their published images; ``val2`` is ImageNetV2's Threshold0.7.
SPLITS = {"train": 1281167, "val": 50000, "val2": 10000}

#: Kaggle's list of classes: a synset and its words a line, in the order of the classes.
MAPPING = "LOC_synset_mapping.txt"

#: The boxes of Choe et al. for ImageNetV2: ``0/0.jpeg,x0,y0,x1,y1`` a line.
V2_BOXES = "ImageNetV2_boxes.txt"

_SYNSET = re.compile(r"n\d{8}")


def read_imagenet(
    root: str | Path, split: str = "val", *, images: str | Path | None = None, boxes: str | Path | None = None
) -> LocalizationData:
    """Read a split of ImageNet-1K from class folders, or from a flat folder of images with XML annotations.

    The class of a synset is its place among the sorted synsets of `MAPPING`, or of the class folders where there is no
    such file. Folders with numeric names (ImageNetV2) are the classes of these numbers. Boxes of XML annotations are
    clipped to the image.

    Args:
        root: the folder that `MAPPING` or the splits' folders are in.
        split: ``train``, ``val``, ``val2`` for ImageNetV2, or the name of another folder.
        images: the folder of the images; default: ``<split>``, ``Data/CLS-LOC/<split>`` or
            ``ILSVRC/Data/CLS-LOC/<split>``.
        boxes: the folder of ``<id>.xml`` (of ``val2``, the file `V2_BOXES`); default: ``Annotations/CLS-LOC/<split>``
            or ``bbox/<split>``, if present.

    Raises:
        AdvCAMError: there are no images, an image has no class, an annotation is missing, damaged or of another class,
            or a box is outside of its image.
    """
    root = Path(root)
    folder = _find_images(root, split) if images is None else Path(images)
    names = _read_mapping(root)
    annotated = _annotations(root, split) if boxes is None else Path(boxes)
    if annotated is not None and not annotated.exists():
        raise AdvCAMError(f"no such annotations: {annotated}")
    classes = class_folders(folder)
    if not classes:
        return _flat(folder, split, names, annotated)
    samples, paths = _in_folders(folder, classes, list(names or {}))
    shown = tuple(names.values()) if names else tuple(classes)
    found: dict[str, tuple[tuple[int, int], tuple[Box, ...]]] = {}
    if annotated is not None and annotated.is_file():
        found = _read_v2_boxes(annotated, samples, paths)
    elif annotated is not None:
        for sample in samples:
            synset, size, truth = read_box_annotation(annotated / f"{sample.id}.xml")
            if synset != sample.image.parent.name:
                raise AdvCAMError(
                    f"{annotated / sample.id}.xml is of {synset}, but the image is in {sample.image.parent}"
                )
            found[sample.id] = size, truth
    return _with_boxes(folder, split, shown, samples, found)


def _find_images(root: Path, split: str) -> Path:
    places = [root / split, *(root / above / "Data" / "CLS-LOC" / split for above in ("", "ILSVRC"))]
    places += [place / split for place in (root / "imagenet", root / "ILSVRC2012")]
    for place in places:
        if place.is_dir():
            return place
    raise MissingSplitError(
        f"no split {split!r} of ImageNet at {root}: looked for {', '.join(str(p) for p in places[:2])}"
        + ("" if root.is_dir() else "; there is no such folder")
    )


def find_imagenet(root: str | Path) -> Path:
    """Return the folder of ImageNet: a root with `MAPPING` or class folders in ``train`` or ``val``, or below it."""
    looked_for = f"{MAPPING}, and for train or val with folders named by synsets"
    return find_root("ImageNet", root, ["imagenet", "ILSVRC2012"], _is_imagenet, looked_for)


def _is_imagenet(folder: Path) -> bool:
    if (folder / MAPPING).is_file() or (folder / "Data" / "CLS-LOC").is_dir():
        return True
    return any(any(map(_SYNSET.fullmatch, _folders(folder / split))) for split in ("train", "val"))


def _read_mapping(root: Path) -> dict[str, str] | None:
    """Return the words of each synset, in order; None where there is no `MAPPING`."""
    paths = (folder / MAPPING for folder in (root, root / "imagenet", root / "ILSVRC2012"))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    words: dict[str, str] = {}
    for place, line in enumerate(read_lines(path, "list of classes"), start=1):
        synset, _, text = line.strip().partition(" ")
        if not synset:
            continue
        if not _SYNSET.fullmatch(synset) or synset in words:
            raise AdvCAMError(f"{path}, line {place}: {line[:60]!r} is not a new synset and its words")
        words[synset] = text.strip() or synset
    return dict(sorted(words.items()))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in the order of the classes: numbers by value, synsets by name."""
    if not folder.is_dir():
        raise AdvCAMError(f"no such folder of images: {folder}")
    names = _folders(folder)
    if names and all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(filter(_SYNSET.fullmatch, names))


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


def _image_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if is_image(Path(entry.name)))


def _in_folders(folder: Path, classes: Sequence[str], synsets: Sequence[str]) -> tuple[tuple[Sample, ...], list[str]]:
    label: Callable[[str], int]
    if classes[0].isdecimal():
        label = int
    else:
        order = {synset: k for k, synset in enumerate(synsets or classes)}
        unknown = [name for name in classes if name not in order]
        if unknown:
            raise AdvCAMError(f"{folder} has folders of synsets that {MAPPING} does not have ({few(unknown)})")
        label = order.__getitem__
    paths: list[str] = []
    labels: list[int] = []
    for name in classes:
        files = _image_files(folder / name)
        if classes[0].isdecimal():
            files.sort(key=lambda file: (len(file), file))  # 2.jpeg before 10.jpeg
        paths += [f"{name}/{file}" for file in files]
        labels += [label(name)] * len(files)
    if not paths:
        raise AdvCAMError(f"no images in the class folders of {folder}")
    if synsets and max(labels) >= len(synsets):
        raise AdvCAMError(f"{folder} has a class {max(labels)}, but {MAPPING} has {len(synsets)}")
    ids = image_ids([f"{folder.name}/{path}" for path in paths])
    samples = (Sample(id, folder / path, (k,)) for id, path, k in zip(ids, paths, labels, strict=True))
    return tuple(samples), paths


def _annotations(root: Path, split: str) -> Path | None:
    if split == "val2":
        files = [root / V2_BOXES, root / "release" / V2_BOXES]
        return next((file for file in files if file.is_file()), None)
    places = [root / above / "Annotations" / "CLS-LOC" / split for above in ("", "ILSVRC")]
    places += [root / "bbox" / split, root / "imagenet" / "bbox" / split]
    return next((place for place in places if any(place.glob("*.xml"))), None)


def _flat(folder: Path, split: str, names: Mapping[str, str] | None, annotated: Path | None) -> LocalizationData:
    files = _image_files(folder)
    if not files:
        raise AdvCAMError(f"no images and no class folders in {folder}")
    if annotated is None or annotated.is_file():
        raise AdvCAMError(
            f"the classes of the {len(files)} images of {folder} are not known: sort them into folders named by their "
            f"synsets, or unpack their annotations to Annotations/CLS-LOC/{split}"
        )
    ids = image_ids(files)
    found = {id: read_box_annotation(annotated / f"{id}.xml") for id in ids}
    synsets = list(names or sorted({synset for synset, _, _ in found.values()}))
    order = {synset: k for k, synset in enumerate(synsets)}
    unknown = {synset for synset, _, _ in found.values()} - order.keys()
    if unknown:
        raise AdvCAMError(f"{annotated} has synsets that {MAPPING} does not have ({few(sorted(unknown))})")
    samples = tuple(Sample(id, folder / file, (order[found[id][0]],)) for id, file in zip(ids, files, strict=True))
    shown = tuple(names.values()) if names else tuple(synsets)
    return _with_boxes(folder, split, shown, samples, {id: about[1:] for id, about in found.items()})


def _with_boxes(
    folder: Path,
    split: str,
    classes: tuple[str, ...],
    samples: tuple[Sample, ...],
    found: Mapping[str, tuple[tuple[int, int], tuple[Box, ...]]],
) -> LocalizationData:
    sizes = {id: size for id, (size, _) in found.items()}
    return LocalizationData(
        "imagenet", folder, split, classes, samples, {id: boxes for id, (_, boxes) in found.items()}, sizes
    )


def read_box_annotation(path: Path) -> tuple[str, tuple[int, int], tuple[Box, ...]]:
    """Read the synset, the image's height and width, and the boxes of an ImageNet annotation, XML as PASCAL VOC's."""
    root = read_xml(path)
    try:
        height, width = (int(root.findtext(f"size/{side}", "")) for side in ("height", "width"))
        objects = [(name.text or "").strip() for name in root.iterfind("object/name")]
        published = [
            [float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iterfind("object/bndbox")
        ]
    except ValueError as error:
        raise AdvCAMError(
            f"{path} is no annotation of ImageNet: it needs size, and objects with name and bndbox"
        ) from error
    if len(set(objects)) != 1 or len(objects) != len(published):
        raise AdvCAMError(
            f"{path} has objects of {len(set(objects))} synsets and {len(published)} boxes; ImageNet's images have one "
            "class, and a box for each object"
        )
    boxes = (clipped_box(x0, y0, x1, y1, (height, width), str(path)) for x0, y0, x1, y1 in published)
    return objects[0], (height, width), tuple(boxes)


def _read_v2_boxes(
    file: Path, samples: Sequence[Sample], paths: Sequence[str]
) -> dict[str, tuple[tuple[int, int], tuple[Box, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for place, line in enumerate(read_lines(file, "list of boxes"), start=1):
        path, *numbers = line.strip().split(",")
        try:
            corners = tuple(int(number) for number in numbers)
        except ValueError:
            corners = ()
        if len(corners) == 4:
            found.setdefault(path, []).append(corners)
        elif place > 1 and path:  # the first line may be a head
            raise AdvCAMError(f"{file}, line {place}: {line[:80]!r} is not a path and x0,y0,x1,y1")
    missing = [path for path in paths if path not in found]
    if missing:
        raise AdvCAMError(
            f"{file} has no box for {len(missing)} of {len(paths)} images ({few(missing)}); the images of downloads "
            "since December 2020 have other names: rename them"
        )
    truth = {}
    for sample, path in zip(samples, paths, strict=True):
        size = stored_size(sample.image)
        truth[sample.id] = size, tuple(checked_box(box, size, f"{file}, {path}") for box in found[path])
    return truth
