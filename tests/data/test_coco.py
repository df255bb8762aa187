"""MS COCO: labels and masks, against hand-made scenes, slow oracles and VOC's masks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from advcam_attr.data import voc
from advcam_attr.data.class_names import COCO_NAMES
from advcam_attr.data.coco import CLASSES, DRAW, read_coco
from advcam_attr.data.images import read_rgb
from advcam_attr.data.masks import palette
from advcam_attr.types import AdvCAMError
from tiny_coco import H, Masks, W, annotated, box, write_coco


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length code, counted by hand: columns one after another, zeros first."""
    counts, value = [0], 0
    for pixel in mask.T.ravel():
        counts += [0] if pixel != value else []
        value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def filled(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_labels(tmp_path):
    annotations = [
        annotated(25, 90, [box(0, 0, 4, 4)]),
        annotated(9, 90, [box(0, 0, 4, 4)]),
        annotated(9, 1, run_lengths(filled(0, 0, 2, 2)), crowd=1),
        annotated(9, 90, [box(0, 0, 4, 4)]),
    ]
    data = read_coco(write_coco(tmp_path, annotations, images=(25, 9, 30)), "train")
    assert data.classes == ("person", "table", "zebra")
    assert [(sample.id, sample.labels) for sample in data.samples] == [
        ("COCO_train2014_000000000025", (2,)),
        ("COCO_train2014_000000000009", (0, 2)),
        ("COCO_train2014_000000000030", ()),
    ]
    assert (data.name, data.split, data.root) == ("coco", "train2014", tmp_path)
    assert read_rgb(data.samples[0].image).mode == "RGB", "grey images come as RGB"
    empty = data.mask(data.samples[2])
    assert empty.shape == (H, W)
    assert empty.dtype == torch.uint8
    assert not empty.any()


def test_instances_are_as_annotated(tmp_path):
    annotations = [
        annotated(9, 90, [box(0, 0, 4, 4)]),
        annotated(9, 1, run_lengths(filled(0, 0, 2, 2)), crowd=1),
        annotated(9, 90, [box(2, 2, 8, 8)]),
    ]
    data = read_coco(write_coco(tmp_path, annotations), "train")
    found = data.instances(data.samples[0])
    assert (found.classes, found.crowds) == ((2, 0, 2), {1})
    expected = [filled(0, 0, 4, 4), filled(0, 0, 2, 2), filled(2, 2, 8, 8)]
    assert torch.equal(found.masks, torch.from_numpy(np.stack(expected) > 0))
    assert data.instances(data.samples[1]).masks.shape == (0, H, W)


def painted(tmp_path: Path, *annotations) -> torch.Tensor:
    data = read_coco(write_coco(tmp_path, list(annotations)))
    return data.mask(data.samples[0])


@pytest.mark.parametrize("crowd", [False, True])
def test_instances_are_painted_by_decreasing_area(tmp_path, crowd):
    middle = annotated(9, 90, run_lengths(filled(2, 2, 10, 10)), crowd)
    mask = painted(tmp_path, annotated(9, 1, [box(4, 4, 6, 6)]), middle, annotated(9, 13, [box(0, 0, 16, 12)]))
    expected = np.full((H, W), 2)
    expected[2:10, 2:10] = 255 if crowd else 3
    expected[4:6, 4:6] = 1
    np.testing.assert_array_equal(mask, expected)


def test_ties_parts_and_degenerate_polygons(tmp_path):
    """Of equal areas the later is on top; polygons of two corners paint nothing."""
    mask = painted(tmp_path / "ties", annotated(9, 1, [box(0, 0, 4, 4)]), annotated(9, 90, [box(2, 0, 6, 4)]))
    assert mask[0, :7].tolist() == [1, 1, 3, 3, 3, 3, 0]
    parts = [box(0, 0, 2, 2), [5, 5, 9, 9], box(8, 0, 10, 2)]
    mask = painted(tmp_path, annotated(9, 1, parts), annotated(9, 13, [[5, 5, 9, 9]]))
    np.testing.assert_array_equal(mask, filled(0, 0, 2, 2) | filled(8, 0, 10, 2))


def test_compressed_codes(tmp_path):
    coder = pytest.importorskip("pycocotools.mask")
    shape = np.random.default_rng(0).random((H, W)) > 0.5
    code = coder.encode(np.asfortranarray(shape.astype(np.uint8)))
    mask = painted(tmp_path, annotated(9, 90, {"size": [H, W], "counts": code["counts"].decode()}))
    np.testing.assert_array_equal(mask, 3 * shape)


def test_ready_masks(tmp_path):
    root = write_coco(tmp_path, [annotated(9, 1, [box(0, 0, 4, 4)])])

    def labels(**options) -> list[int]:
        data = read_coco(root, **options)
        return data.mask(data.samples[0]).unique().tolist()

    assert labels() == [0, 1]
    (root / "coco_seg_anno").mkdir()
    Image.fromarray(filled(0, 0, 16, 12) * 3).save(root / "coco_seg_anno" / "000000000009.png")
    assert labels() == [3]
    assert labels(masks=DRAW) == [0, 1]
    data = read_coco(root)
    with pytest.raises(AdvCAMError, match=r"no mask of COCO_train2014_000000000025"):
        data.mask(data.samples[1])
    (tmp_path / "mine").mkdir()
    colours = Image.fromarray(palette()[filled(0, 0, 16, 12) * 2])
    colours.save(tmp_path / "mine" / "COCO_train2014_000000000009.png")
    assert labels(masks=tmp_path / "mine") == [2]
    with pytest.raises(AdvCAMError, match=r"no such folder"):
        labels(masks=tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "name", "id"),
    [
        ("val2014", "COCO_val2014_{:012d}.jpg", "COCO_val2014_000000000009"),
        ("images/val2014", "COCO_val2014_{:012d}.jpg", "COCO_val2014_000000000009"),
        ("JPEGImages", "{:012d}.jpg", "000000000009"),
    ],
    ids=["published", "images", "RIB"],
)
def test_layouts(tmp_path, folder, name, id):
    annotations = [annotated(9, 13, [box(0, 0, 4, 4)])]
    write_coco(tmp_path / "coco", annotations, split="val2014", folder=folder, name=name.format)
    data = read_coco(tmp_path, "val")
    assert data.samples[0].id == id
    assert data.samples[0].image == tmp_path / "coco" / folder / name.format(9)
    assert data.mask(data.samples[0]).max() == 2


