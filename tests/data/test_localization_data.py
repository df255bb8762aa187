"""CUB, ImageNet, metadata folders and shards: labels, boxes, sizes, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.check import check
from advcam_attr.data.cub import read_cub
from advcam_attr.data.datasets import ShardDataset, SingleLabelDataset
from advcam_attr.data.imagenet import class_folders, read_box_annotation, read_imagenet
from advcam_attr.data.masks import PixelMasks, read_pixel_truth
from advcam_attr.data.samples import image_ids, per_class
from advcam_attr.data.shards import read_shards
from advcam_attr.data.transforms import wsol_eval, wsol_train
from advcam_attr.data.wsol_metadata import read_wsol_metadata
from advcam_attr.types import AdvCAMError, Sample
from tiny_wsol import BIRDS, annotation, photograph, write_cub, write_lists

# --- CUB --------------------------------------------------------------------------------------------------------------


def test_golden_cub(tmp_path):
    folder = write_cub(tmp_path)
    test, train = read_cub(tmp_path, "test"), read_cub(folder, "train")
    assert (test.name, test.split, test.root) == ("cub", "test", folder / "images")
    assert test.classes == ("001.Gull", "002.Wren")
    assert test.samples == (
        Sample("gull_a", folder / "images/001.Gull/gull_a.jpg", (0,)),
        Sample("wren_b", folder / "images/002.Wren/wren_b.jpg", (1,)),
    )
    assert test.boxes == {"gull_a": ((2, 3, 7, 7),), "wren_b": ((5, 2, 19, 9),)}
    assert train.boxes == {"gull_b": ((0, 0, 19, 9),), "wren_a": ((6, 7, 6, 7),)}, "a box without area is legal"
    assert test.sizes == {"gull_a": (10, 20), "wren_b": (10, 20)}


def test_lists_of_other_lengths_are_joined_by_number(tmp_path):
    """The published lists of labels and splits have more lines than those of a part of the images, in any order."""
    folder = write_cub(tmp_path)
    before = read_cub(folder, "test")
    for name in ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
        lines = (folder / name).read_text().splitlines()
        more = "3 1.0 1.0 2.0 2.0" if name.startswith("bounding") else "3 1"
        (folder / name).write_text("\n".join([*lines[::-1], more]))
    assert read_cub(folder, "test") == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "20.0 3.0 5.0 4.0", "image 1: the box from 20, 3 to 25, 7 is not in"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "-1.0 3.0 5.0 4.0", "is not in the image of 20x10 pixels"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "2.0 3.0 -5.0 4.0", "is not in the image"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "nan 3.0 5.0 4.0", "is not in the image"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "a 3.0 5.0 4.0", "are not the four numbers of a box"),
        ("bounding_boxes.txt", "1 2.0 3.0 5.0 4.0\n", "", r"no line for 1 of 2 images \(number 1\); is it cut off"),
        ("image_class_labels.txt", "5 2\n", "", r"no line for 1 of 4 images \(number 5\); is it cut off"),
        ("image_class_labels.txt", "5 2\n", "5 3\n", "the class of image 5 is '3'; there are 1 to 2"),
        ("image_class_labels.txt", "5 2\n", "5 2\n5 1\n", "has 5 twice, the second time in line 5"),
        ("train_test_split.txt", "1 0\n", "1 7\n", "image 1 is '7'"),
        ("images.txt", "1 001.Gull/gull_a.jpg", "1 001.Gull/none.jpg", r"1 of 2 images .* not there .*none.jpg"),
        ("images.txt", "1 001.Gull/gull_a.jpg", "1 a b", "line 1: '1 a b' is not a number and 1 more"),
        ("classes.txt", "1 001.Gull\n", "3 001.Gull\n", "number its classes from 1 on"),
    ],
)
def test_bad_lists_of_cub(tmp_path, file, old, new, message):
    folder = write_cub(tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(AdvCAMError, match=message) as error:
        read_cub(folder, "test")
    assert "\n" not in str(error.value)


def test_no_cub(tmp_path):
    with pytest.raises(AdvCAMError, match=r"no CUB-200-2011 at .*; there is no such folder"):
        read_cub(tmp_path / "none")
    write_cub(tmp_path)
    with pytest.raises(AdvCAMError, match="no split 'val'; there are train, test"):
        read_cub(tmp_path, "val")


def test_real_cub(data_root):
    train, test = (read_cub(data_root, split) for split in ("train", "test"))
    assert (len(train.samples), len(test.samples)) == (300, 122)
    assert {sample.labels for sample in train.samples} == {(k,) for k in range(10)}
    for data in (train, test):
        for sample in data.samples:
            ((x0, y0, x1, y1),) = data.boxes[sample.id]
            height, width = data.sizes[sample.id]
            assert 0 <= x0 < x1 <= width - 1
            assert 0 <= y0 < y1 <= height - 1
            assert Image.open(sample.image).size == (width, height)
    assert test.boxes["Black_Footed_Albatross_0046_18"] == ((38, 17, 246, 211),)


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def test_golden_imagenet(tmp_path):
    """Classes are places among the sorted synsets, whatever order the list has; boxes are cut off at the last pixel."""
    (tmp_path / "LOC_synset_mapping.txt").write_text("n00000003 x\nn00000001 tench, Tinca\n")
    photograph(tmp_path / "val" / "n00000003" / "b.JPEG")
    photograph(tmp_path / "val" / "n00000001" / "a.JPEG")
    data = read_imagenet(tmp_path, "val")
    assert data.classes == ("tench, Tinca", "x")
    assert [(s.id, s.labels) for s in data.samples] == [("a", (0,)), ("b", (1,))]
    assert (data.boxes, data.sizes) == ({}, {})
    places = tmp_path / "Annotations" / "CLS-LOC" / "val"
    annotation(places / "a.xml", "n00000001", [(1, 2, 20, 10), (0, 0, 3, 3)])
    with pytest.raises(AdvCAMError, match=r"no such annotation: .*b.xml"):
        read_imagenet(tmp_path, "val")
    annotation(places / "b.xml", "n00000003", [(4, 5, 6, 7)])
    data = read_imagenet(tmp_path, "val")
    assert data.boxes == {"a": ((1, 2, 19, 9), (0, 0, 3, 3)), "b": ((4, 5, 6, 7),)}
    assert data.sizes == {"a": (10, 20), "b": (10, 20)}
    annotation(places / "b.xml", "n00000001", [(4, 5, 6, 7)])
    with pytest.raises(AdvCAMError, match=r"b.xml is of n00000001, but the image is in .*n00000003"):
        read_imagenet(tmp_path, "val")


def test_flat_images_have_the_classes_of_their_annotations(tmp_path):
    for k, synset in ((1, "n00000009"), (2, "n00000002")):
        photograph(tmp_path / "Data" / "CLS-LOC" / "val" / f"ILSVRC2012_val_{k:08d}.JPEG")
        boxes = [(0, 0, 4, 4)] * 259 if k == 1 else [(1, 1, 2, 2)]
        annotation(tmp_path / "Annotations" / "CLS-LOC" / "val" / f"ILSVRC2012_val_{k:08d}.xml", synset, boxes)
    data = read_imagenet(tmp_path, "val")
    assert data.classes == ("n00000002", "n00000009")
    assert [sample.labels for sample in data.samples] == [(1,), (0,)]
    assert len(data.boxes["ILSVRC2012_val_00000001"]) == 259
    with pytest.raises(AdvCAMError, match=r"the classes of the 2 images .* are not known: sort them into folders"):
        read_imagenet(tmp_path, images=tmp_path / "Data" / "CLS-LOC" / "val", split="other")


def test_numeric_folders_are_in_the_order_of_numbers(tmp_path):
    for k in (0, 2, 10):
        for n in (0, 2, 10):
            photograph(tmp_path / "val2" / str(k) / f"{n}.jpeg")
    assert class_folders(tmp_path / "val2") == ["0", "2", "10"]
    mapping = "".join(f"n{k:08d} {k}\n" for k in range(11))
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping)
    lines = [f"{k}/{n}.jpeg,{n},0,19,{9 if k else 8}" for k in (10, 0, 2) for n in (0, 2, 10)]
    (tmp_path / "ImageNetV2_boxes.txt").write_text("\n".join(["image,x0,y0,x1,y1", *lines, "0/0.jpeg,1,1,2,2"]))
    data = read_imagenet(tmp_path, "val2")
    assert [sample.id for sample in data.samples[:4]] == ["val2_0_0", "val2_0_2", "val2_0_10", "val2_2_0"]
    assert [sample.labels[0] for sample in data.samples] == [0, 0, 0, 2, 2, 2, 10, 10, 10]
    assert data.boxes["val2_0_0"] == ((0, 0, 19, 8), (1, 1, 2, 2))
    assert data.boxes["val2_10_10"] == ((10, 0, 19, 9),)
    (tmp_path / "val2" / "0" / "0.jpeg").rename(tmp_path / "val2" / "0" / "7f3a.jpeg")
    with pytest.raises(AdvCAMError, match=r"no box for 1 of 9 images \(0/7f3a.jpeg\); .* have other names"):
        read_imagenet(tmp_path, "val2")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([(21, 0, 25, 4)], "is not in the image"), ([(5, 5, 4, 8)], "is not in the image"), ([], "of 0 synsets")],
)
def test_bad_annotations(tmp_path, boxes, message):
    with pytest.raises(AdvCAMError, match=message):
        read_box_annotation(annotation(tmp_path / "a.xml", "n00000001", boxes))


def test_annotations_run_nothing(tmp_path):
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    with pytest.raises(AdvCAMError, match="is rejected: it has a DTD"):
        read_box_annotation(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text("<annotation><size><width>wide</width></size></annotation>")
    with pytest.raises(AdvCAMError, match="is no annotation of ImageNet"):
        read_box_annotation(tmp_path / "b.xml")


def test_images_are_read_as_they_are_stored(tmp_path):
    """Boxes are of the stored pixels: the orientation of EXIF is not applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photograph(tmp_path / "val" / "n00000001" / "a.JPEG")
    Image.new("RGB", (20, 10), "white").save(path, exif=exif)
    sample = read_imagenet(tmp_path, "val").samples[0]
    image, label = SingleLabelDataset([sample], 1, lambda picture: torch.tensor(picture.size))[0]
    assert (image.tolist(), int(label)) == ([20, 10], 0)


