"""Inventories of data sets: counts and damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.data.check import check
from advcam_attr.data.coco import CLASSES, SPLITS
from advcam_attr.types import AdvCAMError
from tiny_coco import annotated, box, write_coco
from tiny_voc import write_mask, write_voc
from tiny_wsol import LISTS, annotation, photograph, write_cub, write_lists

TRAIN = {"2007_000032": ["aeroplane", "person"], "2007_000039": ["tvmonitor"], "2007_000063": []}
VAL = {"2007_000033": ["aeroplane"]}


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "data" / "VOCdevkit" / "VOC2012", {"train": TRAIN, "val": VAL})


@pytest.fixture
def coco(tmp_path) -> Path:
    """Two images, of which the second shows nothing."""
    changes = {"categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]}
    return write_coco(tmp_path / "data" / "coco", [annotated(9, 3, [box(0, 0, 4, 4)])], changes=changes)


def problems(root: Path, **options) -> dict[str, tuple[str, ...]]:
    inventory = check(root, **options)
    found = {problem.what: problem.cases for data_set in inventory.data_sets for problem in data_set.problems}
    assert inventory.sound == (not found)
    assert all(f"{len(cases)} {what}; " in inventory.text() for what, cases in found.items())
    return found


def lines(inventory) -> set[str]:
    return {" ".join(line.split()) for line in inventory.text().splitlines()}


def test_all_data_sets_below_a_folder_are_found(voc, coco):
    inventory = check(voc.parents[1], deep=True)
    assert [(d.name, d.root) for d in inventory.data_sets] == [("PASCAL VOC 2012", voc), ("MS COCO 2014", coco)]
    assert inventory.sound
    assert lines(inventory) >= {
        f"PASCAL VOC 2012 in {voc}",
        "split listed published there labelled masks or boxes",
        "train 3 1464 3 2 3",
        "val 1 1449 1 1 1",
        "images of train val",
        "aeroplane 1 1",
        "person 1 0",
        "no problems",
        f"MS COCO 2014 in {coco}",
        "train2014 2 82783 2 1 2",
        "car 1",
    }
    assert "train_aug (10582 images): no train_aug" in inventory.text()
    assert "val2014 (40504 images): no split" in inventory.text()


def test_roots_may_be_any_folder_above(voc, tmp_path):
    for root in (voc, voc.parent, voc.parents[1]):
        assert [data_set.root for data_set in check(root).data_sets] == [voc]
    for root in (tmp_path / "none", voc / "JPEGImages"):
        with pytest.raises(AdvCAMError, match=r"no such folder|no data set at"):
            check(root)


def test_train_aug_and_test_are_counted(voc):
    write_mask(voc / "SegmentationClassAug" / "2007_000039.png", np.zeros((6, 8)))
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_000033\n")
    assert lines(check(voc)) >= {"train_aug 3 10582 3 2 3", "test 1 1456 1 0 1"}, "labels of test are not known"
    assert not problems(voc)
    (voc / "SegmentationClass" / "2007_000039.png").unlink()
    assert problems(voc) == {"listed images have no mask": ("2007_000039",)}, "train has its own masks"


def test_masks_of_train_aug_may_be_absent(voc):
    """Its masks are SBD's: without SBD they are absent, not damaged."""
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("\n".join(TRAIN))
    (voc / "SegmentationClass" / "2007_000039.png").unlink()
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")
    assert not problems(voc)
    assert "masks of 1 of 3 images of train_aug: SegmentationClassAug" in check(voc).data_sets[0].absent


