"""Label maps in every format of the field, and saliency maps."""

import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.images import image_size, read_rgb
from advcam_attr.data.masks import PixelMasks, SaliencyFolder, palette, read_mask, read_pixel_truth
from advcam_attr.data.voc import read_voc
from advcam_attr.types import AdvCAMError, Sample

LABELS = np.array([[0, 0, 1, 20], [255, 7, 7, 15], [0, 3, 3, 255]], np.uint8)

#: The colours of the labels 0 to 20, as the development kit's documentation prints them.
PUBLISHED = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
    (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip


def with_palette(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(colours.astype(np.uint8).ravel().tolist())
    return image


def test_palette_is_the_published_one():
    assert [tuple(colour) for colour in palette()[:21].tolist()] == PUBLISHED
    assert palette()[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in palette().tolist()}) == 256


USED, PACKED = np.unique(LABELS, return_inverse=True)
PACKED = PACKED.reshape(LABELS.shape).astype(np.uint8)

IMAGES = {
    "palette": lambda: with_palette(LABELS, palette()),
    "grey": lambda: Image.fromarray(LABELS),
    "grey of 16 bits": lambda: Image.fromarray(LABELS.astype(np.uint16)),
    "palette of greys": lambda: with_palette(LABELS, np.repeat(np.arange(256)[:, None], 3, 1)),
    "palette without colours": lambda: with_palette(LABELS, np.zeros((256, 3))),
    "packed palette": lambda: with_palette(PACKED, palette()[USED]),
    "colours": lambda: Image.fromarray(palette()[LABELS]),
    "colours and alpha": lambda: Image.fromarray(palette()[LABELS]).convert("RGBA"),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())
def test_every_way_of_writing_gives_the_labels(tmp_path, make):
    make().save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", 20, (3, 4))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, torch.from_numpy(LABELS))


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        (Image.fromarray(LABELS > 0), LABELS > 0),
        (with_palette(np.full((3, 4), 5, np.uint8), np.zeros((256, 3))), np.full((3, 4), 5)),
        (with_palette(np.zeros((3, 4), np.uint8), palette()[[15]]), np.full((3, 4), 15)),
    ],
    ids=["two levels", "a palette of one colour", "a packed palette of one label"],
)
def test_masks_of_few_labels(tmp_path, image, labels):
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 20), labels)


def test_bad_masks_raise(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 20, (64, 64)).astype(np.uint8)).save(tmp_path / "long.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "long.png").read_bytes()[:800])
    (tmp_path / "m.mat").touch()
    for image, name in (
        (with_palette(LABELS, palette()), "m.png"),
        (Image.fromarray(np.full((4, 4, 3), 77, np.uint8)), "photo.png"),
        (Image.fromarray((LABELS.astype(np.uint16)) * 300), "deep.png"),
    ):
        image.save(tmp_path / name)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    for name, classes, size, word in (
        ("m.png", 10, None, "labels 15, 20, but there are 10 classes"),
        ("m.png", 20, (6, 8), "has 4x3 pixels and its image 8x6"),
        ("none.png", 20, None, "no such mask"),
        ("photo.png", 20, None, r"the colour \(77, 77, 77\)"),
        ("deep.png", 20, None, "mode I;16"),
        ("text.png", 20, None, "not a mask that can be read"),
        ("short.png", 20, None, "cannot read mask"),
        ("m.mat", 20, None, "not a GTcls file"),
    ):
        with pytest.raises(AdvCAMError, match=word) as error:
            read_mask(tmp_path / name, classes, size)
        assert name in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    for read in (lambda path: read_mask(path, 20), image_size):
        with pytest.raises(AdvCAMError, match=r"m\.png has more than 5 pixels"):
            read(tmp_path / "m.png")


def test_masks_of_the_semantic_boundaries_dataset(tmp_path):
    io = pytest.importorskip("scipy.io")
    labels = np.where(LABELS == 255, 0, LABELS)
    contents = {"Segmentation": labels, "CategoriesPresent": np.array([[1], [3]], np.uint8)}
    io.savemat(tmp_path / "m.mat", {"GTcls": contents}, do_compression=True)
    assert torch.equal(read_mask(tmp_path / "m.mat", 20), torch.from_numpy(labels))
    (tmp_path / "bad.mat").write_bytes((tmp_path / "m.mat").read_bytes()[:150])
    with pytest.raises(AdvCAMError, match=r"cannot read mask .*bad\.mat: not a GTcls file"):
        read_mask(tmp_path / "bad.mat", 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_that_of_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12, 8)).save(tmp_path / "p.jpg", exif=exif)
    upright = read_rgb(tmp_path / "p.jpg")
    assert image_size(tmp_path / "p.jpg") == (upright.height, upright.width)