def test_real_imagenet(data_root):
    data = read_imagenet(data_root / "imagenet", "val")
    assert (len(data.samples), len(data.classes)) == (100, 1000)
    by_id = {sample.id: sample.labels for sample in data.samples}
    assert by_id["n01498041_sample"] == (6,)
    assert data.classes[6].startswith("stingray")


# --- metadata folders -------------------------------------------------------------------------------------------------

LISTS = {
    "image_ids": ["002.Wren/7.jpg", "001.Gull/5.jpg"],
    "class_labels": ["001.Gull/5.jpg,0", "002.Wren/7.jpg,1"],
    "image_sizes": ["001.Gull/5.jpg,20,10", "002.Wren/7.jpg,30,12"],
    "localization": ["001.Gull/5.jpg,1,2,3,4", "002.Wren/7.jpg,0,0,29,11", "002.Wren/7.jpg,5,5,5,5"],
}


def test_golden_metadata(tmp_path):
    write_lists(tmp_path / "metadata" / "CUB" / "val", LISTS)
    data = read_wsol_metadata(tmp_path / "metadata" / "CUB", "dataset/CUB", "val")
    assert (data.name, data.split, len(data.classes)) == ("cub", "val", 200)
    assert data.classes[:3] == ("001.Gull", "002.Wren", "2")
    assert data.samples == (
        Sample("7", Path("dataset/CUB/002.Wren/7.jpg"), (1,)),
        Sample("5", Path("dataset/CUB/001.Gull/5.jpg"), (0,)),
    )
    assert data.boxes == {"7": ((0, 0, 29, 11), (5, 5, 5, 5)), "5": ((1, 2, 3, 4),)}
    assert data.sizes == {"7": (12, 30), "5": (10, 20)}


