"""PASCAL VOC: layouts, lists, sources of labels, and errors."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.data.images import read_rgb
from advcam_attr.data.labels import read_annotation, read_list
from advcam_attr.data.samples import without_missing
from advcam_attr.data.voc import CLASSES, find_voc, read_voc
from advcam_attr.types import AdvCAMError
from tiny_voc import write_annotation, write_mask, write_voc

TRAIN = {"2007_000032": ["aeroplane", "person", "person"], "2007_000039": ["tvmonitor"]}
VAL = {"2007_000033": ["aeroplane"], "2007_000042": ["train", "person"]}


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": TRAIN, "val": VAL})


def labels_by_id(data) -> dict[str, tuple[int, ...]]:
    return {sample.id: sample.labels for sample in data.samples}


def test_the_root_is_found_from_each_folder_above(voc, tmp_path):
    for root in (voc, voc.parent, voc.parents[1]):
        data = read_voc(root, "train")
        assert (data.name, data.root, data.split, data.classes) == ("voc", voc, "train", CLASSES)
        assert labels_by_id(data) == {"2007_000032": (0, 14), "2007_000039": (19,)}
        assert data.samples[0].image == voc / "JPEGImages" / "2007_000032.jpg"
    (tmp_path / "rib" / "JPEGImages").mkdir(parents=True)
    for name, word in (("none", "no such"), ("rib", "beside ImageSets")):
        with pytest.raises(AdvCAMError, match=f"looked for JPEGImages.*{word}"):
            find_voc(tmp_path / name)


def test_masks(voc):
    data = read_voc(voc, "val")
    assert [sorted(data.mask(sample).unique().tolist()) for sample in data.samples] == [[0, 1], [0, 15, 19]]
    again = pickle.loads(pickle.dumps(data.mask))
    assert (again(data.samples[1]) == data.mask(data.samples[1])).all()
    write_mask(voc / "SegmentationClass" / "2007_000033.png", np.zeros((5, 8)))
    with pytest.raises(AdvCAMError, match=r"2007_000033\.png has 8x5 pixels and its image 8x6"):
        data.mask(data.samples[0])
    (voc / "SegmentationClass" / "2007_000042.png").unlink()
    with pytest.raises(AdvCAMError, match=r"no mask of 2007_000042: it is not in .*SegmentationClass$"):
        data.mask(data.samples[1])


def add_augmented(voc: Path, *ids: str) -> None:
    for id in ids:
        write_mask(voc / "SegmentationClassAug" / f"{id}.png", np.full((6, 8), 3))
        write_annotation(voc / "Annotations" / f"{id}.xml", ["bird"])
        if not (voc / "JPEGImages" / f"{id}.jpg").exists():
            Image.new("RGB", (8, 6)).save(voc / "JPEGImages" / f"{id}.jpg")


@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_train_aug_is_the_augmented_and_train_less_val(voc, name):
    add_augmented(voc, "2008_000008", "2007_000033", "2007_000032")
    data = read_voc(voc, name)
    assert data.split == "train_aug"
    assert list(labels_by_id(data)) == ["2007_000032", "2007_000039", "2008_000008"]
    assert [data.mask(sample).unique().tolist() for sample in data.samples] == [[3], [0, 20], [3]]
    assert read_voc(voc, "train").mask(data.samples[0]).unique().tolist() == [0, 1, 15]
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2008_000008\n2007_000039\n")
    assert list(labels_by_id(read_voc(voc, name))) == ["2008_000008", "2007_000039"], "a list goes first"


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2012", "VOCdevkit", "."])
def test_train_aug_from_the_lists_of_sbd(voc, tmp_path, place):
    add_augmented(voc, "2008_000008", "2009_000001")
    shutil.rmtree(voc / "SegmentationClassAug")
    with pytest.raises(AdvCAMError, match=r"no train_aug at .*benchmark_RELEASE"):
        read_voc(voc, "train_aug")
    sbd = tmp_path / place / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("2008_000008\n2007_000033\n")
    (sbd / "val.txt").write_text("2009_000001\n2007_000039\n")
    expected = ["2007_000032", "2007_000039", "2008_000008", "2009_000001"]
    assert list(labels_by_id(read_voc(voc, "train_aug"))) == expected
    elsewhere = sbd.parent.rename(tmp_path / "elsewhere")
    assert list(labels_by_id(read_voc(voc, "train_aug", sbd=elsewhere))) == expected
    with pytest.raises(AdvCAMError, match="no Semantic Boundaries Dataset at"):
        read_voc(voc, "train_aug", sbd=tmp_path / "nowhere")


def test_train_aug_from_the_masks_of_sbd(voc, tmp_path):
    io = pytest.importorskip("scipy.io")
    add_augmented(voc, "2008_000008")
    (voc / "SegmentationClassAug").rename(tmp_path / "gone")
    (tmp_path / "sbd" / "cls").mkdir(parents=True)
    labels = np.full((6, 8), 3, np.uint8)
    io.savemat(tmp_path / "sbd" / "cls" / "2008_000008.mat", {"GTcls": {"Segmentation": labels}})
    data = read_voc(voc, "train_aug")
    assert list(labels_by_id(data)) == ["2007_000032", "2007_000039", "2008_000008"]
    assert data.mask(data.samples[2]).unique().tolist() == [3]


@pytest.mark.parametrize(
    "text",
    [
        "2007_000032\n2007_000039",
        "\ufeff2007_000032\r\n\r\n  2007_000039  \r\n",
        "JPEGImages/2007_000032.jpg\nJPEGImages/2007_000039.jpg\n",
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n"
        "/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n",
    ],
    ids=["ids", "Windows", "images", "images and masks"],
)
def test_styles_of_lists(voc, tmp_path, text):
    folders = ("SegmentationClassAug",) if "Aug" in text else ()
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    listed = read_list(tmp_path / "mine.txt")
    assert (listed.ids, listed.mask_folders) == (("2007_000032", "2007_000039"), folders)
    add_augmented(voc, "2007_000032")
    data = read_voc(voc, tmp_path / "mine.txt")
    assert data.split == "mine"
    assert data.mask(data.samples[0]).unique().tolist() == ([3] if folders else [0, 1, 15])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("a\nb\n\na\n", "a twice, in lines 1 and 4"),
        ("2007_000032  1\n2007_000039 -1\n", "line 1: '2007_000032  1' is not an id"),
        ("a.jpg b.png\n", r"line 1: 'a\.jpg b\.png'"),
        ("ok\n../\n", r"line 2: '\.\./'"),
    ],
)
def test_bad_lists_raise(tmp_path, text, word):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(AdvCAMError, match=rf"mine\.txt.*{word}"):
        read_list(tmp_path / "mine.txt")


def test_splits_that_cannot_be_read_raise(voc, tmp_path):
    images = voc / "JPEGImages"
    for split, word in ((tmp_path / "none.txt", r"none\.txt"), ("trian", "mean 'train'"), ("test", r"test\.txt")):
        with pytest.raises(AdvCAMError, match=f"no (such )?list of .*{word}"):
            read_voc(voc, split)
    Image.new("RGB", (8, 6)).save(images / "2007_000032.png")
    with pytest.raises(AdvCAMError, match=r"two images of one id: .*2007_000032\.jpg and 2007_000032\.png"):
        read_voc(voc, "train")
    assert len(read_voc(voc, "val").samples) == 2, "other splits are as they were"
    (images / "2007_000032.png").unlink()
    (voc / "Annotations" / "2007_000039.xml").unlink()
    with pytest.raises(AdvCAMError, match=r"no labels for 1 of 2 images of train: .* lacks 2007_000039"):
        read_voc(voc, "train")
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(AdvCAMError, match="none of the 2 images of train"):
        read_voc(voc, "train")


def hot(*classes):
    return np.isin(np.arange(20), classes).astype(np.float32)


def test_labels_from_a_table(voc, tmp_path):
    for table in (
        {np.int32(2007000032): hot(3), np.int32(2007000039): hot(0, 19), np.int32(7): hot()},
        {"2007_000032": hot(3), "2007_000039": hot(0, 19)},
    ):
        np.save(tmp_path / "labels.npy", table)
        data = read_voc(voc, "train", labels=tmp_path / "labels.npy")
        assert labels_by_id(data) == {"2007_000032": (3,), "2007_000039": (0, 19)}
    with pytest.raises(AdvCAMError, match=r"no labels for 2 of 2 images \(2007_000033, 2007_000042\)"):
        read_voc(voc, "val", labels=tmp_path / "labels.npy")


@pytest.mark.parametrize("table", [{"2007_000032": np.zeros(80)}, {"2007_000032": hot(3) * 0.5}, np.zeros((2, 20))])
def test_bad_tables_of_labels_raise(voc, tmp_path, table):
    np.save(tmp_path / "labels.npy", table)
    with pytest.raises(AdvCAMError, match=r"20 zeros and ones|no table of labels"):
        read_voc(voc, "train", labels=tmp_path / "labels.npy")


def test_the_test_split_has_no_labels_but_those_of_a_table(voc, tmp_path):
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_000032\n")
    data = read_voc(voc, "test")
    assert labels_by_id(data) == {"2007_000032": ()}, "its annotations, if any, are those of another task"
    np.save(tmp_path / "mine.npy", {"2007_000032": np.arange(20) == 5})
    assert labels_by_id(read_voc(voc, "test", labels=tmp_path / "mine.npy")) == {"2007_000032": (5,)}


def test_annotations(tmp_path):
    file = tmp_path / "a.xml"
    write_annotation(file, ["person", "aeroplane", "person"], difficult=1)
    assert read_annotation(file, CLASSES) == (0, 14), "difficult objects count; parts and owners do not"
    write_annotation(file, [])
    assert read_annotation(file, CLASSES) == ()


ENTITY = "<!DOCTYPE annotation [{}]><annotation><object><name>&a;</name></object></annotation>"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such annotation"),
        ("<annotation><object><name>areoplane</name></object></annotation>", "did you mean 'aero"),
        ("<annotation><object><name>person</name>", "cannot read annotation"),
        ("<annotation>" * 20_000 + "</annotation>" * 20_000, "nested too deeply"),
        (ENTITY.format('<!ENTITY a "person">'), "DTD"),
        (ENTITY.format('<!ENTITY a SYSTEM "file:///etc/hostname">'), "DTD"),
        (ENTITY.format('<!ENTITY % a "x">'), "DTD"),
    ],
    ids=["none", "class", "truncated", "deep", "entity", "external entity", "parameter entity"],
)
def test_bad_annotations_raise(tmp_path, content, word):
    if content is not None:
        (tmp_path / "a.xml").write_text(content)
    with pytest.raises(AdvCAMError, match=word):
        read_annotation(tmp_path / "a.xml", CLASSES)


def test_missing_images(voc):
    (voc / "JPEGImages" / "2007_000032.jpg").unlink()
    data = read_voc(voc, "train")
    with pytest.raises(AdvCAMError, match="no such image file"):
        read_rgb(data.samples[0].image)
    assert data.mask(data.samples[0]).shape == (6, 8)
    rest, missing = without_missing(data)
    assert [sample.id for sample in rest.samples] == ["2007_000039"]
    assert missing == data.samples[:1]
    assert without_missing(rest) == (rest, ())


def test_real_images(data_root):
    splits = {split: read_voc(data_root / "voc", split) for split in ("train", "val", "trainval")}
    assert {split: len(data.samples) for split, data in splits.items()} == {"train": 70, "val": 24, "trainval": 94}
    together = {s.id for s in splits["train"].samples} | {s.id for s in splits["val"].samples}
    assert together == {s.id for s in splits["trainval"].samples}
    for sample in splits["trainval"].samples:
        mask = splits["trainval"].mask(sample)
        image = read_rgb(sample.image)
        assert mask.shape == (image.height, image.width)
        assert set(mask.unique().tolist()) - {0, 255} <= {k + 1 for k in sample.labels}
        assert sample.labels