def test_lists_and_tables_of_labels(tmp_path):
    root = write_coco(tmp_path, [annotated(9, 1, [box(0, 0, 4, 4)])], images=(9, 25, 30))
    np.save(tmp_path / "labels.npy", {25: np.array([0, 1, 1]), np.int32(9): np.array([0.0, 0, 0])})
    with pytest.raises(AdvCAMError, match=r"labels\.npy has no labels for 1 of 3 images \(30\)"):
        read_coco(root, labels=tmp_path / "labels.npy")
    for text in (
        "25\n9\n",
        "COCO_train2014_000000000025\nCOCO_train2014_000000000009\n",
        "JPEGImages/000000000025.jpg\n9",
    ):
        (tmp_path / "ids.txt").write_text(text)
        data = read_coco(root, ids=tmp_path / "ids.txt", labels=tmp_path / "labels.npy")
        assert [(sample.id[-2:], sample.labels) for sample in data.samples] == [("25", (1, 2)), ("09", ())]
    (tmp_path / "ids.txt").write_text("7\n9\n")
    with pytest.raises(AdvCAMError, match=r"ids\.txt names 1 images that the annotations do not have \(7\)"):
        read_coco(root, ids=tmp_path / "ids.txt")


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_masks_in_other_processes(tmp_path, context):
    data = read_coco(write_coco(tmp_path, [annotated(25, 13, [box(0, 0, 4, 4)])]))
    loader = DataLoader(Masks(data), batch_size=None, num_workers=1, multiprocessing_context=context)
    for mask, sample in zip(loader, data.samples, strict=True):
        assert torch.equal(mask, data.mask(sample))