def test_an_image_may_have_259_boxes(tmp_path):
    lists = {**LISTS, "localization": [*LISTS["localization"][:2], *["002.Wren/7.jpg,5,5,5,5"] * 258]}
    write_lists(tmp_path / "val", lists)
    assert len(read_wsol_metadata(tmp_path, "images", "val").boxes["7"]) == 259


def test_training_lists_have_no_boxes(tmp_path):
    lists = {name: LISTS[name] for name in ("image_ids", "class_labels")}
    write_lists(tmp_path / "ILSVRC" / "train", {**lists, "image_ids_proxy": ["001.Gull/5.jpg"]})
    data = read_wsol_metadata(tmp_path / "ILSVRC", "images", "train")
    assert (data.boxes, data.sizes, len(data.samples), len(data.classes)) == ({}, {}, 2, 1000)
    proxy = read_wsol_metadata(tmp_path / "ILSVRC", "images", "train", proxy=True)
    assert [sample.id for sample in proxy.samples] == ["5"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "class_labels",
            LISTS["class_labels"][:1],
            r"class_labels.txt has no line for 1 of 2 images \(002.Wren/7.jpg\)",
        ),
        ("image_sizes", LISTS["image_sizes"][:1], r"image_sizes.txt has no line for 1 of 2 images"),
        ("localization", LISTS["localization"][1:], r"localization.txt has no line for 1 of 2 images"),
        ("localization", ["001.Gull/5.jpg,1,2,20,4", "002.Wren/7.jpg,0,0,1,1"], r"5.jpg: the box 1,2,20,4 .* 20x10"),
        ("localization", ["001.Gull/5.jpg,-1,2,3,4", "002.Wren/7.jpg,0,0,1,1"], r"box -1,2,3,4 .* not in the image"),
        ("localization", ["001.Gull/5.jpg,4,2,3,4", "002.Wren/7.jpg,0,0,1,1"], r"box 4,2,3,4 .* not in the image"),
        ("localization", ["001.Gull/5.jpg,a,2,3,4", "002.Wren/7.jpg,0,0,1,1"], "four whole numbers"),
        ("localization", ["001.Gull/5.jpg,1,2,3"], "line 1: .* is not 3 or 5 fields"),
        ("class_labels", ["001.Gull/5.jpg,gull", "002.Wren/7.jpg,1"], "the class of 001.Gull/5.jpg is 'gull'"),
        ("class_labels", ["001.Gull/5.jpg,0", "002.Wren/7.jpg,200"], "has a class 200, but there are 200"),
        ("image_sizes", ["001.Gull/5.jpg,0,10", "002.Wren/7.jpg,30,12"], "width and height of 001.Gull/5.jpg are 0"),
        ("image_ids", [], "image_ids.txt is empty"),
        ("image_ids", ["001.Gull/5.jpg", "001.Gull/5.jpg"], "names 001.Gull/5.jpg twice"),
    ],
)
def test_bad_metadata(tmp_path, name, lines, message):
    write_lists(tmp_path / "CUB" / "val", {**LISTS, name: lines})
    with pytest.raises(AdvCAMError, match=message) as error:
        read_wsol_metadata(tmp_path / "CUB", "images", "val")
    assert "\n" not in str(error.value)


