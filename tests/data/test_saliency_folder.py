"""Saliency maps: found by id, brought to their photograph's size, refused where they cannot be its."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.masks import SaliencyFolder
from advcam_attr.data.voc import read_voc
from advcam_attr.types import AdvCAMError, Sample

SAMPLE = Sample("2007_000032", Path("JPEGImages/2007_000032.jpg"), (0,))
RAMP = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_maps_are_read_as_they_are(tmp_path, mode):
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "2007_000032.png")
    saliency = pickle.loads(pickle.dumps(SaliencyFolder(tmp_path)))(SAMPLE, (6, 8))
    assert saliency.dtype == torch.float32
    np.testing.assert_allclose(saliency, RAMP / 255, atol=1e-7)


def test_jpegs_are_found_after_pngs(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "2007_000032.jpg", quality=95)
    np.testing.assert_allclose(SaliencyFolder(tmp_path)(SAMPLE, (6, 8)), RAMP / 255, atol=0.05)
    Image.fromarray(RAMP * 0 + 255).save(tmp_path / "2007_000032.png")
    assert (SaliencyFolder(tmp_path)(SAMPLE, (6, 8)) == 1).all()


def test_resizing_is_bilinear_and_stays_within_0_and_1(tmp_path):
    Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).save(tmp_path / "2007_000032.png")
    saliency = SaliencyFolder(str(tmp_path))(SAMPLE, (4, 4))
    np.testing.assert_allclose(saliency, [[0, 0.25, 0.75, 1]] * 4)


@pytest.mark.parametrize("size", [(375, 500), (188, 250), (187, 250), (256, 341), (8, 10)])
def test_maps_of_the_photographs_proportions_are_resized(tmp_path, size):
    Image.new("L", size[::-1], 90).save(tmp_path / "2007_000032.png")
    saliency = SaliencyFolder(tmp_path)(SAMPLE, (375, 500))
    np.testing.assert_allclose(saliency, np.full((375, 500), 90 / 255), rtol=1e-5)


@pytest.mark.parametrize("size", [(500, 375), (256, 256), (352, 500)])
def test_maps_of_other_proportions_are_refused(tmp_path, size):
    Image.new("L", size[::-1], 90).save(tmp_path / "2007_000032.png")
    with pytest.raises(AdvCAMError, match=rf"2007_000032\.png has {size[1]}x{size[0]} pixels and its image 500x375"):
        SaliencyFolder(tmp_path)(SAMPLE, (375, 500))


def test_missing_and_damaged(tmp_path):
    with pytest.raises(AdvCAMError, match=r"no such folder of saliency maps: .*none"):
        SaliencyFolder(tmp_path / "none")
    with pytest.raises(
        AdvCAMError, match=r"no saliency map of 2007_000032 in .*: looked for 2007_000032\.png and \.jpg"
    ):
        SaliencyFolder(tmp_path)(SAMPLE, (6, 8))
    (tmp_path / "2007_000032.png").write_bytes(b"none")
    with pytest.raises(AdvCAMError, match=r"2007_000032\.png"):
        SaliencyFolder(tmp_path)(SAMPLE, (6, 8))


def test_photographs_in_place_of_maps_are_noticed(data_root):
    data = read_voc(data_root / "voc", "val")
    folder = SaliencyFolder(data.root / "JPEGImages")
    with pytest.raises(AdvCAMError, match="is a colour image; saliency maps are grey"):
        folder(data.samples[0], tuple(data.mask(data.samples[0]).shape))
