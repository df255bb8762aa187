"""CUB-200-2011: labels, boxes and sizes from the published lists."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "20.0 3.0 5.0 4.0", "gull_a: the box from 20, 3 to 25, 7 is not in"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "-1.0 3.0 5.0 4.0", "is not in the image of 20x10 pixels"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "2.0 3.0 -5.0 4.0", "is not in the image"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "nan 3.0 5.0 4.0", "is not in the image"),
        ("bounding_boxes.txt", "2.0 3.0 5.0 4.0", "a 3.0 5.0 4.0", "are not the four numbers of a box"),
        ("bounding_boxes.txt", "1 2.0 3.0 5.0 4.0\n", "", r"no line for 1 of 2 images \(number 1\); is it truncated"),
        ("image_class_labels.txt", "5 2\n", "", r"no line for 1 of 4 images \(number 5\); is it truncated"),
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