def test_golden_masks(tmp_path):
    """The union of two objects; what is ignored counts only outside of them."""
    lists = {
        "image_ids": ["a/1.jpg"],
        "class_labels": ["a/1.jpg,0"],
        "image_sizes": ["a/1.jpg,4,2"],
        "localization": ["a/1.jpg,a/m0.png,a/ignore.png", "a/1.jpg,a/m1.png,"],
    }
    write_lists(tmp_path / "OpenImages" / "val", lists)
    grids = {"m0": [[255, 0, 0, 0], [0, 0, 0, 0]], "m1": [[0, 255, 0, 0], [0, 0, 0, 0]],
             "ignore": [[0, 255, 255, 0], [0, 0, 0, 255]]}  # fmt: skip
    (tmp_path / "masks" / "a").mkdir(parents=True)
    for name, grid in grids.items():
        Image.fromarray(np.array(grid, np.uint8)).save(tmp_path / "masks" / "a" / f"{name}.png")
    data = read_wsol_metadata(tmp_path / "OpenImages", "images", "val", masks=tmp_path / "masks")
    assert (data.name, data.boxes, data.sizes) == ("openimages", {}, {"1": (2, 4)})
    assert read_pixel_truth(data.masks["1"], (2, 4)).tolist() == [[1, 1, 255, 0], [0, 0, 0, 255]]
    assert read_pixel_truth(data.masks["1"], (1, 2)).tolist() == [[1, 255]], "the pixel above and left"
    with pytest.raises(AdvCAMError, match=r"no such mask: .*none.png"):
        read_pixel_truth(PixelMasks((tmp_path / "none.png",), None))


