"""Overlays: where the evidence is and nowhere else; images and maps of every kind; grids of images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import advcam_attr
from advcam_attr import AdvCAM, overlay, show
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.overlay import heat_over, panels

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
PHOTOGRAPH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def spot(value: float = 1.0, at: tuple[int, int] = (1, 2)) -> np.ndarray:
    map = np.zeros((3, 4))
    map[at] = value
    return map


def test_the_tint_is_the_map_by_hand():
    """Opacity is alpha times the map's share of its peak: half of 0.8 at the cell of half the peak."""
    grey = np.full((1, 3, 3), 0.5)
    found = pixels(overlay(grey, np.array([[0.0, 1.0, 2.0]]), alpha=0.8, cmap="gray"))
    expected = [0.5, 0.6 * 0.5 + 0.4 * 0.5, 0.2 * 0.5 + 0.8 * 1]
    assert found[0, :, 0] == pytest.approx(np.array(expected) * 255, abs=1.01)


def test_without_evidence_the_image_stays():
    found, before = pixels(overlay(PHOTOGRAPH, spot())), pixels(PHOTOGRAPH)
    changed = (found != before).any(2)
    assert changed[30, 50]
    assert not changed[:, :30].any()
    for nothing in (np.zeros((3, 4)), -RAMP):
        assert np.array_equal(pixels(overlay(PHOTOGRAPH, nothing)), before)
    assert np.array_equal(heat_over(before / 255, np.zeros((60, 80))), before / 255)


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (1, 1, 3, 4)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda map: torch.from_numpy(map).requires_grad_()])
def test_maps_of_every_shape_are_one(shape, kind):
    expected = pixels(overlay(PHOTOGRAPH, RAMP))
    assert np.array_equal(pixels(overlay(PHOTOGRAPH, kind(RAMP.reshape(shape)))), expected)


def test_images_of_every_kind_are_one():
    expected, array = pixels(overlay(PHOTOGRAPH, RAMP)), np.asarray(PHOTOGRAPH)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    taken = ((tensor / 255 - mean[:, None, None]) / std[:, None, None])[None]
    model = torch.nn.Identity()
    model.mean, model.std = mean.tolist(), std.tolist()
    configured = torch.nn.Identity()
    configured.pretrained_cfg = {"mean": mean.tolist(), "std": std.tolist()}
    found = [
        overlay(array, RAMP), overlay(array / 255, RAMP), overlay(tensor, RAMP), overlay(tensor[None] / 255, RAMP),
        overlay(taken, RAMP, mean=mean.tolist(), std=std.tolist()),
        overlay(taken[0], RAMP, model=model), overlay(taken, RAMP, model=configured),
    ]  # fmt: skip
    for one in found:
        assert (one.mode, one.size) == ("RGB", PHOTOGRAPH.size)
        assert np.abs(pixels(one) - expected).max() <= 1
    grey = PHOTOGRAPH.convert("L")
    assert np.array_equal(pixels(overlay(grey, RAMP)), pixels(overlay(np.asarray(grey), RAMP)))


def test_a_box_places_the_map():
    """In the right half of the photograph, a map of two columns has the tint of the same map over that half alone."""
    half = PHOTOGRAPH.crop((40, 0, 80, 60))
    map = np.array([[0.2, 1.0], [0.5, 0.0], [0.1, 0.7]])
    found = overlay(PHOTOGRAPH, map, box=(40, 0, 80, 60))
    assert np.array_equal(pixels(found)[:, 40:], pixels(overlay(half, map)))
    assert np.array_equal(pixels(found)[:, :40], pixels(PHOTOGRAPH)[:, :40])
    beyond = overlay(PHOTOGRAPH, map, box=(40, -30, 120, 90))
    assert np.array_equal(pixels(beyond)[:, :40], pixels(PHOTOGRAPH)[:, :40])


def test_attributions_go_straight_in():
    model = timm.create_model("test_resnet", pretrained=False).eval()
    x = torch.randn(1, 3, 64, 96)
    maps = AdvCAM(model, steps=1).attribute(x, 3)
    for drawn in (overlay(x, maps, model=model), overlay(x[0], maps[0], model=model)):
        assert (drawn.mode, drawn.size) == ("RGB", (96, 64))
    native = AdvCAM(model, steps=1).attribute(x, 3, output="native")
    assert overlay(x, native, model=model).size == (96, 64)


def test_show_has_a_title_and_a_colour_bar(tmp_path):
    plain = show(PHOTOGRAPH, RAMP)
    named = show(PHOTOGRAPH, RAMP, title="AdvCAM", class_name="tabby, tabby cat")
    assert named.mode == "RGB"
    assert named.width > PHOTOGRAPH.width
    assert pixels(plain)[:, -40:].min() < 100, "numbers of the colour bar"
    assert not np.array_equal(pixels(plain.resize(named.size)), pixels(named))
    named.save(tmp_path / "shown.png")
    assert show(PHOTOGRAPH.resize((40, 200)), spot(), box=(0, 0, 40, 200), class_name="a " * 60).height > 400
    assert {"overlay", "show"} <= set(advcam_attr.__all__)


@pytest.mark.parametrize(
    ("image", "map", "options", "words"),
    [
        (PHOTOGRAPH, np.full((3, 4), math.nan), {}, "not finite"),
        (PHOTOGRAPH, np.zeros((0, 4)), {}, "not empty"),
        (PHOTOGRAPH, np.zeros(4), {}, r"\(H, W\)"),
        (PHOTOGRAPH, np.zeros((2, 1, 3, 4)), {}, "one of several"),
        (PHOTOGRAPH, np.full((3, 4), 0.5), {}, r"constant \(0\.5\)"),
        (PHOTOGRAPH, np.random.default_rng(0).random((60, 30)), {}, "30x60 does not fit an image of 80x60"),
        (PHOTOGRAPH, RAMP, {"cmap": "turbos"}, "did you mean 'turbo'"),
        (PHOTOGRAPH, RAMP, {"alpha": 2}, "opacity"),
        (PHOTOGRAPH, RAMP, {"box": (5, 0, 5, 9)}, "extent"),
        (torch.randn(3, 6, 8) * 3, RAMP, {}, "give model=, or mean= and std="),
        (torch.randn(3, 6, 8), RAMP, {"mean": (0.5,)}, "both"),
        (torch.randn(3, 6, 8), RAMP, {"model": torch.nn.Identity()}, "Identity has no data configuration"),
        (torch.randn(3, 6, 8), RAMP, {"mean": (0.5, 0.4), "std": (1,)}, "1 or 3 numbers"),
        (torch.zeros(2, 3, 6, 8), RAMP, {}, "give one image"),
        (torch.full((3, 6, 8), math.nan), RAMP, {}, "finite"),
        (np.zeros((6, 8, 4)), RAMP, {}, r"\(H, W, 3\)"),
    ],
)
def test_bad_input_is_one_line(image, map, options, words):
    with pytest.raises(AdvCAMError, match=words) as error:
        overlay(image, map, **options)
    assert "\n" not in str(error.value)


def test_captions_are_wrapped_and_never_cut():
    image = np.full((20, 10, 3), 0.5)
    short = panels([[image]], ["a title much wider than its column"], ["caption"], cell=40)
    long = panels([[image]], ["a title much wider than its column"], ["many words " * 30], cell=40)
    assert short.width == long.width > 200
    assert long.height > short.height + 100
    word = panels([[image]], ["t"], ["x" * 200], cell=40)
    assert (pixels(word)[-20:] < 100).any(), "the last letters are there"