def test_missing_files(voc):
    (voc / "JPEGImages" / "2007_000032.jpg").unlink()
    (voc / "SegmentationClass" / "2007_000033.png").unlink()
    missing, unmasked = ("2007_000032",), ("2007_000033",)
    assert problems(voc) == {"listed images are missing": missing, "listed images have no mask": unmasked}


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda voc: Image.new("RGB", (8, 6)).save(voc / "JPEGImages/2007_000039.png"), "one id"),
        (lambda voc: (voc / "Annotations/2007_000039.xml").unlink(), "no labels"),
        (lambda voc: (voc / "Annotations/2007_000063.xml").write_text("<annotation>"), "cannot read"),
        (lambda voc: (voc / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n" * 2), "twice"),
    ],
)
def test_unusable_splits_leave_the_others_counted(voc, damage, word):
    damage(voc)
    ((what, (case,)),) = problems(voc).items()
    assert what == "splits are unusable"
    assert case.startswith("train: ")
    assert word in case
    assert [split.data.split for split in check(voc).data_sets[0].splits] == ["val"]


@pytest.mark.parametrize("workers", [0, 1])
def test_contents_are_verified_when_files_are_decoded(voc, workers):
    image = voc / "JPEGImages" / "2007_000032.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(image)
    image.write_bytes(image.read_bytes()[:900])
    write_mask(voc / "SegmentationClass" / "2007_000033.png", np.full((6, 8), 21))
    write_mask(voc / "SegmentationClass" / "2007_000039.png", np.zeros((5, 8)))
    assert check(voc).sound
    found = problems(voc, deep=True, workers=workers)
    assert "2007_000032.jpg" in found.pop("images are unreadable")[0]
    masks = sorted(found.pop("masks or boxes are unusable"))
    assert [name in line for name, line in zip(("000032", "000033", "000039"), masks, strict=True)] == [True] * 3
    assert not found


def test_coco(coco):
    images = sorted((coco / "train2014").iterdir())
    images[0].unlink()
    images[1].write_bytes(b"none")
    found = problems(coco, deep=True)
    assert found["listed images are missing"] == ("COCO_train2014_000000000009",)
    assert "000000000025.jpg" in found["images are unreadable"][0]
    (coco / "annotations" / "instances_val2014.json").write_text("{}")
    assert "instances_val2014.json" in problems(coco)["splits are unusable"][0]
    (coco / "coco_seg_anno").mkdir()
    assert len(problems(coco)["listed images have no mask"]) == 2


def test_cub(tmp_path):
    folder = write_cub(tmp_path)
    inventory = check(tmp_path, deep=True)
    assert inventory.sound
    assert lines(inventory) >= {"train 2 5994 2 2 2", "test 2 5794 2 2 2"}
    (folder / "images/001.Gull/gull_a.jpg").unlink()
    boxes = (folder / "bounding_boxes.txt").read_text()
    (folder / "bounding_boxes.txt").write_text(boxes.replace("5 5.0", "5 50.0"))
    (case,) = problems(folder)["splits are unusable"]
    assert case.startswith("test: 1 of 2 images")
    (folder / "image_class_labels.txt").write_text("1 1\n")
    assert "no line for 3 of 4 images" in problems(folder)["splits are unusable"][0]


def test_imagenet(tmp_path):
    path = photograph(tmp_path / "val" / "n00000001" / "a.JPEG")
    places = tmp_path / "Annotations" / "CLS-LOC" / "val"
    annotation(places / "a.xml", "n00000001", [(1, 2, 3, 4)])
    inventory = check(tmp_path, deep=True)
    assert inventory.sound
    assert "val 1 50000 1 1 1" in lines(inventory)
    photograph(path, (20, 11))
    (case,) = problems(tmp_path, deep=True)["masks or boxes are unusable"]
    assert case.endswith("a.JPEG has 20x11 pixels, and its boxes are for 20x10")
    annotation(places / "a.xml", "n00000001", [(1, 2, 0, 4)])
    assert list(problems(tmp_path)) == ["splits are unusable"]


@pytest.fixture
def lists(tmp_path) -> Path:
    """A folder ``metadata`` with the three splits of two birds, without images."""
    for split in ("train", "val", "test"):
        write_lists(tmp_path / "metadata" / "CUB" / split, LISTS)
    (tmp_path / "metadata" / "CUB" / "train" / "localization.txt").unlink()
    return tmp_path / "metadata"