def test_masks_are_resized_as_opencv_does(tmp_path):
    cv2 = pytest.importorskip("cv2")
    grey = np.random.default_rng(0).integers(0, 2, (333, 500), np.uint8) * 255
    Image.fromarray(grey).save(tmp_path / "m.png")
    expected = cv2.resize(grey.astype(np.float32), (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5
    assert np.array_equal(read_pixel_truth(PixelMasks((tmp_path / "m.png",), None)).numpy() == 1, expected)


# --- parts of data, ids -----------------------------------------------------------------------------------------------


def test_some_of_each_class(tmp_path):
    data = read_cub(write_cub(tmp_path), "test")
    more = read_cub(
        write_cub(tmp_path / "more", [(n, file, label, 0, box) for n, file, label, _, box in BIRDS]), "test"
    )
    part = per_class(more, 1)
    assert [sample.id for sample in part.samples] == ["gull_a", "wren_a"]
    assert set(part.boxes) == set(part.sizes) == {"gull_a", "wren_a"}
    assert per_class(data, 5) == data


def test_ids_can_name_files():
    assert image_ids(["a/1.jpg", "b/2.jpg"]) == ["1", "2"]
    assert image_ids(["a/1.jpg", "b/1.jpg"]) == ["a_1", "b_1"]
    with pytest.raises(AdvCAMError, match=r"names b/1.jpg twice"):
        image_ids(["a/1.jpg", "b/1.jpg", "b/1.jpg"])


# --- shards -----------------------------------------------------------------------------------------------------------


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for ending, content in parts.items():
                about = tarfile.TarInfo(f"{key}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def jpeg(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (9, 5), (value,) * 3).save(content, "JPEG")
    return content.getvalue()


def test_shards_hold_the_same_as_folders(tmp_path):
    write_shard(tmp_path / "b-1.tar", {"n1/2": {"cls": b"1", "jpg": jpeg(200), "json": b"{}"}})
    write_shard(tmp_path / "b-0.tar", {"0": {"jpg": jpeg(0), "cls": b"0"}, "1": {"cls": b"2", "JPEG": jpeg(80)}})
    data = read_shards(tmp_path, "b-*.tar", classes=3)
    assert len(data) == 3
    assert data.labels.tolist() == [0, 2, 1]
    dataset = ShardDataset(data, wsol_eval(4, (0.0,) * 3, (1.0,) * 3))
    for index, value in enumerate((0, 80, 200)):
        x, label = dataset[index]
        assert x.shape == (3, 4, 4)
        assert (x * 255 - value).abs().max() <= 1
        assert int(label) == data.labels[index]
        photograph(tmp_path / f"{index}.jpg", (9, 5), (value,) * 3)
        sample = Sample(str(index), tmp_path / f"{index}.jpg", (int(label),))
        same, other = SingleLabelDataset([sample], 3, dataset.transform)[0]
        assert torch.allclose(same, x, atol=1.5 / 255)
        assert (other, other.dtype) == (label, label.dtype)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"0": {"cls": b"0"}}, r"1 of 1 samples have not an image \(/0\)"),
        ({"0": {"jpg": b"", "txt": b"cat"}}, "have not a class"),
        ({"0": {"jpg": b"", "cls": b"3"}}, "has the classes 3, but there are 3, from 0 on"),
        ({"0": {"jpg": b"", "cls": b"cat"}}, "cannot read shard"),
        ({}, "holds no samples"),
    ],
)
def test_bad_shards(tmp_path, samples, message):
    write_shard(tmp_path / "0.tar", samples)
    with pytest.raises(AdvCAMError, match=message):
        read_shards(tmp_path, classes=3)


