"""Instance masks as files: PASCAL VOC's ``SegmentationObject``, and the same with classes and scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advcam_attr.data.images import open_image
from advcam_attr.data.masks import MaskFiles, palette, read_labels, write_png
from advcam_attr.reading import parse_json
from advcam_attr.types import MOST_INSTANCES, VOID, AdvCAMError, Instances, NoMaskError, Sample

#: PASCAL VOC's folder of instances.
OBJECTS = "SegmentationObject"

#: The key of the PNG's text that holds classes and scores.
_KEY = "advcam_instances"

#: The most pixels of all masks of an image together.
_MOST_NUMBERS = 1 << 30

#: Longest text that is read: `MOST_INSTANCES` need a tenth of it.
_LONGEST = 1 << 16


@dataclass(frozen=True)
class ObjectFiles:
    """Reads the true instances of a sample from a folder of PASCAL VOC's PNGs: 1 to n, 0 background, 255 void.

    The class of an instance is the label that most of its pixels have in the sample's label map.
    """

    folder: Path
    masks: MaskFiles

    def __call__(self, sample: Sample) -> Instances:
        """Read the instances; raises `NoMaskError` where there are none."""
        path = self.folder / f"{sample.id}.png"
        if not path.is_file():
            raise NoMaskError(f"no instances of {sample.id}: {path} is missing")
        numbers, labels = read_labels(path, MOST_INSTANCES), self.masks(sample)
        if numbers.shape != labels.shape:
            raise AdvCAMError(
                f"{path} has {_by(numbers)} pixels and the mask of {sample.id} {_by(labels)}; they must be of one size"
            )
        masks = _split(numbers)
        classes = []
        for mask in masks:
            counts = labels[mask].long().bincount(minlength=VOID + 1)
            counts[0] = counts[VOID] = 0
            if not counts.any():
                raise AdvCAMError(f"{path} has an instance where the mask of {sample.id} has no class; replace one")
            classes.append(int(counts.argmax()) - 1)
        return Instances(tuple(classes), masks)


def write_instances(path: Path, instances: Instances, settings: str = "") -> None:
    """Write disjoint instances as an 8-bit palette PNG, atomically: pixels are 0, or an instance's place from 1 on.

    Classes and scores are in the file's text. ``settings`` is a digest of what the instances depend on.
    """
    places = torch.arange(1, len(instances.masks) + 1, dtype=torch.uint8)
    numbers = (instances.masks.cpu() * places[:, None, None]).sum(0, dtype=torch.uint8)
    image = Image.fromarray(numbers.numpy())
    image.putpalette(palette().ravel().tolist())
    about = {"classes": instances.classes, "scores": [round(score, 6) for score in instances.scores]}
    write_png(path, image, settings, {_KEY: json.dumps(about)})


def read_instances(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> Instances:
    """Read what `write_instances` wrote; ``size`` is the expected height and width."""
    with open_image(path, noun="file of instances") as image:
        image.load()
        text, numbers = image.info.get(_KEY), torch.from_numpy(np.array(image))
    if not isinstance(text, str) or len(text) > _LONGEST or numbers.ndim != 2 or numbers.dtype != torch.uint8:
        raise AdvCAMError(f"{path} holds no instances: it needs a palette PNG that advcam wsss instances wrote")
    if size is not None and tuple(numbers.shape) != size:
        raise AdvCAMError(f"{path} has {_by(numbers)} pixels and its image {size[1]}x{size[0]}: make it again")
    try:
        about = parse_json(text)
        classes, scores = tuple(about["classes"]), tuple(about["scores"])
        whole = all(type(k) is int and 0 <= k < num_classes for k in classes)
        sound = whole and len(classes) == len(scores) and all(0 <= float(score) <= 1 for score in scores)
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound or len(classes) != len(_numbers(numbers)):
        raise AdvCAMError(f"{path} is damaged, or of other classes than these {num_classes}: make it again")
    return Instances(classes, _split(numbers), tuple(map(float, scores)))


def _split(numbers: Tensor) -> Tensor:
    """The mask ``(M, H, W)`` bool of each number but background and void, ascending."""
    return numbers == _numbers(numbers)[:, None, None]


def _numbers(image: Tensor) -> Tensor:
    found: Tensor = image.unique()
    found = found[(found > 0) & (found < VOID)]
    if len(found) * image.numel() > _MOST_NUMBERS:
        raise AdvCAMError(f"{len(found)} instances of {_by(image)} pixels are too many; make the image smaller")
    return found


def _by(image: Tensor) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
