"""PSA's labels, loss and walk: by hand, against loops over pairs and a dense matrix."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.affinity_labels import psa_scores
from advcam_attr.refine.pairs import pair_kinds
from advcam_attr.refine.psa import (
    affinity_labels,
    affinity_walk,
    affinity_walk_labels,
    fitting_radius,
    pair_affinities,
    pair_losses,
    pooled,
    walk_maps,
    weighted_loss,
)
from advcam_attr.types import AdvCAMError, ClassMaps
from dense_walks import affinity_matrix, slow_pairs, walked


def affinity_loss(features: Tensor, labels: Tensor, radius: int = 5) -> Tensor:
    return weighted_loss(*pair_losses(features, labels, radius))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_affinity(features: Tensor, i: tuple[int, int], j: tuple[int, int]) -> float:
    """Of one image, ``(C, h, w)``."""
    one, other = features[:, i[0], i[1]].tolist(), features[:, j[0], j[1]].tolist()
    return math.exp(-sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(features))


def slow_loss(features: Tensor, labels: Tensor, radius: int) -> float:
    sums, counts = [0.0, 0.0, 0.0], [1e-5, 1e-5, 1e-5]
    for image, grid in zip(features, labels.tolist(), strict=True):
        for i, j in slow_pairs(*image.shape[1:], radius):
            one, other = grid[i[0]][i[1]], grid[j[0]][j[1]]
            if 255 in (one, other):
                continue
            a = slow_affinity(image, i, j)
            kind = 2 if one != other else 1 if one else 0
            sums[kind] -= math.log(a + 1e-5) if kind < 2 else math.log(1 + 1e-5 - a)
            counts[kind] += 1
    return sums[0] / counts[0] / 4 + sums[1] / counts[1] / 4 + sums[2] / counts[2] / 2


def dense_walk(maps: Tensor, features: Tensor, radius: int, beta: float, squarings: int) -> Tensor:
    matrix = affinity_matrix(*features.shape[1:], radius, lambda i, j: slow_affinity(features, i, j))
    return walked(maps, matrix, beta, squarings)


def test_labels_by_hand():
    """Four cells of 2 x 2 pixels: foreground, background, undecided, and one half outside of the image."""
    low, high = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
    for cell, (one, other) in enumerate([
        ([0.2, 0.3, 0.5], [0.1, 0.3, 0.6]), ([0.8, 0.1, 0.1], [0.6, 0.3, 0.1]), ([0.8, 0.1, 0.1], [0.1, 0.8, 0.1]),
    ]):  # fmt: skip
        low[:, :, 2 * cell : 2 * cell + 2] = torch.tensor(one)[:, None, None]
        high[:, :, 2 * cell : 2 * cell + 2] = torch.tensor(other)[:, None, None]
    low[:, 0, 6] = high[:, 0, 6] = torch.tensor([0.1, 0.9, 0.0])
    assert affinity_labels(low, high, stride=2).tolist() == [[2, 0, 255, 1]]
    assert affinity_labels(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2), stride=2).tolist() == [[255]]


@pytest.mark.parametrize("size", [(9, 1), (1, 11), (1, 1)])
def test_thin_images(size):
    maps = ClassMaps((4,), size, torch.ones(1, 1, 1), torch.linspace(0, 1, size[0] * size[1]).reshape(1, *size))
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    assert affinity_labels(*psa_scores(maps, image)).shape == (-(-size[0] // 8), -(-size[1] // 8))
    grid = walk_maps(maps.high_res)
    after = affinity_walk(grid, noise(4, *grid.shape[1:]))
    assert torch.equal(after, grid)
    labels = affinity_walk_labels(after, maps.classes, size)
    assert labels.shape == size
    assert set(labels.unique().tolist()) <= {0, 5}


@pytest.mark.parametrize(("classes", "value", "label"), [((), 0, 0), ((3,), 0, 0), ((3,), 1, 1)])
def test_an_image_of_one_colour_and_constant_maps(classes, value, label):
    count = len(classes)
    maps = ClassMaps(classes, (17, 20), torch.full((count, 5, 5), value), torch.full((count, 17, 20), float(value)))
    scores = psa_scores(maps, torch.full((3, 17, 20), 90, dtype=torch.uint8))
    assert affinity_labels(*scores).tolist() == [[label] * 3] * 3
    walked = affinity_walk(walk_maps(maps.high_res), torch.zeros(4, 3, 3))
    assert affinity_walk_labels(walked, classes, (17, 20)).unique().tolist() == [4 * label]


def test_counts_of_pairs():
    """34 neighbours with a margin of 4; on a grid of 56 x 56, 52 x 48 sources."""
    assert pair_affinities(torch.zeros(1, 2, 56, 56)).shape == (1, 34, 52, 48)
    assert pair_affinities(torch.zeros(2, 3, 1, 9), fitting_radius((1, 9))).shape == (2, 0, 1, 9)


@pytest.mark.parametrize(
    ("size", "psa", "seam"),
    [
        ((11, 12), 5, 5), ((10, 11), 5, 4), ((5, 9), 5, 2), ((9, 5), 3, 2), ((5, 8), 4, 2), ((4, 9), 4, 1),
        ((3, 3), 2, 1), ((2, 9), 2, 0), ((9, 2), 1, 0), ((1, 1), 1, 0),
    ],
)  # fmt: skip
def test_radius_of_small_grids(size, psa, seam):
    """PSA keeps 5 from 5 x 9 cells on, and takes the largest radius with a source below; SEAM shrinks it earlier."""
    assert (fitting_radius(size), fitting_radius(size, small_grids="seam")) == (psa, seam)
    sources = [len([*slow_pairs(*size, radius)]) for radius in range(2, 6)]
    assert psa == max([1, *(radius for radius, count in zip(range(2, 6), sources, strict=True) if count)])
    for rule, radius in (("psa", psa), ("seam", seam)):
        features, maps = noise(3, *size), noise(2, *size, seed=1)
        walk = affinity_walk(maps, features, steps=4, small_grids=rule)
        expected = dense_walk(maps, features, radius, 8.0, 2) if radius > 1 else maps
        torch.testing.assert_close(walk, expected)


@pytest.mark.parametrize(("size", "radius"), [((9, 12), 5), ((6, 9), 4), ((5, 5), 2)])
def test_affinities_and_loss_equal_the_loop(size, radius):
    features, chosen = noise(2, 3, *size), torch.randint(5, (2, *size), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 2, 255], dtype=torch.uint8)[chosen]
    found = pair_affinities(features, radius)
    for n in range(2):
        slow = sorted(slow_affinity(features[n], i, j) for i, j in slow_pairs(*size, radius))
        torch.testing.assert_close(found[n].flatten().sort().values, torch.tensor(slow, dtype=torch.float64))
    assert float(affinity_loss(features, labels, radius)) == pytest.approx(slow_loss(features, labels, radius))


def test_loss_by_hand():
    """A row above a row, radius 2: one source, four neighbours; two alike in background, one apart, one undecided."""
    features = torch.zeros(1, 2, 2, 3)
    features[0, :, 0, 2] = torch.tensor([0.2, 0.6])  # right: distance 0.4
    features[0, :, 1, 0] = torch.tensor([1.0, 1.0])  # below left: distance 1
    features[0, :, 1, 1] = torch.tensor([0.0, 3.0])  # below: distance 1.5
    labels = torch.tensor([[[9, 0, 0], [0, 4, 255]]], dtype=torch.uint8)
    sums, counts = pair_losses(features, labels, radius=2)
    assert counts.tolist() == [2, 0, 1]
    assert sums.tolist() == pytest.approx([1.4, 0, -math.log(1 - math.exp(-1.5))], abs=1e-4)
    assert float(affinity_loss(features, labels, 2)) == pytest.approx(
        0.7 / 4 - math.log(1 - math.exp(-1.5)) / 2, abs=1e-4
    )
    foreground = torch.where(labels == 0, 4, 255).to(torch.uint8)
    assert float(affinity_loss(features, foreground, 2)) == pytest.approx(0.7 / 4, abs=1e-4)


def test_parts_of_a_batch_make_the_whole_loss():
    features, labels = noise(3, 2, 9, 9), (noise(3, 9, 9, seed=4) > 0).to(torch.uint8)
    parts = [pair_losses(f[None], t[None]) for f, t in zip(features, labels, strict=True)]
    sums, counts = (sum(part[i] for part in parts) for i in (0, 1))
    torch.testing.assert_close(weighted_loss(sums, counts), affinity_loss(features, labels))
    kinds = pair_kinds(labels, 5)
    assert int(kinds.sum(0).max()) == 1, "a pair is of one kind at most"
    loss = affinity_loss(features.requires_grad_(), torch.full_like(labels, 255))
    loss.backward()
    assert float(loss.detach()) == float(features.grad.abs().max()) == 0, "no decided pair, no loss"


def test_descent_separates_two_labels():
    """Embeddings themselves as weights: after some steps cells of one label are alike and others are not."""
    features = (0.1 * noise(1, 4, 9, 11)).requires_grad_()
    labels = torch.zeros(1, 9, 11, dtype=torch.uint8)
    labels[:, :, 6:] = 3
    optimiser = torch.optim.Adam([features], lr=0.1)
    first = float(affinity_loss(features, labels).detach())
    for _ in range(40):
        optimiser.zero_grad()
        affinity_loss(features, labels).backward()
        optimiser.step()
    assert float(affinity_loss(features, labels).detach()) < 0.5 * first
    affinity, kinds = pair_affinities(features.detach()), pair_kinds(labels, 5)
    assert affinity[kinds[:2].any(0)].mean() > affinity[kinds[2]].mean() + 0.4


@pytest.mark.parametrize(
    ("size", "squarings"), [((9, 12), 8), ((13, 11), 6), ((7, 20), 8), ((5, 6), 8), ((3, 2), 8), ((20, 22), 8)]
)
def test_walk_equals_the_dense_matrix(size, squarings):
    maps, features = noise(3, *size).abs(), noise(5, *size, seed=1) * 0.3
    radius = fitting_radius(size)
    expected = dense_walk(maps, features, radius, 8, squarings) if radius > 1 else maps
    found = affinity_walk(maps, features, steps=2**squarings)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    single = affinity_walk(maps.float(), features.float(), steps=2**squarings)
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, maps, atol=1e-3) or radius < 2


def test_walk_maps_by_hand():
    high_res = torch.zeros(2, 3, 4)
    high_res[0, 0, 0], high_res[1, 0, 1], high_res[0, 2, 3] = 0.5, 1.2, 1.0
    found = walk_maps(high_res, alpha=2, stride=2)
    assert found.shape == (3, 2, 2)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([(0.25 + 0 + 2) / 4, 0.125, 0.25]))
    torch.testing.assert_close(found[:, 1, 1], torch.tensor([0.25, 0.25, 0.0]))


def test_walk_labels_equal_the_steps():
    """Zeros in the place of classes that the image lacks change nothing."""
    maps = noise(3, 4, 5).abs()
    whole = torch.zeros(1, 21, 4, 5, dtype=torch.float64)
    whole[0, [0, 8, 16]] = maps
    expected = F.interpolate(whole, scale_factor=8, mode="bilinear")[0].argmax(0)[:30, :37]
    assert torch.equal(affinity_walk_labels(maps, (7, 15), (30, 37)).long(), expected)
    assert set(expected.unique().tolist()) == {0, 8, 16}


def test_classes_walk_alone():
    maps, features = noise(3, 9, 12).abs(), noise(5, 9, 12, seed=1) * 0.3
    together = affinity_walk(maps, features)
    for k in range(3):
        torch.testing.assert_close(affinity_walk(maps[k : k + 1], features), together[k : k + 1])


def test_pooled_equals_the_mean_of_each_cell():
    maps = noise(2, 11, 13)
    padded = torch.zeros(2, 16, 16, dtype=torch.float64)
    padded[:, :11, :13] = maps
    expected = torch.stack([padded[:, y : y + 8, x : x + 8].mean((1, 2)) for y in (0, 8) for x in (0, 8)], 1)
    torch.testing.assert_close(pooled(maps, 8).flatten(1), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_affinities(torch.zeros(1, 2, 4, 20)), "no pairs of radius 5"),
        (lambda: affinity_loss(torch.zeros(1, 2, 9, 9), torch.zeros(1, 9, 8)), "differ in size"),
        (lambda: affinity_labels(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)), "differ in shape"),
        (lambda: affinity_walk(torch.zeros(2, 4, 5), torch.zeros(3, 5, 4)), "differ in size"),
        (lambda: affinity_walk(torch.zeros(2, 9, 9), torch.full((3, 9, 9), torch.nan)), "not finite"),
        (lambda: affinity_walk_labels(torch.zeros(2, 4, 5), (1, 2), (32, 40)), "give one for each"),
        (lambda: affinity_walk_labels(torch.zeros(2, 4, 5), (254,), (32, 40)), "give one for each"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(AdvCAMError, match=message):
        call()
