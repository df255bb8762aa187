"""The augmentation of segmentation nets: the same for an image and its labels, and each step as stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.tv_tensors import Mask

from advcam_attr.data.transforms import PadRightAndBelow, RandomScaleOf, SegmentationTrain
from advcam_attr.types import AdvCAMError


def picture(height: int, width: int) -> tuple[Image.Image, torch.Tensor]:
    """Labels 0 to 19 in columns, and a picture of which each pixel's red tells its label."""
    labels = (torch.arange(width) * 20 // width).expand(height, width).to(torch.uint8)
    red = labels * 10
    pixels = torch.stack([red, red, red], -1).numpy()
    return Image.fromarray(pixels), labels


@pytest.mark.parametrize("size", [(30, 40), (90, 20), (200, 150)])
def test_labels_stay_with_their_pixels(size):
    train = SegmentationTrain(64, (1.0,), mean=(0.0,) * 3, std=(10 / 255,) * 3)
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        x, y = train(*picture(*size))
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((3, 64, 64), torch.float32, (64, 64), torch.uint8)
        assert type(x) is type(y) is torch.Tensor
        void = y == 255
        torch.testing.assert_close(x[0][~void], y[~void].float(), rtol=0, atol=1e-4)
        assert not x[:, void].any()
        places.add(tuple(y[0].tolist()))
    assert len(places) > 1  # mirrored, or cut elsewhere


def test_padding_is_right_and_below():
    x, y = PadRightAndBelow(5)(torch.ones(3, 2, 7), Mask(torch.ones(2, 7, dtype=torch.uint8)))
    assert (x.shape, y.shape) == ((3, 5, 7), (5, 7))
    assert x[:, :2].all()
    assert not x[:, 2:].any()
    assert (y[2:] == 255).all()
    x, _ = PadRightAndBelow(5)(torch.ones(3, 9, 4), Mask(torch.ones(9, 4, dtype=torch.uint8)))
    assert x.shape == (3, 9, 5)
    assert not x[..., 4].any()


def test_scales_are_drawn_evenly_and_sides_rounded_down():
    torch.manual_seed(0)
    scale = RandomScaleOf((0.5, 1.25, 2.0))
    labels = Mask(torch.zeros(11, 7, dtype=torch.uint8))
    drawn = [tuple(scale(torch.zeros(3, 11, 7), labels)[1].shape) for _ in range(300)]
    assert {size: 80 < drawn.count(size) < 120 for size in drawn} == {(5, 3): True, (13, 8): True, (22, 14): True}


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.75])
def test_scaling_is_bilinear_without_smoothing_and_nearest(factor):
    generator = torch.Generator().manual_seed(0)
    image, labels = torch.rand(3, 33, 27, generator=generator), torch.randint(0, 255, (33, 27), dtype=torch.uint8)
    x, y = RandomScaleOf((factor,))(image, Mask(labels))
    size = (int(33 * factor), int(27 * factor))
    torch.testing.assert_close(x, F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0])
    expected = Image.fromarray(labels.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(y.numpy(), np.array(expected))


def test_half_are_mirrored():
    train = SegmentationTrain(20, (1.0,))
    torch.manual_seed(1)
    rising = [int(train(*picture(20, 20))[1][0, 0]) == 0 for _ in range(200)]
    assert 75 < sum(rising) < 125


@pytest.mark.parametrize("options", [{"crop": 0}, {"scales": ()}, {"scales": (1.0, 0.0)}])
def test_what_is_refused(options):
    with pytest.raises(AdvCAMError, match="the crop must be at least 1 and scales above 0"):
        SegmentationTrain(**options)
