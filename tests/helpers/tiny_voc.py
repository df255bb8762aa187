"""A PASCAL VOC 2012 of a few small photographs, written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from advcam_attr.data.masks import palette
from advcam_attr.data.voc import CLASSES

OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"


def write_annotation(path: Path, names: Sequence[str], difficult: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(OBJECT.format(name, difficult) for name in names)
    path.write_text(f"<annotation><folder>VOC2012</folder><owner><name>person</name></owner>{objects}</annotation>")


def write_mask(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette().ravel().tolist())
    image.save(path)


def write_voc(root: Path, splits: Mapping[str, Mapping[str, Sequence[str]]], size: tuple[int, int] = (6, 8)) -> Path:
    """Write photographs, annotations, masks and lists.

    Args:
        root: the folder ``VOC2012`` to make.
        splits: names of objects by id by split.
        size: height and width of all pictures.
    """
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages"):
        folder.mkdir(parents=True)
    for split, objects in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{id}\n" for id in objects))
        for index, (id, names) in enumerate(objects.items()):
            labels = np.zeros(size, np.uint8)
            for row, name in enumerate(names):
                labels[row] = CLASSES.index(name) + 1
            Image.new("RGB", size[::-1], (40 * index, 80, 120)).save(root / "JPEGImages" / f"{id}.jpg")
            write_annotation(root / "Annotations" / f"{id}.xml", names)
            write_mask(root / "SegmentationClass" / f"{id}.png", labels)
    return root
