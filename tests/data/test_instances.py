"""Instance masks in files: round trip, damage, PASCAL VOC's objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from advcam_attr.data.instances import OBJECTS, read_instances, write_instances
from advcam_attr.data.masks import palette, png_settings
from advcam_attr.data.voc import read_voc
from advcam_attr.types import AdvCAMError, Instances, NoMaskError
from tiny_voc import write_mask, write_voc


def some(count: int = 2) -> Instances:
    masks = torch.arange(300).reshape(1, 15, 20) == torch.arange(count)[:, None, None]
    return Instances(tuple(i % 3 for i in range(count)), masks, tuple(1 - i / count for i in range(count)))


@pytest.mark.parametrize("count", [0, 1, 2, 254])
def test_written_instances_are_read(tmp_path, count):
    given, path = some(count), tmp_path / "a.png"
    write_instances(path, given, "digest")
    found = read_instances(path, 3)
    assert found.classes == given.classes
    assert torch.equal(found.masks, given.masks)
    assert found.scores == pytest.approx(given.scores, abs=1e-6)
    assert png_settings(path) == "digest"
    with Image.open(path) as image:
        assert (image.mode, image.getpalette()) == ("P", palette().ravel().tolist())


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", '{"classes": [1], "scores": [0.5]}', '{"classes": [1, 9], "scores": [0.5, 0.5]}',
     '{"classes": [1, 1], "scores": [0.5]}', '{"classes": [1, 1], "scores": [0.5, 2]}', "[" * 60000, " " * 70000,
     '{"classes": [1, 1.5], "scores": [0.5, 0.5]}', '{"classes": 3, "scores": 4}'],
)  # fmt: skip
def test_damaged_instances_are_rejected(tmp_path, text):
    about = PngImagePlugin.PngInfo()
    if text is not None:
        about.add_text("advcam_instances", text)
    Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).save(tmp_path / "a.png", pnginfo=about)
    with pytest.raises(AdvCAMError, match=r"a\.png (is damaged|holds no instances)"):
        read_instances(tmp_path / "a.png", 3)


def test_instances_of_another_size_are_rejected(tmp_path):
    write_instances(tmp_path / "a.png", some())
    assert len(read_instances(tmp_path / "a.png", 3, (15, 20)).classes) == 2
    with pytest.raises(AdvCAMError, match=r"a\.png has 20x15 pixels and its image 15x20"):
        read_instances(tmp_path / "a.png", 3, (20, 15))


def test_voc_objects_have_the_class_of_their_mask(tmp_path):
    root = write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"], "b": ["cat"], "c": ["cat"]}})
    labels, numbers = np.zeros((2, 6, 8), np.uint8)
    labels[1:5, :3], labels[1:5, 4:7] = 12, 8
    numbers[1:5, :3], numbers[1:5, 4:7], numbers[5], labels[5] = 1, 2, 255, 255
    numbers[1, 7] = 2  # a pixel of background
    write_mask(root / "SegmentationClass" / "a.png", labels)
    write_mask(root / OBJECTS / "a.png", numbers)
    write_mask(root / OBJECTS / "b.png", np.ones((3, 3)))
    data = read_voc(root, "train")
    found = data.instances(data.samples[0])
    assert found.classes == (11, 7)
    assert torch.equal(found.masks, torch.from_numpy(np.stack([numbers == 1, numbers == 2])))
    with pytest.raises(AdvCAMError, match="3x3 pixels and the mask of b 8x6"):
        data.instances(data.samples[1])
    with pytest.raises(NoMaskError, match=r"no instances of c: .*c\.png is missing"):
        data.instances(data.samples[2])
    write_mask(root / "SegmentationClass" / "a.png", np.zeros((6, 8)))
    with pytest.raises(AdvCAMError, match="where the mask of a has no class"):
        data.instances(data.samples[0])
