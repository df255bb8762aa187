"""Image files of all kinds are read right, or are one error that names the file."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey.tif", "grey.pgm", "grey.gif", "grey.bmp"])
def test_grey(tmp_path, name):
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / name)
    np.testing.assert_allclose(pixels(tmp_path / name), grey_rgb(np.floor(RAMP)), atol=3)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_is_scaled(tmp_path, name):
    Image.fromarray((RAMP * 257).astype(np.uint16)).save(tmp_path / name)
    np.testing.assert_allclose(pixels(tmp_path / name), grey_rgb(RAMP), atol=1)


def test_32_bit_integers_and_floats(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "eight_in_32.tif")
    Image.fromarray((RAMP * 257).astype(np.int32)).save(tmp_path / "sixteen_in_32.tif")
    Image.fromarray((RAMP / 255).astype(np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("eight_in_32.tif", "sixteen_in_32.tif", "unit.tif", "float.tif"):
        np.testing.assert_allclose(pixels(tmp_path / name), grey_rgb(RAMP), atol=1)
    Image.fromarray((RAMP - 100).astype(np.float32)).save(tmp_path / "negative.tif")
    with pytest.raises(AdvCAMError, match=r"negative\.tif.*-100 to 155"):
        read_rgb(tmp_path / "negative.tif")


def test_cmyk(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red.save(tmp_path / "print.tif")
    red.save(tmp_path / "print.jpg", quality=95)
    for name in ("print.tif", "print.jpg"):
        np.testing.assert_allclose(pixels(tmp_path / name), np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=4)


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey_clear.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette_clear.png", transparency=1)
    assert (pixels(tmp_path / "clear.png") == 255).all()
    np.testing.assert_allclose(pixels(tmp_path / "half.png")[0, 0], (255, 127, 127), atol=1)
    assert (pixels(tmp_path / "grey_clear.png") == 255).all()
    assert (pixels(tmp_path / "palette.png") == (255, 0, 0)).all()
    assert (pixels(tmp_path / "palette_clear.png") == 255).all()


def test_two_levels(tmp_path):
    Image.fromarray(RAMP > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pixels(tmp_path / "bits.png"), grey_rgb(255 * (RAMP > 128)))


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_truncated_is_rejected(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdvCAMError, match=rf"cannot read image .*{name}.*truncated"):
        read_rgb(tmp_path / name)


def test_what_is_no_image_is_rejected(tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("notes.jpg", "empty.png"):
        with pytest.raises(AdvCAMError, match=rf"not an image that can be read: .*{name}"):
            read_rgb(tmp_path / name)


@pytest.mark.parametrize("read", [read_rgb, read_stored_rgb, image_size, stored_size])
def test_postscript_starts_no_interpreter(tmp_path, monkeypatch, read):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript is started"))
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(AdvCAMError, match=r"not an image that can be read: .*photo\.jpg"):
        read(tmp_path / "photo.jpg")


def test_any_error_of_a_decoder_is_one_line(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fail(*_):
        raise RuntimeError("decoder\nfailed")

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(AdvCAMError, match=r"cannot read image .*a\.png \(decoder failed\)"):
        read_rgb(tmp_path / "a.png")


def test_a_missing_file_has_a_nearest_name(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "kitten.jpg")
    with pytest.raises(AdvCAMError, match=r"no such image file: .*kiten\.jpg \(is it kitten\.jpg\?\)"):
        read_rgb(tmp_path / "kiten.jpg")
    with pytest.raises(AdvCAMError, match=r"no such image file or folder: .*kiten\.jpg"):
        expand_images([tmp_path / "kiten.jpg"])


def test_too_many_pixels_are_rejected(tmp_path, monkeypatch):
    Image.new("1", (30, 30)).save(tmp_path / "vast.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(AdvCAMError, match=r"vast\.png has more than 500 pixels"):
        read_rgb(tmp_path / "vast.png")


def test_folders_are_searched_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "a.jpg", "b/.hidden.jpg", ".cache/3.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand_images([tmp_path / "b" / "2.PNG", tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["b/2.PNG", "a.jpg", "b/1.jpeg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvCAMError, match=r"no images in folder .*empty.*\.jpg"):
        expand_images([tmp_path / "empty"])
