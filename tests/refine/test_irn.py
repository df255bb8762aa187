"""IRN's losses and labels: by hand, and against loops over pairs of pixels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advcam_attr.refine.irn import (
    WalkRecipe,
    edge_map,
    edge_walk_labels,
    grid_labels,
    inference_size,
    irn_labels,
    irn_loss,
    pair_displacements,
    path_affinities,
)
from advcam_attr.refine.pairs import pair_counts, pair_kinds
from advcam_attr.types import AdvCAMError, ClassMaps
from dense_walks import dense_edge_walk, slow_pairs, strongest_between

TERMS = ("background", "foreground", "different", "foreground_displacement", "background_displacement")


def random_case(seed: int, size: tuple[int, int] = (8, 8), images: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 3, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.tensor([0, 0, 0, 3, 3, 9, 255])[torch.randint(0, 7, (images, *size), generator=generator)]
    return logits, labels.to(torch.uint8)


def slow_loss(logits: Tensor, labels: Tensor, radius: int) -> dict[str, float]:
    sums, counts = dict.fromkeys(TERMS, 0.0), dict.fromkeys(TERMS, 0)
    for (edge, *displacement), grid in zip(logits, labels.tolist(), strict=True):
        for i, j in slow_pairs(*edge.shape, radius):
            one, other = grid[i[0]][i[1]], grid[j[0]][j[1]]
            if 255 in (one, other):
                continue
            a = 1 - strongest_between(edge.sigmoid(), i, j)
            kind = "different" if one != other else "background" if one == 0 else "foreground"
            sums[kind] -= math.log(1 + 1e-5 - a) if kind == "different" else math.log(a + 1e-5)
            counts[kind] += 1
            if kind != "different":
                offset = (j[0] - i[0], j[1] - i[1]) if kind == "foreground" else (0, 0)
                for d, expected in zip(displacement, offset, strict=True):
                    sums[f"{kind}_displacement"] += abs(float(d[i] - d[j]) - expected)
                    counts[f"{kind}_displacement"] += 1
    return {term: sums[term] / (counts[term] + 1e-5) for term in TERMS}


@pytest.mark.parametrize("radius", [2, 3, 4])
def test_the_loss_equals_a_loop_over_pairs(radius):
    logits, labels = random_case(radius)
    found, expected = irn_loss(logits, labels, radius), slow_loss(logits, labels, radius)
    for term in TERMS:
        assert getattr(found, term).item() == pytest.approx(expected[term], rel=1e-12)
    total = (expected["background"] / 2 + expected["foreground"] / 2 + expected["different"]) / 2
    total += (expected["foreground_displacement"] + expected["background_displacement"]) / 2
    assert found.total.item() == pytest.approx(total, rel=1e-12)


def test_golden_loss():
    """Two rows of three cells, radius 2: one source, the middle of the upper row; its neighbours are labelled by hand.

    To the right another class, below left the source's class, below undecided, below right the source's class."""
    labels = torch.tensor([[[0, 5, 0], [5, 255, 5]]], dtype=torch.uint8)
    edge = torch.tensor([[0.0, -math.log(3.0), 0.0], [math.log(3.0), -9.0, -9.0]])
    displacement = torch.zeros(2, 2, 3)
    displacement[:, 0, 1] = torch.tensor([1.0, 0.5])
    loss = irn_loss(torch.cat([edge[None], displacement])[None], labels, radius=2)
    # affinities: right 1 - 1/2; below left: the path is source, end, both corners' cells (0, 0), (1, 1): max is 3/4
    assert loss.different.item() == pytest.approx(-math.log(1 + 1e-5 - 0.5), rel=2e-5)
    # below right: cells (0, 1), (0, 2), (1, 1), (1, 2): max is 1/2
    assert loss.foreground.item() == pytest.approx(-(math.log(0.25 + 1e-5) + math.log(0.5 + 1e-5)) / 2, rel=1e-5)
    # displacement (1, 0.5) towards (1, -1) and (1, 1): |0| + |1.5| and |0| + |-0.5|, over 2 · 2
    assert loss.foreground_displacement.item() == pytest.approx(2.0 / 4, rel=1e-5)
    assert (loss.background.item(), loss.background_displacement.item()) == (0, 0)


def test_pairs_have_the_sizes_of_the_released_code():
    labels = torch.zeros(1, 128, 128, dtype=torch.uint8)
    assert pair_kinds(labels, 10).shape == (3, 1, 152, 119, 110)
    assert pair_counts(labels, 10).tolist() == [152 * 119 * 110, 0, 0]


def test_gradients_equal_finite_differences():
    logits, labels = random_case(7, (5, 6), images=1)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: irn_loss(x, labels, 3).total, logits, atol=1e-6)


def test_a_batch_split_among_processes_has_the_batchs_loss():
    logits, labels = random_case(11, images=4)
    whole = irn_loss(logits, labels, 3).total
    halves = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    counts = torch.stack([pair_counts(part, 3) for _, part in halves]).mean(0)
    parts = [irn_loss(x, y, 3, counts).total for x, y in halves]
    assert sum(parts).item() / 2 == pytest.approx(whole.item(), rel=1e-6)


def test_the_mirror_image_has_the_mirrored_affinities():
    edge = random_case(2)[0][:, 0]
    here, there = path_affinities(edge, 3), path_affinities(edge.flip(-1), 3)
    # offsets (1, -2) to (1, 2) have the places 2 to 6 and are mirrored into each other; see `paths`
    torch.testing.assert_close(here[:, 2:7], there[:, 2:7].flip(1, -1), rtol=0, atol=0)


def test_displacements_that_point_to_a_centre_cost_nothing():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    towards = torch.stack([4 - y, 3 - x])[None]
    logits = torch.cat([torch.zeros(1, 1, 8, 9), towards], 1)
    # the neighbour at (dy, dx) lies that much further on, so its displacement is that much smaller
    assert irn_loss(logits, torch.full((1, 8, 9), 4), 3).foreground_displacement.item() == 0
    assert pair_displacements(towards, 3)[0, :, 0, 0, 0].tolist() == [0, 1]


def test_grid_labels_are_nearest_and_edges_the_mean_of_flips():
    labels = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    pil = np.array(Image.fromarray(labels).resize((24, 16), Image.Resampling.NEAREST))
    assert torch.equal(grid_labels(torch.from_numpy(labels)[None])[0], torch.from_numpy(pil))
    logits = torch.tensor([[[2.0, 0.0]], [[4.0, 2.0]]])
    torch.testing.assert_close(edge_map(logits), torch.tensor([[2.0, 2.0]]).sigmoid())


@pytest.mark.parametrize("size", [(1, 1), (375, 500), (512, 512), (640, 480), (1000, 513)])
def test_inference_size_covers_every_image(size):
    padded = inference_size(size)
    assert all(large >= side and large >= 512 and large % 16 == 0 for large, side in zip(padded, size, strict=True))
    assert all(large - side < 16 for large, side in zip(padded, size, strict=True) if side > 512)


def maps_of(cam: Tensor, size: tuple[int, int], classes: tuple[int, ...]) -> ClassMaps:
    return ClassMaps(classes, size, cam, F.interpolate(cam[None], size)[0] if len(cam) else torch.zeros(0, *size))


def slow_labels(maps: ClassMaps, edge: Tensor, recipe: WalkRecipe) -> Tensor:
    """As in the released code: a dense walk, maps enlarged, one peak for all classes."""
    squarings = int(math.log2(recipe.steps))
    walked = dense_edge_walk(maps.cam.double() ** recipe.exponent, edge, recipe.beta, squarings, recipe.radius)
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear")[0, :, : maps.size[0], : maps.size[1]]
    scores = torch.cat([torch.full_like(large[:1], recipe.background), large / large.max()])
    return torch.tensor([0, *(k + 1 for k in maps.classes)])[scores.argmax(0)]


@pytest.mark.parametrize("recipe", [WalkRecipe(), WalkRecipe(exponent=1.0), WalkRecipe(exponent=1.3, background=0.27)])
def test_labels_equal_the_dense_matrix(recipe):
    generator = torch.Generator().manual_seed(4)
    edge = (torch.randn(9, 11, generator=generator) * 3 - 2).sigmoid()
    cam = torch.rand(2, 9, 11, generator=generator)
    cam /= cam.amax((1, 2), keepdim=True)
    maps = maps_of(cam, (34, 43), (2, 14))
    labels = irn_labels(maps, edge, recipe)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) >= {3, 15}
    assert torch.equal(labels.long(), slow_labels(maps, edge, recipe))


def test_odd_maps():
    edge = torch.full((3, 1), 0.2)
    for maps, classes, label in ((torch.zeros(0, 3, 1), (), 0), (torch.zeros(2, 3, 1), (0, 4), 0),
                                 (torch.ones(1, 3, 1), (4,), 5)):  # fmt: skip
        assert irn_labels(maps_of(maps, (11, 1), classes), edge).tolist() == [[label]] * 11


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: irn_loss(torch.zeros(1, 3, 8, 18), torch.zeros(1, 8, 18)), "8 x 18 .* at least 10 x 19"),
        (lambda: irn_loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 9), 2), "do not fit labels"),
        (lambda: irn_labels(maps_of(torch.ones(1, 3, 1), (11, 1), (4,)), torch.zeros(4, 1)), "differ in size"),
        (lambda: WalkRecipe(exponent=0), "walk: "),
        (lambda: WalkRecipe(background=2), "walk: "),
        (lambda: WalkRecipe(radius=1), "walk: "),
        (lambda: WalkRecipe(radius=33), "walk: "),
        (lambda: WalkRecipe(steps=-1), "walk: "),
        (lambda: WalkRecipe(beta=-1), "walk: "),
    ],
)
def test_bad_input_raises(call, word):
    with pytest.raises(AdvCAMError, match=word):
        call()


def test_a_weak_class_loses_beside_a_strong_one():
    maps = maps_of(torch.ones(2, 1, 2), (4, 8), (0, 1))
    walked = torch.tensor([[[1.0, 0.0]], [[0.0, 0.2]]])
    assert edge_walk_labels(walked, maps)[0, [0, -1]].tolist() == [1, 0]
    assert edge_walk_labels(walked[1:], maps_of(torch.ones(1, 1, 2), (4, 8), (1,)))[0, -1].item() == 2