def test_wrong_roots_and_splits(tmp_path, monkeypatch):
    root = write_coco(tmp_path, [])
    for place, split, words in ((tmp_path / "none", "train", "no such folder"), (root, "val", "there are train2014")):
        with pytest.raises(AdvCAMError, match=words):
            read_coco(place, split)
    data = read_coco(root)
    Image.new("RGB", (W, H + 1)).save(data.samples[1].image)
    with pytest.raises(AdvCAMError, match="16x13 pixels, and 16x12"):
        data.mask(data.samples[1])
    for file in (root / "train2014").iterdir():
        file.unlink()
    with pytest.raises(AdvCAMError, match="none of the 2 images"):
        read_coco(root)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(AdvCAMError, match=r"advcam_attr\[segmentation\]"):
        read_coco(root)


def image(id: int = 9, **changes) -> dict:
    return {"id": id, "file_name": "COCO_train2014_000000000009.jpg", "height": H, "width": W} | changes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": []}, "lists 0 images"),
        ({"images": [image(height=10**5, width=10**5)]}, "100000x100000 pixels"),
        ({"images": [image(height="8")]}, "whole number"),
        ({"images": [{"id": 9, "file_name": "..", "height": 8}]}, "is no instances"),
        ({"images": [image(), image()]}, "two images of one id: 9"),
        ({"images": [image(), image(10)]}, "two images of one file name"),
        ({"annotations": [annotated(9, 1, [])]}, "no segmentation"),
        ({"annotations": [annotated(9, 1, 5)]}, "no segmentation"),
        ({"annotations": [annotated(9, 1, [box(0, 0, 4, 4), 3])]}, "not a list of x, y"),
        ({"annotations": [annotated(9, 1, [["0", "1"] * 3])]}, "not a list of x, y"),
        ({"annotations": [annotated(9, 1, [[0, 1, 2]])]}, "not a list of x, y"),
        ({"categories": None}, "is no instances"),
        ({"annotations": [{"image_id": 9, "caption": "a dog"}]}, "KeyError: 'seg"),
        ({"annotations": [annotated(9, 2, [box(0, 0, 4, 4)])]}, "category 2"),
        ({"annotations": [annotated(7, 1, [box(0, 0, 4, 4)])]}, "image 7"),
    ],
)
def test_bad_annotations(tmp_path, changes, word):
    root = write_coco(tmp_path, [], changes=changes)
    with pytest.raises(AdvCAMError, match=word):
        read_coco(root)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-10], lambda whole: b"[" * 10**5], ids=["truncated", "deep"])
def test_damaged_annotations(tmp_path, damage):
    file = write_coco(tmp_path, []) / "annotations" / "instances_train2014.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(AdvCAMError, match=r"cannot read .*instances_train2014\.json"):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"size": [5, 5], "counts": [25]}, "of size"),
        ({"size": [H, W], "counts": [25]}, "of 25 pixels"),
        ({"size": [H, W], "counts": [0, 10**6]}, "of 1000000 pixels"),
        ({"size": [H, W], "counts": [-1, H * W + 1]}, "not made of counts"),
        ({"size": [H, W], "counts": [0.5, H * W - 0.5]}, "not made of counts"),
        ({"size": [H, W], "counts": "none"}, "run-length code"),
        ({"size": [H, W], "counts": "\n"}, "cannot be decoded"),
        ({"size": [H, W], "counts": "o" * 50}, "cannot be decoded"),
        ({"size": [H, W]}, "counts"),
        ([[0, 0, 4, 0, 4, 1e30]], "vertex outside"),
        ([[0, 0, 4, 0, 4, -20]], "vertex outside"),
        ([[0, 0, 4, 0, float("inf"), 3]], "vertex outside"),
        ([[0, 0, 4, 0, float("nan"), 3]], "vertex outside"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, code, message):
    data = read_coco(write_coco(tmp_path, [annotated(9, 1, code)]))
    with pytest.raises(AdvCAMError, match=f"COCO_train2014_000000000009.jpg has an instance with .*{message}"):
        data.mask(data.samples[0])