SAMPLE = Sample("2007_000032", Path("JPEGImages/2007_000032.jpg"), (0,))
RAMP = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_pngs_are_read_before_jpegs(tmp_path, mode):
    Image.fromarray(RAMP).save(tmp_path / "2007_000032.jpg", quality=95)
    saliency = pickle.loads(pickle.dumps(SaliencyFolder(tmp_path)))
    np.testing.assert_allclose(saliency(SAMPLE, (6, 8)), RAMP / 255, atol=0.05)
    Image.fromarray(RAMP[::-1]).convert(mode).save(tmp_path / "2007_000032.png")
    np.testing.assert_allclose(saliency(SAMPLE, (6, 8)), RAMP[::-1] / 255, atol=1e-7)
    assert saliency(SAMPLE, (6, 8)).dtype == torch.float32


def test_resizing_is_bilinear_and_stays_within_0_and_1(tmp_path):
    Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).save(tmp_path / "2007_000032.png")
    np.testing.assert_allclose(SaliencyFolder(str(tmp_path))(SAMPLE, (4, 4)), [[0, 0.25, 0.75, 1]] * 4)


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        *((size, True) for size in ((375, 500), (188, 250), (187, 250), (256, 341), (8, 10))),
        *((size, False) for size in ((500, 375), (256, 256), (352, 500))),
    ],
)
def test_maps_of_the_images_proportions_alone_are_resized(tmp_path, size, fits):
    Image.new("L", size[::-1], 90).save(tmp_path / "2007_000032.png")
    if fits:
        saliency = SaliencyFolder(tmp_path)(SAMPLE, (375, 500))
        np.testing.assert_allclose(saliency, np.full((375, 500), 90 / 255), rtol=1e-5)
    else:
        with pytest.raises(AdvCAMError, match=rf"{size[1]}x{size[0]} pixels and its image 500x375"):
            SaliencyFolder(tmp_path)(SAMPLE, (375, 500))


def test_bad_saliency_maps_raise(tmp_path, data_root):
    with pytest.raises(AdvCAMError, match="no such folder"):
        SaliencyFolder(tmp_path / "none")
    with pytest.raises(AdvCAMError, match="no saliency map of 2007_000032"):
        SaliencyFolder(tmp_path)(SAMPLE, (6, 8))
    (tmp_path / "2007_000032.png").write_bytes(b"none")
    with pytest.raises(AdvCAMError, match=r"2007_000032\.png"):
        SaliencyFolder(tmp_path)(SAMPLE, (6, 8))
    data = read_voc(data_root / "voc", "val")
    with pytest.raises(AdvCAMError, match="colour image"):
        SaliencyFolder(data.root / "JPEGImages")(data.samples[0], tuple(data.mask(data.samples[0]).shape))


def mat(shape: tuple[int, ...] = (2, 3), fields: int = 1, numbers: bytes = bytes(range(6))) -> bytes:
    """A GTcls file by hand: a structure with a matrix of bytes."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    def matrix(kind: int, shape: tuple[int, ...], name: bytes, content: bytes) -> bytes:
        head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
        return element(14, head + element(1, name) + content)

    names = element(5, struct.pack("<i", 13)) + element(1, b"Segmentation\0" * fields)
    field = matrix(9, shape, b"", element(2, numbers))
    return b" " * 124 + b"\0\1IM" + matrix(2, (1, 1), b"GTcls", names + field)


def test_sbd_files_are_read_without_scipy(tmp_path):
    (tmp_path / "m.mat").write_bytes(mat())
    assert read_mask(tmp_path / "m.mat", 20).tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    "content",
    [
        mat(shape=(2**31 - 1, 2**31 - 1)), mat(shape=(-2, -3)), mat(shape=(6,)), mat(fields=2), mat(fields=0),
        mat()[:-8],
        mat(numbers=b""), mat().replace(b"GTcls", b"GTxls"), mat().replace(b"IM", b"MI"), b"", b"\0" * 300,
        mat()[:128] + struct.pack("<II", 15, 40) + zlib.compress(bytes(1 << 20))[:40],
    ],
)  # fmt: skip
def test_damaged_sbd_files_are_errors(tmp_path, content):
    (tmp_path / "m.mat").write_bytes(content)
    with pytest.raises(AdvCAMError, match=r"cannot read mask .*m\.mat"):
        read_mask(tmp_path / "m.mat", 20)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("kind", ["labels", "pixels"])
def test_lossy_masks_raise(tmp_path, format, kind):
    """A grey JPEG of labels has labels that are not there, and no sign of it."""
    path = tmp_path / "m.png"
    Image.fromarray(np.kron(LABELS, np.ones((9, 9), np.uint8))).save(path, format, quality=95)
    with pytest.raises(AdvCAMError, match=f"m.png is a {format}, whose compression changes labels; save it as PNG"):
        read_mask(path, 20) if kind == "labels" else read_pixel_truth(PixelMasks((path,), None))
