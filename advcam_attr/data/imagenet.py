"""The folder of ImageNet-1K (or ImageNetV2) in; its splits, with one class an image and the boxes there are, out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from advcam_attr.data.images import is_image, stored_size
from advcam_attr.data.labels import few, read_elements
from advcam_attr.data.samples import Box, LocalizationData, checked_box, clipped_box, image_ids
from advcam_attr.types import AdvCAMError, Sample

#: The splits, and how many photographs the published ones have; ``val2`` is ImageNetV2's Threshold0.7.
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

    The class of a synset is its place among the sorted synsets, of the list `MAPPING` if it is there and else of the
    class folders. Folders named by numbers (ImageNetV2) are the classes of these numbers. Boxes of XML annotations are
    copied, cut off at the last pixel; without annotations there are no boxes.

    Args:
        root: the folder that `MAPPING` or the splits' folders are in.
        split: ``train``, ``val``, or ``val2`` for ImageNetV2; another folder's name will do, too.
        images: the folder of the images; else ``<split>``, ``Data/CLS-LOC/<split>`` or ``ILSVRC/Data/CLS-LOC/<split>``.
        boxes: the folder of ``<id>.xml`` (or for ``val2`` the file `V2_BOXES`); else it is looked for at
            ``Annotations/CLS-LOC/<split>`` and ``bbox/<split>``.

    Raises:
        AdvCAMError: there are no images, an image has no class, an annotation is missing, damaged or of another class,
            or a box is not in its image.

    Example:
        >>> data = read_imagenet("imagenet", "val")  # doctest: +SKIP
        >>> len(data.samples), data.samples[0].id, data.classes[0]  # doctest: +SKIP
        (50000, 'ILSVRC2012_val_00000001', 'tench, Tinca tinca')
    """
    root = Path(root)
    folder = find_images(root, split) if images is None else Path(images)
    names = read_mapping(root)
    annotated = _annotations(root, split) if boxes is None else Path(boxes)
    if annotated is not None and not annotated.exists():
        raise AdvCAMError(f"no such annotations: {annotated}")
    classes = class_folders(folder)
    if not classes:
        return _flat(folder, split, names, annotated)
    synsets = list(names or {})
    samples, ids = _in_folders(folder, classes, synsets)
    shown = tuple(names.values()) if names else tuple(classes)
    if annotated is None:
        return LocalizationData("imagenet", folder, split, shown, samples, {}, {})
    if annotated.is_file():
        return _with_v2_boxes(folder, split, shown, samples, ids, annotated)
    found = {sample.id: read_box_annotation(annotated / f"{sample.id}.xml") for sample in samples}
    for sample in samples:
        if sample.image.parent.name != found[sample.id][0]:
            raise AdvCAMError(
                f"{annotated / sample.id}.xml is of {found[sample.id][0]}, but the image is in {sample.image.parent}"
            )
    return _annotated("imagenet", folder, split, shown, samples, {id: about[1:] for id, about in found.items()})


def find_images(root: Path, split: str) -> Path:
    """The folder of a split's images.

    Raises:
        AdvCAMError: there is none.
    """
    places = [root / split, *(root / above / "Data" / "CLS-LOC" / split for above in ("", "ILSVRC"))]
    places += [place / split for place in (root / "imagenet", root / "ILSVRC2012")]
    for place in places:
        if place.is_dir():
            return place
    raise AdvCAMError(
        f"no split {split!r} of ImageNet at {root}: looked for {', '.join(str(p) for p in places[:2])}"
        + ("" if root.is_dir() else "; there is no such folder")
    )


def find_imagenet(root: str | Path) -> Path:
    """The folder of ImageNet: a root with `MAPPING`, or with class folders in ``train`` or ``val``, or below it.

    Raises:
        AdvCAMError: there is none.
    """
    root = Path(root)
    for folder in (root, root / "imagenet", root / "ILSVRC2012"):
        if (folder / MAPPING).is_file() or (folder / "Data" / "CLS-LOC").is_dir():
            return folder
        if any(any(map(_SYNSET.fullmatch, _folders(folder / split))) for split in ("train", "val")):
            return folder
    raise AdvCAMError(
        f"no ImageNet at {root}: looked for {MAPPING}, and for train or val with folders named by synsets"
        + ("" if root.is_dir() else "; there is no such folder")
    )


def read_mapping(root: Path) -> dict[str, str] | None:
    """The words of each synset, in the order of the sorted synsets; None without a list at ``root``.

    Raises:
        AdvCAMError: a line is not a synset and its words, or a synset comes twice.
    """
    path = next((p for p in (root / MAPPING, root / "imagenet" / MAPPING, root / "ILSVRC2012" / MAPPING)
                 if p.is_file()), None)  # fmt: skip
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdvCAMError(f"cannot read {path}: it must be a text file") from error
    words: dict[str, str] = {}
    for place, line in enumerate(lines, start=1):
        synset, _, text = line.strip().partition(" ")
        if not synset:
            continue
        if not _SYNSET.fullmatch(synset) or synset in words:
            raise AdvCAMError(f"{path}, line {place}: {line[:60]!r} is not a new synset and its words")
        words[synset] = text.strip() or synset
    return dict(sorted(words.items()))