def test_damaged_shards(tmp_path):
    with pytest.raises(AdvCAMError, match="no shards at"):
        read_shards(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(AdvCAMError, match="should be a tar file, not compressed"):
        read_shards(tmp_path)
    write_shard(tmp_path / "0.tar", {"0": {"jpg": b"none", "cls": b"0"}})
    with pytest.raises(AdvCAMError, match=r"not an image that can be read: 0 of the images, at byte 512 of .*0.tar"):
        read_shards(tmp_path).read(0)


# --- transforms -------------------------------------------------------------------------------------------------------


def test_images_are_squares_whatever_their_proportions():
    half = Image.new("RGB", (300, 100))
    half.paste((255, 255, 255), (150, 0, 300, 100))
    x = wsol_eval(mean=(0.5,) * 3, std=(0.5,) * 3)(half)
    assert (x.shape, x.dtype) == ((3, 224, 224), torch.float32)
    assert x[:, :, :110].max() == -1
    assert x[:, :, 114:].min() == 1
    expected = np.asarray(half.resize((224, 224), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(x.numpy(), expected, atol=1e-6)


def test_training_crops_and_mirrors_the_square():
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert("RGB")
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        row = (wsol_train(64, 56, (0.0,) * 3, (1.0,) * 3)(ramp)[0, 0] * 255 / 4).round().int().tolist()
        step = row[1] - row[0]
        assert row == list(range(row[0], row[0] + step * 56, step))
        seen.add((step, row[0] if step == 1 else row[-1]))
    assert {step for step, _ in seen} == {1, -1}
    assert {first for _, first in seen} == set(range(9))
    with pytest.raises(AdvCAMError, match="does not fit"):
        wsol_train(64, 65)


def test_items_need_one_label():
    for labels in ((), (0, 1), (2,)):
        with pytest.raises(AdvCAMError, match="it should have one of 2"):
            SingleLabelDataset([Sample("a", Path("a.jpg"), labels)], 2, wsol_eval())


# --- taking stock -----------------------------------------------------------------------------------------------------


def test_check_finds_what_is_wrong_with_cub(tmp_path):
    folder = write_cub(tmp_path)
    (inventory,) = check(tmp_path, deep=True).data_sets
    assert inventory.problems == ()
    assert [(s.name, len(s.samples), s.published, len(s.masked)) for s in inventory.splits] == [
        ("train", 2, 5994, 2), ("test", 2, 5794, 2)]  # fmt: skip
    assert "no object  boxes" in inventory.text()
    (folder / "images/001.Gull/gull_a.jpg").unlink()
    boxes = (folder / "bounding_boxes.txt").read_text()
    (folder / "bounding_boxes.txt").write_text(boxes.replace("5 5.0", "5 50.0"))
    found = {p.what: p.cases for p in check(folder).data_sets[0].problems}
    assert found.pop("listed images that are not there") == ("gull_a",)
    assert found.pop("images whose size or box cannot be used")[0].startswith("image 5: the box from 50, 2")
    assert not found
    (folder / "image_class_labels.txt").write_text("1 1\n")
    (problem,) = check(folder).data_sets[0].problems
    assert "no line for 3 of 4 images" in problem.cases[0]


def test_check_finds_what_is_wrong_with_imagenet(tmp_path):
    path = photograph(tmp_path / "val" / "n00000001" / "a.JPEG")
    places = tmp_path / "Annotations" / "CLS-LOC" / "val"
    annotation(places / "a.xml", "n00000001", [(1, 2, 3, 4)])
    inventory = check(tmp_path, deep=True)
    assert inventory.sound
    assert [(s.name, len(s.masked)) for s in inventory.data_sets[0].splits] == [("val", 1)]
    photograph(path, (20, 11))
    (problem,) = check(tmp_path, deep=True).data_sets[0].problems
    assert problem.what == "boxes that cannot be used"
    assert problem.cases[0].endswith("a.JPEG is of 20x11 pixels, and its boxes are for 20x10")
    annotation(places / "a.xml", "n00000001", [(1, 2, 0, 4)])
    (problem,) = check(tmp_path).data_sets[0].problems
    assert problem.what == "splits that cannot be used"


@pytest.fixture
def lists(tmp_path) -> Path:
    """A folder ``metadata`` with the three splits of two birds, without photographs."""
    for split in ("train", "val", "test"):
        write_lists(tmp_path / "metadata" / "CUB" / split, LISTS)
    (tmp_path / "metadata" / "CUB" / "train" / "localization.txt").unlink()
    return tmp_path / "metadata"


def words(inventory) -> set[str]:
    return {" ".join(line.split()) for line in inventory.text().splitlines()}


def test_check_knows_metadata_folders(lists):
    inventory = check(lists / "CUB", deep=True)
    assert inventory.sound
    assert words(inventory) >= {
        f"Lists of CUB (Choe et al.) in {lists / 'CUB'}",
        "val/localization.txt 3 boxes of 2 images",
        f"photographs not looked for: there is no {lists.parent / 'dataset' / 'CUB'}",
        "split listed published there labelled no object boxes",
        "train 2 5994 - 2 0 0",
        "val 2 1000 - 2 0 2",
        "test 2 5794 - 2 0 2",
        "classes with images 2 2 2",
    }
    for above in (lists, lists.parent):
        assert [data_set.root for data_set in check(above).data_sets] == [lists / "CUB"]


def test_check_finds_what_is_wrong_with_metadata(lists):
    images = lists.parent / "dataset" / "CUB"
    photograph(images / "001.Gull" / "5.jpg")
    inventory = check(lists)
    assert "val 2 1000 1 2 0 2" in words(inventory)
    assert {p.what: p.cases for p in inventory.data_sets[0].problems} == {"listed images that are not there": ("7",)}
    photograph(images / "002.Wren" / "7.jpg", (31, 12))
    assert check(lists).sound
    (problem,) = check(lists, deep=True).data_sets[0].problems
    assert problem.cases[0].endswith("7.jpg is of 31x12 pixels, and its boxes are for 30x12")

    (lists / "CUB/train/image_ids.txt").unlink()
    write_lists(lists / "CUB/val", {"image_sizes": LISTS["image_sizes"][:1]})
    (lists / "CUB/test/localization.txt").unlink()
    (found,) = check(lists).data_sets
    (problem,) = found.problems
    assert [case.split("metadata/CUB/")[1] for case in problem.cases] == [
        "train/image_ids.txt",
        "val/image_sizes.txt has no line for 1 of 2 images (002.Wren/7.jpg); is it cut off?",
    ]
    assert found.absent == ("boxes of test: it takes test/localization.txt",)
    for file in (lists / "CUB/test").iterdir():
        file.unlink()
    (lists / "CUB/test").rmdir()
    assert check(lists).data_sets[0].absent == (
        "test (5794 images): it takes test/image_ids.txt and test/class_labels.txt",
    )


def test_check_knows_masks_in_place_of_boxes(tmp_path):
    truth = ["001.Gull/5.jpg,m0.png,", "002.Wren/7.jpg,m1.png,ignored.png", "002.Wren/7.jpg,m2.png,"]
    write_lists(tmp_path / "metadata" / "OpenImages" / "val", {**LISTS, "localization": truth})
    inventory = check(tmp_path)
    assert words(inventory) >= {"val/localization.txt 3 masks of 2 images", "val 2 2500 - 2 0 2"}
    images = tmp_path / "dataset" / "OpenImages"
    for name in LISTS["image_ids"]:
        photograph(images / name)
    for name in ("m0", "m1", "m2"):
        Image.new("L", (4, 4), 255).save(images / f"{name}.png")
    (problem,) = check(tmp_path, deep=True).data_sets[0].problems
    assert (problem.what, problem.cases) == ("listed masks that are not there", (str(images / "ignored.png"),))
    Image.new("L", (4, 4)).save(images / "ignored.png")
    assert check(tmp_path, deep=True).sound
    (images / "m0.png").write_bytes(b"none")
    (problem,) = check(tmp_path, deep=True).data_sets[0].problems
    assert (problem.what, len(problem.cases)) == ("masks that cannot be used", 1)


def test_lists_of_another_name_have_no_published_numbers(tmp_path):
    write_lists(tmp_path / "birds" / "test", LISTS)
    inventory = check(tmp_path)
    assert words(inventory) >= {
        "test 2 - - 2 0 2",
        "train: it takes train/image_ids.txt and train/class_labels.txt",
        "001.Gull 1",
    }