@pytest.fixture(scope="module")
def real(data_root):
    return read_coco(data_root / "coco", "train")


def test_real_annotations(real):
    assert len(real.samples) == 128
    assert real.classes == CLASSES
    annotations = real.mask.instances.api.anns.values()
    assert len(annotations) == 939
    assert sum(annotation["iscrowd"] for annotation in annotations) == 10
    assert sum(not sample.labels for sample in real.samples) == 2
    assert all(read_rgb(s.image).size == tuple(real.mask.images[s.id].size[::-1]) for s in real.samples)


def test_labels_are_those_of_the_masks(real):
    """A class may be hidden in the mask, or be a crowd alone; none may be in the mask and not among the labels."""
    hidden = total = 0
    for sample in real.samples:
        shown = {k - 1 for k in real.mask(sample).unique().tolist() if k not in (0, 255)}
        assert shown <= set(sample.labels)
        hidden, total = hidden + len(set(sample.labels) - shown), total + len(sample.labels)
    assert total > 300
    assert hidden < 0.02 * total


def test_painting_against_a_slow_oracle(real, data_root):
    """Every pixel belongs to the smallest instance that covers it; of equals, to the last in the file."""
    api = pytest.importorskip("pycocotools.coco").COCO
    coco = api(str(data_root / "coco" / "annotations" / "instances_train2014.json"))
    classes = {category: k + 1 for k, category in enumerate(sorted(coco.cats))}
    for sample in real.samples[::4]:
        best = np.full(real.mask.images[sample.id].size, np.inf)
        expected = np.zeros(best.shape, np.uint8)
        for instance in coco.imgToAnns[real.mask.images[sample.id].number]:
            shape = coco.annToMask(instance).astype(bool)
            wins = shape & (shape.sum() <= best)
            best[wins] = shape.sum()
            expected[wins] = 255 if instance["iscrowd"] else classes[instance["category_id"]]
        np.testing.assert_array_equal(real.mask(sample), expected)


def test_painting_against_another_rasteriser(real, data_root):
    content = json.loads((data_root / "coco" / "annotations" / "instances_train2014.json").read_text())
    polygons = {image["id"]: [] for image in content["images"]}
    for instance in content["annotations"]:
        polygons[instance["image_id"]].append(instance)
    compared = differing = 0
    for sample in real.samples:
        image = real.mask.images[sample.id]
        instances = polygons[image.number]
        if any(instance["iscrowd"] for instance in instances):
            continue
        covered = Image.new("1", image.size[::-1])
        for instance in instances:
            for corners in instance["segmentation"]:
                ImageDraw.Draw(covered).polygon([x - 0.5 for x in corners], fill=1)
        differing += int((np.asarray(covered) != (real.mask(sample).numpy() > 0)).sum())
        compared += covered.width * covered.height
    assert compared > 1e7
    assert differing / compared < 0.01, "outlines may differ by a pixel"


def test_masks_agree_with_vocs_of_the_same_images(real, data_root):
    voc_names = {theirs: ours for ours, theirs in COCO_NAMES.items()}
    names = [voc_names.get(name, name) for name in CLASSES]
    table = np.zeros(256, np.uint8)
    for k, name in enumerate(names):
        table[k + 1] = voc.CLASSES.index(name) + 1 if name in voc.CLASSES else 0
    by_number = {real.mask.images[sample.id].number: sample for sample in real.samples}
    others = voc.read_voc(data_root / "voc", "trainval")
    agreeing = both = 0
    for other in others.samples:
        sample = by_number[int(other.id.split("_")[1])]
        assert {names[k] for k in sample.labels} & set(voc.CLASSES) >= {voc.CLASSES[k] for k in other.labels}
        ours, theirs = table[real.mask(sample)], others.mask(other).numpy()
        counted = (ours > 0) & (theirs > 0) & (theirs < 255)
        agreeing += int((ours == theirs)[counted].sum())
        both += int(counted.sum())
    assert both > 1e6
    assert agreeing / both > 0.99
