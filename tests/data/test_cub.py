"""CUB-200-2011: labels, boxes and sizes from the published lists."""

import pytest
from PIL import Image

from advcam_attr.data.cub import read_cub
from advcam_attr.types import AdvCAMError, Sample
from tiny_wsol import write_cub


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


BOX = "2.0 3.0 5.0 4.0"


@pytest.mark.parametrize(
    ("file", "old", "new", "word"),
    [
        ("bounding_boxes.txt", BOX, "20.0 3.0 5.0 4.0", "gull_a: the box from 20, 3 to 25, 7 is not in"),
        ("bounding_boxes.txt", BOX, "-1.0 3.0 5.0 4.0", "not in the image of 20x10"),
        ("bounding_boxes.txt", BOX, "2.0 3.0 -5.0 4.0", "not in the image"),
        ("bounding_boxes.txt", BOX, "nan 3.0 5.0 4.0", "not in the image"),
        ("bounding_boxes.txt", BOX, "a 3.0 5.0 4.0", "four numbers"),
        ("bounding_boxes.txt", f"1 {BOX}\n", "", r"no line for 1 of 2 images \(number 1\)"),
        ("image_class_labels.txt", "5 2\n", "", r"no line for 1 of 4 images \(number 5\)"),
        ("image_class_labels.txt", "5 2\n", "5 3\n", "class of image 5 is '3'"),
        ("image_class_labels.txt", "5 2\n", "5 2\n5 1\n", "5 twice"),
        ("train_test_split.txt", "1 0\n", "1 7\n", "image 1 is '7'"),
        ("images.txt", "1 001.Gull/gull_a.jpg", "1 001.Gull/none.jpg", r"1 of 2 images .*none.jpg"),
        ("images.txt", "1 001.Gull/gull_a.jpg", "1 a b", "line 1: '1 a b'"),
        ("classes.txt", "1 001.Gull\n", "3 001.Gull\n", "from 1 on"),
    ],
)
def test_bad_lists_raise(tmp_path, file, old, new, word):
    folder = write_cub(tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(AdvCAMError, match=word):
        read_cub(folder, "test")


def test_wrong_roots_and_splits_raise(tmp_path):
    write_cub(tmp_path)
    for root, split, word in (
        (tmp_path / "none", "test", "no such folder"),
        (tmp_path, "val", "train, test"),
    ):
        with pytest.raises(AdvCAMError, match=word):
            read_cub(root, split)


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
