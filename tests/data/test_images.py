"""Image files of all kinds, and the errors of what is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from advcam_attr.data.images import expand_images, image_size, read_rgb, read_stored_rgb, stored_size
from advcam_attr.types import AdvCAMError

RAMP = np.linspace(0, 255, 12 * 8).reshape(8, 12)


def pixels(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grey_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.round(values).astype(int)[..., None], 3, 2)


def test_exif_rotation_is_applied(tmp_path):
    pixels_of = np.zeros((8, 12, 3), np.uint8)
    pixels_of[:, :6] = (255, 0, 0)  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: what was left comes to the top
    Image.fromarray(pixels_of).save(tmp_path / "turned.png", exif=exif)
    shown = pixels(tmp_path / "turned.png")
    assert shown.shape == (12, 8, 3)
    assert (shown[:6] == (255, 0, 0)).all()
    assert (shown[6:] == 0).all()


EIGHT, SIXTEEN = RAMP.astype(np.uint8), RAMP * 257


@pytest.mark.parametrize(
    ("name", "values", "shown", "tolerance"),
    [(f"grey.{ending}", EIGHT, EIGHT, 3) for ending in ("png", "jpg", "tif", "pgm", "gif", "bmp")]
    + [(f"deep.{ending}", SIXTEEN.astype(np.uint16), RAMP, 1) for ending in ("png", "tif", "pgm")]
    + [
        ("8_in_32.tif", RAMP.astype(np.int32), RAMP, 1),
        ("16_in_32.tif", SIXTEEN.astype(np.int32), RAMP, 1),
        ("unit.tif", (RAMP / 255).astype(np.float32), RAMP, 1),
        ("float.tif", RAMP.astype(np.float32), RAMP, 1),
        ("bits.png", RAMP > 128, 255 * (RAMP > 128), 0),
    ],
)
def test_grey_of_every_depth_is_scaled(tmp_path, name, values, shown, tolerance):
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_allclose(pixels(tmp_path / name), grey_rgb(shown), atol=tolerance)


@pytest.mark.parametrize(("name", "options"), [("print.tif", {}), ("print.jpg", {"quality": 95})])
def test_cmyk(tmp_path, name, options):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / name, **options)
    np.testing.assert_allclose(pixels(tmp_path / name), np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=4)


def test_transparency_is_laid_on_white(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    for image, options, colour in (
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), {}, (255, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), {}, (255, 255, 255)),
        (palette, {}, (255, 0, 0)),
        (palette, {"transparency": 1}, (255, 255, 255)),
    ):
        image.save(tmp_path / "a.png", **options)
        np.testing.assert_allclose(pixels(tmp_path / "a.png"), np.broadcast_to(colour, (4, 4, 3)), atol=1)


def test_bad_files_raise(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    Image.fromarray((RAMP - 100).astype(np.float32)).save(tmp_path / "negative.tif")
    (tmp_path / "notes.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    for name, word in (
        ("cut.jpg", "truncated"),
        ("cut.png", "truncated"),
        ("negative.tif", "-100 to 155"),
        ("notes.jpg", "not an image"),
        ("empty.png", "not an image"),
        ("god.png", r"is it good\.png"),
    ):
        with pytest.raises(AdvCAMError, match=word) as error:
            read_rgb(tmp_path / name)
        assert name in str(error.value)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 20)
        with pytest.raises(AdvCAMError, match=r"good\.png has more than 20 pixels"):
            read_rgb(tmp_path / "good.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: 1 / 0)
    with pytest.raises(AdvCAMError, match=r"cannot read image .*good\.png"):
        read_rgb(tmp_path / "good.png")


@pytest.mark.parametrize("read", [read_rgb, read_stored_rgb, image_size, stored_size])
def test_postscript_starts_no_interpreter(tmp_path, monkeypatch, read):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript is started"))
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(AdvCAMError, match=r"not an image that can be read: .*photo\.jpg"):
        read(tmp_path / "photo.jpg")


def test_folders_are_searched_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "a.jpg", "b/.hidden.jpg", ".cache/3.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand_images([tmp_path / "b" / "2.PNG", tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["b/2.PNG", "a.jpg", "b/1.jpeg"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none.jpg"):
        with pytest.raises(AdvCAMError, match=rf"no (such|images).*{name}"):
            expand_images([tmp_path / name])
