"""An MS COCO 2014 of a few small images, written by hand."""

import json
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

H, W = 12, 16
#: Category ids with a gap, out of order.
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 1, "name": "person"}, {"id": 13, "name": "table"}]


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    """A polygon around the pixels left..right-1, top..bottom-1."""
    return [left, top, right, top, right, bottom, left, bottom]


def annotated(image: int, category: int, shape, crowd: int = 0) -> dict:
    return {"image_id": image, "category_id": category, "segmentation": shape, "iscrowd": crowd, "area": 1, "id": 0}


def write_coco(
    root: Path, annotations, *, split: str = "train2014", images=(9, 25), folder: str = "", name=None, changes=None
) -> Path:
    """Write images by number and their annotations, of which `changes` replaces parts; number 25 is grey."""
    name = name or (lambda number: f"COCO_{split}_{number:012d}.jpg")
    place = root / (folder or split)
    for made in (root / "annotations", place):
        made.mkdir(parents=True, exist_ok=True)
    for number in set(images):
        Image.new("L" if number == 25 else "RGB", (W, H), 90).save(place / name(number))
    listed = [{"id": n, "file_name": f"COCO_{split}_{n:012d}.jpg", "height": H, "width": W} for n in images]
    content = {"images": listed, "annotations": annotations, "categories": CATEGORIES, **(changes or {})}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


class Masks(Dataset):
    """The masks of a data set, to be read in other processes."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data.mask(self.data.samples[index])
