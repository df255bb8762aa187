"""ImageNet: class folders, flat folders, ImageNetV2 and XML boxes."""

import pytest
import torch
from PIL import Image

from advcam_attr.data.datasets import SingleLabelDataset
from advcam_attr.data.imagenet import class_folders, read_box_annotation, read_imagenet
from advcam_attr.types import AdvCAMError
from tiny_wsol import annotation, photograph


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
    ("boxes", "word"),
    [
        ([(21, 0, 25, 4)], "is not in the image"),
        ([(5, 5, 4, 8)], "is not in the image"),
        ([], "of 0 synsets"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "DTD"),
        ("<annotation><size><width>wide</width></size></annotation>", "no annotation of ImageNet"),
    ],
)
def test_bad_annotations_raise(tmp_path, boxes, word):
    path = tmp_path / "a.xml"
    path.write_text(boxes) if isinstance(boxes, str) else annotation(path, "n00000001", boxes)
    with pytest.raises(AdvCAMError, match=word):
        read_box_annotation(path)


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
