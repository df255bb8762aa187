"""CutMix: boxes, shares and pasted pixels against a slow oracle."""

import math
from itertools import repeat

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advcam_attr.data.cutmix import Cut, CutMix, draw_cut, mixed, mixed_batches
from advcam_attr.types import AdvCAMError


def oracle(images: np.ndarray, order: list[int], cut: Cut) -> np.ndarray:
    """Pixel by pixel."""
    out = images.copy()
    for n, c, y, x in np.ndindex(images.shape):
        if cut.top <= y < cut.bottom and cut.left <= x < cut.right:
            out[n, c, y, x] = images[order[n], c, y, x]
    return out


def test_pixels_and_shares_are_the_oracles():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(4, 2, 6, 9)))
    labels = torch.tensor([2, 0, 2, 1])
    for _ in range(20):
        cut = draw_cut(CutMix(), 6, 9, rng)
        order = rng.permutation(4)
        before = images.clone()
        x, y = mixed(images, labels, 3, cut, torch.from_numpy(order))
        assert np.array_equal(x.numpy(), oracle(images.numpy(), list(order), cut))
        assert torch.equal(images, before)
        share = 1 - (cut.bottom - cut.top) * (cut.right - cut.left) / 54
        expected = np.zeros((4, 3))
        for n in range(4):
            expected[n, labels[n]] += share
            expected[n, labels[order[n]]] += 1 - share
        assert np.allclose(y.numpy(), expected, atol=1e-6)


def test_the_loss_is_that_of_two_targets():
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, order, cut = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 1, 0, 2]), Cut(1, 4, 0, 5)
    _, targets = mixed(torch.zeros(4, 3, 6, 6), labels, 3, cut, order)
    share = 1 - 15 / 36
    expected = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[order])
    assert F.cross_entropy(logits, targets.double()) == pytest.approx(float(expected), abs=1e-6)


class Scripted:
    """Draws scripted numbers."""

    def __init__(self, chance: float, share: float, centre: list[int]) -> None:
        self.chance, self.share, self.centre = chance, share, centre

    def random(self) -> float:
        return self.chance

    def beta(self, a: float, b: float) -> float:
        assert (a, b) == (1.35, 1.35)
        return self.share

    def integers(self, side: int) -> int:
        return self.centre.pop(0)


@pytest.mark.parametrize(
    ("share", "centre", "cut"),
    [
        (0.75, [5, 5], Cut(3, 7, 0, 10)),  # √0.25 · (9, 20) = (4.5, 10): cuts of 4 and 10, halves of 2 and 5
        (0.75, [0, 19], Cut(0, 2, 14, 20)),
        (1.0, [4, 4], Cut(4, 4, 4, 4)),
        (0.0, [4, 10], Cut(0, 8, 0, 20)),
    ],
)
def test_golden_boxes(share, centre, cut):
    assert draw_cut(CutMix(1.35, 0.24), 9, 20, Scripted(0.2399, share, centre)) == cut
    assert draw_cut(CutMix(1.35, 0.24), 9, 20, Scripted(0.24, share, [0, 0])) is None


def test_how_often_batches_are_mixed_and_how_large_patches_are():
    rng = np.random.default_rng(1)
    cuts = [draw_cut(CutMix(1.0, 0.3), 64, 64, rng) for _ in range(4000)]
    drawn = [cut for cut in cuts if cut is not None]
    assert len(drawn) / 4000 == pytest.approx(0.3, abs=0.03)
    # a uniform share gives sides of √u · 64 around uniform centres, clipped
    sides = np.array([cut.bottom - cut.top for cut in drawn])
    u = np.sqrt(rng.random(200_000)) * 32
    centre = rng.random(200_000) * 64
    expected = (np.minimum(centre + u, 64) - np.maximum(centre - u, 0)).mean()
    assert sides.mean() == pytest.approx(expected, abs=2.5)


def test_batches_depend_on_their_seeds_alone():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    labels = torch.arange(4)
    first = list(mixed_batches(repeat((images, labels), 6), 4, CutMix(), ((k, k + 100) for k in range(6))))
    later = list(mixed_batches(repeat((images, labels), 3), 4, CutMix(), ((k, k + 100) for k in range(3, 6))))
    for (x, y), (x_again, y_again) in zip(first[3:], later, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert len({float(y.max()) for _, y in first}) > 1
    ((x, y),) = mixed_batches([(images, labels)], 4, None, [(0, 0)])
    assert x is images
    assert torch.equal(y, torch.eye(4))


@pytest.mark.parametrize("values", [(0.0, 1.0), (math.nan, 1.0), (1.0, 1.5), (1.0, -0.1)])
def test_bad_numbers(values):
    with pytest.raises(AdvCAMError, match=r"takes a positive beta and a probability in 0..1"):
        CutMix(*values)
