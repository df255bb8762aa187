"""Parts of localization data, and ids of images."""

import pytest

from advcam_attr.data.cub import read_cub
from advcam_attr.data.samples import image_ids, per_class
from advcam_attr.types import AdvCAMError
from tiny_wsol import BIRDS, write_cub


def test_some_of_each_class(tmp_path):
    test = [(n, file, label, 0, box) for n, file, label, _, box in BIRDS]
    data = read_cub(write_cub(tmp_path, test), "test")
    part = per_class(data, 1)
    assert [sample.id for sample in part.samples] == ["gull_a", "wren_a"]
    assert set(part.boxes) == set(part.sizes) == {"gull_a", "wren_a"}
    assert per_class(data, 5) == data


def test_ids_can_name_files():
    assert image_ids(["a/1.jpg", "b/2.jpg"]) == ["1", "2"]
    assert image_ids(["a/1.jpg", "b/1.jpg"]) == ["a_1", "b_1"]
    with pytest.raises(AdvCAMError, match=r"names b/1.jpg twice"):
        image_ids(["a/1.jpg", "b/1.jpg", "b/1.jpg"])