def test_metadata_without_images(lists):
    inventory = check(lists / "CUB", deep=True)
    assert inventory.sound
    assert lines(inventory) >= {
        f"Lists of CUB (Choe et al.) in {lists / 'CUB'}",
        f"images: {lists.parent / 'dataset' / 'CUB'}",
        "train 2 5994 - 2 0",
        "val 2 1000 - 2 2",
        "classes with images 2 2 2",
    }
    for above in (lists, lists.parent):
        assert [data_set.root for data_set in check(above).data_sets] == [lists / "CUB"]


def test_metadata_with_images(lists):
    images = lists.parent / "dataset" / "CUB"
    photograph(images / "001.Gull" / "5.jpg")
    assert "val 2 1000 1 2 2" in lines(check(lists))
    assert problems(lists) == {"listed images are missing": ("7",)}
    photograph(images / "002.Wren" / "7.jpg", (31, 12))
    assert check(lists).sound
    (case,) = problems(lists, deep=True)["masks or boxes are unusable"]
    assert case.endswith("7.jpg has 31x12 pixels, and its boxes are for 30x12")


def test_damaged_metadata(lists):
    (lists / "CUB/train/image_ids.txt").unlink()
    write_lists(lists / "CUB/val", {"image_sizes": LISTS["image_sizes"][:1]})
    train, val = problems(lists)["splits are unusable"]
    assert (train[:6], val[:5]) == ("train:", "val: ")
    shutil.rmtree(lists / "CUB/test")
    assert check(lists).data_sets[0].absent[0].startswith("test (5794 images): no such folder")
    write_lists(lists / "birds" / "test", LISTS)
    assert lines(check(lists / "birds")) >= {"test 2 - - 2 2", "001.Gull 1"}, "no published numbers"


def test_metadata_with_masks(tmp_path):
    truth = ["001.Gull/5.jpg,m0.png,", "002.Wren/7.jpg,m1.png,ignored.png", "002.Wren/7.jpg,m2.png,"]
    write_lists(tmp_path / "metadata" / "OpenImages" / "val", {**LISTS, "localization": truth})
    assert "val 2 2500 - 2 2" in lines(check(tmp_path))
    images = tmp_path / "dataset" / "OpenImages"
    for name in LISTS["image_ids"]:
        photograph(images / name)
    for name in ("m0", "m1", "m2", "ignored"):
        Image.new("L", (4, 4), 255).save(images / f"{name}.png")
    assert check(tmp_path, deep=True).sound
    (images / "m0.png").write_bytes(b"none")
    (images / "ignored.png").unlink()
    assert len(problems(tmp_path, deep=True)["masks or boxes are unusable"]) == 2


def test_real_data(data_root):
    inventory = check(data_root)
    assert inventory.sound
    assert all(check(data_root / part, deep=True).sound for part in ("voc", "coco", "CUB_200_2011", "imagenet"))
    voc, animals, coco, cub, imagenet = inventory.data_sets
    assert [{split.data.split: len(split.there) for split in found.splits} for found in inventory.data_sets] == [
        {"train": 70, "val": 24, "trainval": 94},
        {"train": 437, "train_aug": 3131, "val": 223, "trainval": 660},
        {"train2014": 128},
        {"train": 300, "test": 122},
        {"val": 100},
    ]
    assert "masks of 2694 of 3131 images of train_aug: SegmentationClassAug" in animals.absent
    assert [len(split.truth) for split in cub.splits] == [300, 122]
    assert "classes with images  100" in imagenet.text()
    assert voc.splits[2].per_class()[14] == 58
    assert sum(not sample.labels for sample in coco.splits[0].data.samples) == 2
    assert coco.splits[0].published == SPLITS["train2014"]
