"""IRN's instance masks: hand-set displacements, loops over cells, and properties."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.instances import centroids, clusters, connected_components, irn_instances
from advcam_attr.refine.irn import irn_labels, irn_loss
from advcam_attr.refine.recipes import InstanceRecipe, WalkRecipe
from advcam_attr.types import MOST_INSTANCES, AdvCAMError, ClassMaps
from dense_walks import dense_edge_walk

CENTRES, RADIUS, GRID = ((8, 7), (9, 22)), 5, (18, 30)


def discs() -> tuple[ClassMaps, Tensor, Tensor, Tensor]:
    """Two discs of class 4 on a grid, displacements to their centres, an edge around each; and the discs' masks."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in GRID), indexing="ij")
    away = torch.stack([torch.stack([cy - y, cx - x]) for cy, cx in CENTRES])
    distance = away.norm(dim=1)
    inside = distance <= RADIUS
    displacement = (away * inside[:, None]).sum(0)
    displacement += torch.tensor([3.0, 0.0])[:, None, None] * ~inside.any(0)
    edge = ((distance > RADIUS) & (distance <= RADIUS + 1.5)).any(0).float()
    cam = (1 - distance.amin(0) / 20).clamp(min=0)[None] * inside.any(0)
    return ClassMaps((4,), (4 * GRID[0], 4 * GRID[1]), cam, torch.zeros(1)), edge, displacement, inside


def random_case(seed: int, classes: int = 2) -> tuple[ClassMaps, Tensor, Tensor]:
    """Maps of a few classes; displacements that are smooth, so that several clusters arise, and edges."""
    generator = torch.Generator().manual_seed(seed)
    grid = (9, 11)
    field = F.interpolate(torch.randn(1, 2, 3, 4, generator=generator) * 4, grid, mode="bicubic")[0]
    edge = (F.interpolate(torch.randn(1, 1, 5, 6, generator=generator), grid, mode="bilinear")[0, 0] * 4 - 2).sigmoid()
    cam = F.interpolate(torch.rand(1, classes, 3, 3, generator=generator), grid, mode="bilinear")[0]
    cam = (cam - cam.amin((1, 2), keepdim=True)) / cam.amax((1, 2), keepdim=True)
    return ClassMaps(tuple(range(3, 3 + classes)), (35, 43), cam, torch.zeros(1)), edge, field


def slow_centroids(field: Tensor, iterations: int) -> Tensor:
    """One cell at a time: the sum of the four cells around it, weighted by their areas of overlap."""
    height, width = field.shape[1:]
    found = torch.zeros(2, height, width, dtype=torch.long)
    for i in range(height):
        for j in range(width):
            y, x = float(i), float(j)
            for _ in range(iterations):
                dy = dx = 0.0
                for row in range(height):
                    for column in range(width):
                        weight = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
                        if weight:
                            dy += weight * float(field[0, row, column])
                            dx += weight * float(field[1, row, column])
                y, x = min(max(y + dy, 0.0), height - 1.0), min(max(x + dx, 0.0), width - 1.0)
            found[:, i, j] = torch.tensor([round(y), round(x)])
    return found


def flooded(mask: np.ndarray) -> np.ndarray:
    """Components of four neighbours, numbered from 1 by a flood from each unseen pixel."""
    numbers, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if numbers[start]:
            continue
        count, left = count + 1, [start]
        while left:
            y, x = left.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not numbers[y, x]:
                numbers[y, x] = count
                left += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return numbers