def class_folders(folder: Path) -> list[str]:
    """The class folders in a folder, in the order of the classes: numbers as numbers, synsets by name.

    Raises:
        AdvCAMError: the folder does not exist.

    Example:
        >>> class_folders(Path("val2"))[:3]  # doctest: +SKIP
        ['0', '1', '2']
    """
    if not folder.is_dir():
        raise AdvCAMError(f"no such folder of images: {folder}")
    names = _folders(folder)
    if names and all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(filter(_SYNSET.fullmatch, names))


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


def _in_folders(folder: Path, classes: Sequence[str], synsets: Sequence[str]) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples of class folders, and their paths in the folder."""
    label: Callable[[str], int]
    if classes[0].isdecimal():
        label = int
    else:
        order = {synset: k for k, synset in enumerate(synsets or classes)}
        strangers = [name for name in classes if name not in order]
        if strangers:
            raise AdvCAMError(f"{folder} has folders of synsets that {MAPPING} does not have ({few(strangers)})")
        label = order.__getitem__
    paths: list[str] = []
    labels: list[int] = []
    for name in classes:
        files = sorted(entry.name for entry in os.scandir(folder / name) if is_image(Path(entry.name)))
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
    """Images side by side, whose annotations tell their classes."""
    files = sorted(entry.name for entry in os.scandir(folder) if is_image(Path(entry.name)))
    if not files:
        raise AdvCAMError(f"no images and no class folders in {folder}")
    if annotated is None or annotated.is_file():
        raise AdvCAMError(
            f"the classes of the {len(files)} images of {folder} are not known: sort them into folders named by their "
            f"synsets, or unpack their annotations to Annotations/CLS-LOC/{split}"
        )
    ids = image_ids(files)
    found = {id: read_box_annotation(annotated / f"{id}.xml") for id in ids}
    synsets = list(names or sorted({about[0] for about in found.values()}))
    order = {synset: k for k, synset in enumerate(synsets)}
    strangers = {about[0] for about in found.values()} - order.keys()
    if strangers:
        raise AdvCAMError(f"{annotated} has synsets that {MAPPING} does not have ({few(sorted(strangers))})")
    samples = tuple(Sample(id, folder / file, (order[found[id][0]],)) for id, file in zip(ids, files, strict=True))
    shown = tuple(names.values()) if names else tuple(synsets)
    return _annotated("imagenet", folder, split, shown, samples, {id: about[1:] for id, about in found.items()})


def _annotated(
    name: str,
    folder: Path,
    split: str,
    classes: tuple[str, ...],
    samples: tuple[Sample, ...],
    found: Mapping[str, tuple[tuple[int, int], tuple[Box, ...]]],
) -> LocalizationData:
    boxes = {id: about[1] for id, about in found.items()}
    return LocalizationData(name, folder, split, classes, samples, boxes, {id: about[0] for id, about in found.items()})


def read_box_annotation(path: Path) -> tuple[str, tuple[int, int], tuple[Box, ...]]:
    """The synset of an ImageNet annotation, the image's height and width, and its boxes.

    Args:
        path: an XML file as PASCAL VOC's: ``size``, and ``object`` with ``name`` and ``bndbox``.

    Raises:
        AdvCAMError: the file is missing or damaged, has no object or objects of several synsets, or a box is not in
            the image.
    """
    elements = read_elements(path)
    try:
        size = {tags[-1]: int(text) for tags, text in elements if tags[:2] == ("annotation", "size") and len(tags) == 3}
        height, width = size["height"], size["width"]
        objects = [text for tags, text in elements if tags == ("annotation", "object", "name")]
        corners: dict[str, list[float]] = {name: [] for name in ("xmin", "ymin", "xmax", "ymax")}
        for tags, text in elements:
            if len(tags) == 4 and tags[:3] == ("annotation", "object", "bndbox"):
                corners[tags[3]].append(float(text))
        published = list(zip(*corners.values(), strict=True))
    except (KeyError, ValueError) as error:
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


def _with_v2_boxes(
    folder: Path, split: str, classes: tuple[str, ...], samples: tuple[Sample, ...], paths: Sequence[str], file: Path
) -> LocalizationData:
    """The boxes of ImageNetV2, by the paths of the images."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for place, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
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
    boxes, sizes = {}, {}
    for sample, path in zip(samples, paths, strict=True):
        sizes[sample.id] = stored_size(sample.image)
        boxes[sample.id] = tuple(checked_box(box, sizes[sample.id], f"{file}, {path}") for box in found[path])
    return LocalizationData("imagenet", folder, split, classes, samples, boxes, sizes)
