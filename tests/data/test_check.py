"""Taking stock of data sets: what is there, what is not, and every kind of damage found and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.data.check import check
from advcam_attr.data.coco import CLASSES, SPLITS
from advcam_attr.types import AdvCAMError
from tiny_voc import write_mask, write_voc

TRAIN = {"2007_000032": ["aeroplane", "person"], "2007_000039": ["tvmonitor"], "2007_000063": []}
VAL = {"2007_000033": ["aeroplane"]}


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "data" / "VOCdevkit" / "VOC2012", {"train": TRAIN, "val": VAL})


@pytest.fixture
def coco(tmp_path) -> Path:
    """Two images, of which the second shows nothing."""
    root = tmp_path / "data" / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2014").mkdir()
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 6, "width": 8} for n in (9, 25)]
    for image in images:
        Image.new("RGB", (8, 6)).save(root / "train2014" / image["file_name"])
    square = {"image_id": 9, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": [square], "categories": categories}
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    return root


def problems(root: Path, **options) -> dict[str, tuple[str, ...]]:
    inventory = check(root, **options)
    found = {problem.what: problem.cases for data_set in inventory.data_sets for problem in data_set.problems}
    assert inventory.sound == (not found)
    text = inventory.text()
    for what, cases in found.items():
        assert f"{len(cases)} {what}; " in text
        assert cases[0] in text
    return found


def lines(text: str) -> set[str]:
    return {" ".join(line.split()) for line in text.splitlines()}


def test_both_data_sets_are_found_below_a_folder(voc, coco):
    inventory = check(voc.parents[1], deep=True)
    assert [(d.name, d.root) for d in inventory.data_sets] == [("PASCAL VOC 2012", voc), ("MS COCO 2014", coco)]
    assert inventory.sound
    assert lines(inventory.text()) >= {
        f"PASCAL VOC 2012 in {voc}",
        "JPEGImages 4 images",
        "Annotations 4 annotations",
        "SegmentationClass 4 masks",
        "SegmentationClassAug 0 masks",
        "split listed published there labelled no object masks",
        "train 3 1464 3 2 1 3",
        "val 1 1449 1 1 0 1",
        "images of train val",
        "aeroplane 1 1",
        "person 1 0",
        "no problems",
        f"MS COCO 2014 in {coco}",
        "train2014 2 images",
        "annotations/instances_train2014.json 1 instances, 0 crowds",
        "train2014 2 82783 2 1 1 2",
        "car 1 fork 0",
        "val2014 (40504 images): it takes annotations/instances_val2014.json",
    }
    assert "train_aug (10582 images): no train_aug" in inventory.text()


@pytest.mark.parametrize("up", range(3))
def test_any_folder_above_will_do(voc, up):
    root = [voc, voc.parent, voc.parents[1]][up]
    assert [data_set.root for data_set in check(root).data_sets] == [voc]


def test_wrong_root(tmp_path):
    with pytest.raises(AdvCAMError, match=r"no data set at .*: looked for PASCAL VOC 2012 .*, MS COCO 2014 [^;]*$"):
        check(tmp_path)
    with pytest.raises(AdvCAMError, match="; there is no such folder"):
        check(tmp_path / "none")


def test_train_aug_and_test_are_counted(voc):
    write_mask(voc / "SegmentationClassAug" / "2007_000039.png", np.zeros((6, 8)))
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_000033\n")
    (data_set,) = check(voc).data_sets
    counts = {s.name: (len(s.samples), s.labelled, s.unlabelled, len(s.masked)) for s in data_set.splits}
    assert counts["train_aug"] == (3, 2, 1, 3)
    assert counts["test"] == (1, 0, 0, 1), "labels of the test split are not known"
    assert not data_set.problems
    (voc / "SegmentationClass" / "2007_000039.png").unlink()
    assert problems(voc) == {"listed images without mask": ("2007_000039",)}, "train has its own masks"


def test_damage_of_names_is_found(voc):
    (voc / "JPEGImages" / "2007_000032.jpg").unlink()
    Image.new("RGB", (8, 6)).save(voc / "JPEGImages" / "2007_000039.png")
    (voc / "Annotations" / "2007_000039.xml").unlink()
    (voc / "Annotations" / "2007_000063.xml").write_text("<annotation>")
    (voc / "SegmentationClass" / "2007_000033.png").unlink()
    found = problems(voc)
    assert found.pop("annotations that cannot be used")[0].startswith("cannot read annotation")
    assert found == {
        "listed images that are not there": ("2007_000032",),
        "ids with two images": ("2007_000039: 2007_000039.jpg, 2007_000039.png",),
        "listed images without annotation": ("2007_000039",),
        "listed images without mask": ("2007_000033",),
    }
    (train, _) = check(voc).data_sets[0].splits
    assert (train.labelled, train.unlabelled) == (1, 0), "what is not known counts in neither"


def test_bad_lists_are_problems_and_others_are_counted_all_the_same(voc):
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n2007_000032\n")
    found = problems(voc)
    assert list(found) == ["lists that cannot be used"]
    assert "names 2007_000032 twice" in found["lists that cannot be used"][0]
    assert [split.name for split in check(voc).data_sets[0].splits] == ["val"]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_of_contents_is_found_when_files_are_opened(voc, workers):
    photograph = voc / "JPEGImages" / "2007_000032.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(photograph)
    photograph.write_bytes(photograph.read_bytes()[:900])
    write_mask(voc / "SegmentationClass" / "2007_000033.png", np.full((6, 8), 21))
    write_mask(voc / "SegmentationClass" / "2007_000039.png", np.zeros((5, 8)))
    assert check(voc).sound
    found = problems(voc, deep=True, workers=workers)
    assert "2007_000032.jpg" in found.pop("images that cannot be read")[0]
    masks = sorted(found.pop("masks that cannot be used"))
    assert [name in line for name, line in zip(("000032", "000033", "000039"), masks, strict=True)] == [True] * 3
    assert not found


def test_coco_damage(coco):
    photographs = sorted((coco / "train2014").iterdir())
    photographs[0].unlink()
    photographs[1].write_bytes(b"none")
    found = problems(coco, deep=True)
    assert found["listed images that are not there"] == ("COCO_train2014_000000000009",)
    assert "000000000025.jpg" in found["images that cannot be read"][0]
    (coco / "annotations" / "instances_val2014.json").write_text("{}")
    assert "instances_val2014.json is no instances" in problems(coco)["splits that cannot be used"][0]
    (coco / "coco_seg_anno").mkdir()
    assert len(problems(coco)["listed images without mask"]) == 2


def test_real_data(data_root):
    inventory = check(data_root, deep=True)
    assert inventory.sound
    voc, coco, cub, imagenet = inventory.data_sets
    assert [{split.name: len(split.there) for split in data_set.splits} for data_set in inventory.data_sets] == [
        {"train": 70, "val": 24, "trainval": 94},
        {"train2014": 128},
        {"train": 300, "test": 122},
        {"val": 100},
    ]
    assert [len(split.masked) for split in cub.splits] == [300, 122]
    assert "classes with images  100" in imagenet.text()
    assert dict(zip(voc.classes, voc.splits[2].per_class(20), strict=True))["person"] == 58
    assert coco.splits[0].unlabelled == 2
    assert coco.splits[0].published == SPLITS["train2014"]
    assert max(map(len, coco.text().split("not there:")[0].splitlines())) < 100