def slow_instances(
    maps: ClassMaps, edge: Tensor, field: Tensor, recipe: InstanceRecipe
) -> list[tuple[int, float, int]]:
    """As the released code: every class and cluster walks on a dense matrix, then argmax; class, score, pixels."""
    ends = slow_centroids(field.double(), recipe.iterations)
    regions = torch.from_numpy(flooded((field.norm(dim=0) < recipe.threshold).numpy()))
    of_cell = regions[ends[0], ends[1]]
    numbers = of_cell.unique().tolist()
    split = torch.stack([cam * (of_cell == n) for cam in maps.cam.double() for n in numbers])
    walk = recipe.walk
    walked = dense_edge_walk(split**walk.exponent, edge, walk.beta, int(math.log2(walk.steps)), walk.radius)
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear")[0, :, : maps.size[0], : maps.size[1]]
    large = large / large.max()
    winner = torch.cat([torch.full_like(large[:1], walk.background), large]).argmax(0).numpy() - 1
    found = []
    for n in range(len(large)):
        parts = flooded(winner == n)
        for mask in (parts == number for number in range(1, parts.max() + 1)):
            score = float(large[n][torch.from_numpy(mask)].max()) if mask.sum() >= recipe.smallest * mask.size else 0.0
            found.append((maps.classes[n // len(numbers)], score, int(mask.sum())))
    return sorted(found, key=lambda one: (-one[1], -one[2]))


def test_two_discs_of_one_class_are_two_instances():
    maps, edge, displacement, inside = discs()
    ends = centroids(displacement)
    for mask, centre in zip(inside, CENTRES, strict=True):
        assert set(map(tuple, ends[:, mask].T.tolist())) == {centre}
    numbers = clusters(displacement)
    assert [len(numbers[mask].unique()) for mask in inside] == [1, 1]
    assert numbers[CENTRES[0]] != numbers[CENTRES[1]]
    found = irn_instances(maps, edge, displacement)
    assert found.classes == (4, 4)
    true = F.interpolate(inside[:, None].float(), scale_factor=4)[:, 0].bool()
    order = [int((mask & true[0]).sum() < (mask & true[1]).sum()) for mask in found.masks]
    assert sorted(order) == [0, 1]
    for mask, which in zip(found.masks, order, strict=True):
        assert (mask & true[which]).sum() / (mask | true[which]).sum() > 0.85
    assert found.scores[0] == pytest.approx(1)


def test_displacements_divide_what_no_boundary_divides():
    """A strip of one class without a boundary in it: one instance, or two if each half points to its own centre."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in (8, 24)), indexing="ij")
    centre = torch.where(x < 12, 5.0, 18.0)
    maps = ClassMaps((2,), (32, 96), torch.ones(1, 8, 24), torch.zeros(1))
    still, apart = torch.zeros(2, 8, 24), torch.stack([3.5 - y, centre - x])
    recipe = InstanceRecipe(walk=WalkRecipe(exponent=1.0, steps=4))
    whole, halves = (irn_instances(maps, torch.zeros(8, 24), field, recipe) for field in (still, apart))
    assert whole.masks.tolist() == torch.ones(1, 32, 96).bool().tolist()
    assert (halves.classes, len(halves.masks)) == ((2, 2), 2)
    left = halves.masks[halves.masks[:, 16, 4].nonzero()[0, 0]]
    assert left[:, :44].all()
    assert not left[:, 52:].any()
    assert torch.equal(halves.masks[0], ~halves.masks[1])


def test_displacements_that_minimise_the_loss_separate_objects():
    """IRN's loss alone, on the labels of a class, makes the field of two discs: the training and this stage agree."""
    inside = discs()[3]
    labels = (inside.any(0) * 5)[None].byte()
    field = torch.zeros(1, 2, *GRID)
    for t in range(40):
        field.requires_grad_()
        loss = irn_loss(torch.cat([torch.zeros(1, 1, *GRID), field], 1), labels, 3)
        (grad,) = torch.autograd.grad(loss.foreground_displacement + loss.background_displacement, field)
        field = field.detach() - 0.4 * (1 - t / 40) * grad.sign()
    numbers = clusters(field[0])
    first, second = (numbers[mask] for mask in inside)
    assert first.mode()[0] != second.mode()[0]
    for own in (first, second):
        assert (own == own.mode()[0]).float().mean() > 0.8


@pytest.mark.parametrize("seed", [0, 1])
def test_centroids_equal_a_loop_over_cells(seed):
    field = random_case(seed)[2].double()
    assert torch.equal(centroids(field, 12), slow_centroids(field, 12))


def test_components_have_four_neighbours():
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert connected_components(mask).tolist() == flooded(mask.numpy()).tolist()


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_instances_equal_the_dense_walk_of_all_parts(seed):
    maps, edge, field = random_case(seed)
    recipe = InstanceRecipe(iterations=10, threshold=2.0, smallest=0.02, walk=WalkRecipe(exponent=1.0))
    found, expected = irn_instances(maps, edge, field, recipe), slow_instances(maps, edge, field, recipe)
    assert len(expected) > 2
    assert [k for k, _, _ in expected] == list(found.classes)
    assert [pixels for *_, pixels in expected] == found.masks.int().sum((1, 2)).tolist()
    assert [score for _, score, _ in expected] == pytest.approx(list(found.scores), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_instances_are_disjoint_and_within_their_class(seed):
    """Without displacements there is one cluster, and the union of a class's instances is its mask."""
    maps, edge, field = random_case(seed, 3)
    found = irn_instances(maps, edge, field)
    assert int(found.masks.sum(0).max()) == 1
    whole = irn_instances(maps, edge, torch.zeros_like(field))
    labels = irn_labels(maps, edge, InstanceRecipe().walk)
    for k in maps.classes:
        own = whole.masks[[i for i, c in enumerate(whole.classes) if c == k]].any(0)
        assert torch.equal(own, labels == k + 1)
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_parts_too_low_for_any_pixel_change_nothing(monkeypatch):
    """Few at once or all: the walk stops before parts that cannot win."""
    maps, edge, field = random_case(5, 3)
    whole = irn_instances(maps, edge, field)
    monkeypatch.setattr("advcam_attr.refine.instances._PARTS", 1)
    alone = irn_instances(maps, edge, field)
    assert (alone.classes, len(alone.masks)) == (whole.classes, len(whole.masks))
    assert torch.equal(alone.masks, whole.masks)


def test_small_ones_have_no_score_and_there_is_a_limit():
    cam = torch.zeros(1, 40, 60)
    cam[:, ::2, ::2] = 1
    maps = ClassMaps((0,), (160, 240), cam, torch.zeros(1))
    found = irn_instances(maps, torch.zeros(40, 60), torch.zeros(2, 40, 60), InstanceRecipe(walk=WalkRecipe(steps=0)))
    assert len(found.classes) == len(found.masks) == MOST_INSTANCES
    assert set(found.scores) == {0.0}


def test_odd_input():
    edge, still = torch.full((3, 1), 0.2), torch.zeros(2, 3, 1)
    for maps, classes in ((torch.zeros(0), ()), (torch.zeros(1, 3, 1), (4,))):
        found = irn_instances(ClassMaps(classes, (11, 1), maps, torch.zeros(1)), edge, still)
        assert (found.classes, found.scores, tuple(found.masks.shape)) == ((), (), (0, 11, 1))
    one = irn_instances(ClassMaps((4,), (11, 1), torch.ones(1, 3, 1), torch.zeros(1)), edge, still)
    assert (one.classes, one.masks.tolist()) == ((4,), [[[True]] * 11])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: centroids(torch.full((2, 3, 3), math.nan)), "finite"),
        (lambda: centroids(torch.zeros(3, 3)), r"\(2, h, w\)"),
        (lambda: irn_instances(discs()[0], torch.zeros(4, 4), torch.zeros(2, 4, 4)), "differ in size"),
        (lambda: irn_instances(discs()[0], discs()[1], torch.zeros(2, 4, 4)), "differ in size"),
        (lambda: InstanceRecipe(iterations=0), "instances: "),
        (lambda: InstanceRecipe(threshold=0), "instances: "),
        (lambda: InstanceRecipe(smallest=2), "instances: "),
    ],
)
def test_bad_input_raises(call, word):
    with pytest.raises(AdvCAMError, match=word):
        call()


def test_instances_of_a_class_are_where_its_map_is():
    maps, _, field = random_case(7, 2)
    maps = replace(maps, cam=(maps.cam - 0.4).clamp(min=0))
    walk = WalkRecipe(exponent=1.0, steps=0, background=0)
    found = irn_instances(maps, torch.zeros(9, 11), field, InstanceRecipe(walk=walk))
    large = F.interpolate(maps.cam[None], scale_factor=4, mode="bilinear")[0, :, :35, :43]
    assert len(found.classes) > 1
    assert torch.equal(found.masks.any(0), large.amax(0) > 0)
    for k, mask in zip(found.classes, found.masks, strict=True):
        assert (large[maps.classes.index(k)][mask] > 0).all()
