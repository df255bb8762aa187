"""The part of a photograph that a transform keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms._presets import ImageClassification

from advcam_attr.networks.loaded_model import seen_part


def own(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (create_transform((3, 224, 224), crop_pct=0.875), (86, 23.4, 414, 351.6)),  # 0.875 · 375 = 328 of the middle
        (create_transform((3, 96, 96), crop_pct=0.9, crop_mode="squash", mean=(0.1,) * 3), (25, 18.75, 475, 356.25)),
        (create_transform((3, 96, 96), crop_pct=1.0, crop_mode="border"), (0, -62.5, 500, 437.5)),
        (ImageClassification(crop_size=112, resize_size=128), (86, 23.4, 414, 351.6)),
        (own, (0, 0, 500, 375)),
        (lambda image: own(image)[:, 10:60, 20:25], (20, 10, 25, 60)),
        (lambda image: own(image).flip(2), None),
        (lambda image: own(image).mT, None),
        (lambda image: own(image)[:1], None),
        (lambda image: torch.zeros(3, 9, 9), None),
        (transforms.Compose([own, lambda x: x.roll(250, 2)]), None),
    ],
    ids=["crop", "squash", "border", "torchvision", "whole", "part", "mirrored", "transposed", "grey", "nothing",
         "rolled"],
)  # fmt: skip
def test_the_part_that_is_seen(transform, expected):
    """Of 500 × 375 pixels, to within two, which is what resizing rounds."""
    found = seen_part(transform, (375, 500))
    assert found == (None if expected is None else pytest.approx(expected, abs=2.5))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (2000, 3)])
def test_odd_sizes(size):
    found = seen_part(own, size)
    assert found == pytest.approx((0, 0, size[1], size[0]), abs=0.02 * max(size))
