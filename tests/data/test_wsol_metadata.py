"""The lists of Choe et al.: labels, boxes, sizes and masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.data.masks import PixelMasks, read_pixel_truth
from advcam_attr.data.wsol_metadata import read_wsol_metadata
from advcam_attr.types import AdvCAMError, Sample
from tiny_wsol import LISTS, write_lists


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
    more = [*LISTS["localization"][:2], *["002.Wren/7.jpg,5,5,5,5"] * 258]
    write_lists(tmp_path / "val", {**LISTS, "localization": more})
    assert len(read_wsol_metadata(tmp_path, "images", "val").boxes["7"]) == 259


def test_published_lists_may_be_empty(tmp_path):
    """Those of OpenImages' sizes, and of ILSVRC's training boxes and sizes, have 0 bytes."""
    write_lists(tmp_path / "ILSVRC" / "train", {**LISTS, "image_sizes": [], "localization": []})
    data = read_wsol_metadata(tmp_path / "ILSVRC", "images", "train")
    assert (data.boxes, data.sizes) == ({}, {})
    truth = ["001.Gull/5.jpg,m0.png,", "002.Wren/7.jpg,m1.png,"]
    write_lists(tmp_path / "OpenImages" / "val", {**LISTS, "image_sizes": [], "localization": truth})
    data = read_wsol_metadata(tmp_path / "OpenImages", "images", "val")
    assert (set(data.masks), data.sizes) == ({"5", "7"}, {})


#: Lists of two images with masks in place of boxes.
MASKED = {**LISTS, "localization": ["001.Gull/5.jpg,m0.png,ignored.png", "002.Wren/7.jpg,m1.png,"]}


@pytest.mark.parametrize("lists", [LISTS, MASKED], ids=["boxes", "masks"])
@pytest.mark.parametrize(
    ("empty", "error"),
    [
        (("image_ids",), "image_ids.txt is empty"),
        (("class_labels",), "no line for 2 of 2 images"),
        (("image_sizes",), None),
        (("localization",), None),
        (("image_sizes", "localization"), None),
        (("image_ids_proxy",), "image_ids_proxy.txt is empty"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\r\n"])
def test_lists_of_zero_bytes(tmp_path, lists, empty, error, content):
    """Only images and labels are needed, and sizes where there are boxes."""
    folder = write_lists(tmp_path / "OpenImages" / "val", lists)
    for name in empty:
        (folder / f"{name}.txt").write_bytes(content)
    if lists is LISTS and empty == ("image_sizes",):
        error = "boxes need the sizes of their images"
    proxy = empty == ("image_ids_proxy",)
    if error is not None:
        with pytest.raises(AdvCAMError, match=error):
            read_wsol_metadata(tmp_path / "OpenImages", "images", "val", proxy=proxy)
        return
    data = read_wsol_metadata(tmp_path / "OpenImages", "images", "val")
    truth = (bool(data.boxes), bool(data.masks))
    assert truth == ((False, False) if "localization" in empty else (False, True))
    assert (len(data.samples), bool(data.sizes)) == (2, "image_sizes" not in empty)


def test_training_lists_have_no_boxes(tmp_path):
    lists = {name: LISTS[name] for name in ("image_ids", "class_labels")}
    write_lists(tmp_path / "ILSVRC" / "train", {**lists, "image_ids_proxy": ["001.Gull/5.jpg"]})
    data = read_wsol_metadata(tmp_path / "ILSVRC", "images", "train")
    assert (data.boxes, data.sizes, len(data.samples), len(data.classes)) == ({}, {}, 2, 1000)
    proxy = read_wsol_metadata(tmp_path / "ILSVRC", "images", "train", proxy=True)
    assert [sample.id for sample in proxy.samples] == ["5"]


GULL, WREN = "001.Gull/5.jpg", "002.Wren/7.jpg"


@pytest.mark.parametrize(
    ("name", "lines", "word"),
    [
        ("class_labels", LISTS["class_labels"][:1], r"no line for 1 of 2 images \(002.Wren/7.jpg\)"),
        ("image_sizes", LISTS["image_sizes"][:1], "no line for 1 of 2 images"),
        ("localization", LISTS["localization"][1:], "no line for 1 of 2 images"),
        ("localization", [f"{GULL},1,2,20,4", f"{WREN},0,0,1,1"], r"5.jpg: the box 1,2,20,4 .* 20x10"),
        ("localization", [f"{GULL},-1,2,3,4", f"{WREN},0,0,1,1"], "box -1,2,3,4 .* not in"),
        ("localization", [f"{GULL},4,2,3,4", f"{WREN},0,0,1,1"], "box 4,2,3,4 .* not in"),
        ("localization", [f"{GULL},a,2,3,4", f"{WREN},0,0,1,1"], "four whole numbers"),
        ("localization", [f"{GULL},1,2,3"], "line 1: .* 3 or 5 fields"),
        ("class_labels", [f"{GULL},gull", f"{WREN},1"], "class of 001.Gull/5.jpg is 'gull'"),
        ("class_labels", [f"{GULL},0", f"{WREN},200"], "class 200, but there are 200"),
        ("image_sizes", [f"{GULL},0,10", f"{WREN},30,12"], "width and height of 001.Gull/5.jpg are 0"),
        ("image_ids", [], "empty"),
        ("image_ids", [GULL, GULL], "001.Gull/5.jpg twice"),
    ],
)
def test_bad_metadata_raises(tmp_path, name, lines, word):
    write_lists(tmp_path / "CUB" / "val", {**LISTS, name: lines})
    with pytest.raises(AdvCAMError, match=word):
        read_wsol_metadata(tmp_path / "CUB", "images", "val")


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
