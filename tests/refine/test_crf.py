"""The dense CRF against pydensecrf and against sums over all pairs of pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from advcam_attr.refine.crf import (
    CRF_RECIPES,
    CRFRecipe,
    DenseCRF,
    refine_labels,
    unary_from_labels,
    unary_from_logits,
    unary_from_scores,
)
from advcam_attr.types import AdvCAMError


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random image, ``(1, 3, H, W)`` uint8."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)


def logits_of(count: int, height: int, width: int, number: int = 1) -> Tensor:
    return torch.randn(number, count, height, width, generator=torch.Generator().manual_seed(count)) * 2


@pytest.fixture
def scene() -> tuple[Tensor, Tensor]:
    """An image of 20 x 30 pixels and unaries of five labels."""
    return random_image(20, 30), unary_from_logits(logits_of(5, 20, 30))


def assert_equals_pydensecrf(image: Tensor, unary: Tensor, name: str) -> Tensor:
    ours, theirs = DenseCRF(image, name)(unary), pydensecrf(image, unary, CRF_RECIPES[name])
    assert (ours - theirs).abs().max() < 1e-4
    return theirs.argmax(1) == ours.argmax(1)


def brute_force(image: Tensor, unary: Tensor, recipe: CRFRecipe) -> Tensor:
    """Mean field with exact Gaussians between all pairs of pixels, for one image, in float64."""
    _, count, height, width = unary.shape
    y, x = np.mgrid[:height, :width]
    position = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    color = image[0].permute(1, 2, 0).reshape(-1, 3).numpy().astype(float)

    def kernel(*features: np.ndarray) -> np.ndarray:
        joined = np.concatenate(features, 1)
        weights = np.exp(-0.5 * ((joined[:, None] - joined[None]) ** 2).sum(-1))
        root = 1 / np.sqrt(weights.sum(1))
        return weights * root[:, None] * root

    spatial = kernel(position / recipe.spatial_deviation)
    bilateral = kernel(position / recipe.bilateral_deviation, color / recipe.color_deviation)
    both = recipe.spatial_weight * spatial + recipe.bilateral_weight * bilateral
    energy = unary[0].double().reshape(count, -1).T.numpy()
    marginals = np.exp(-energy) / np.exp(-energy).sum(1, keepdims=True)
    for _ in range(recipe.iterations):
        scores = np.exp(both @ marginals - energy)
        marginals = scores / scores.sum(1, keepdims=True)
    return torch.from_numpy(marginals.T.reshape(1, count, height, width).copy())


def pydensecrf(image: Tensor, unary: Tensor, recipe: CRFRecipe) -> Tensor:
    """The marginals of the reference implementation for one image."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs pydensecrf2, which is built from source")
    _, count, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, count)
    crf.setUnaryEnergy(np.ascontiguousarray(unary[0].reshape(count, -1).numpy()))
    crf.addPairwiseGaussian(sxy=recipe.spatial_deviation, compat=recipe.spatial_weight)
    crf.addPairwiseBilateral(
        sxy=recipe.bilateral_deviation,
        srgb=recipe.color_deviation,
        rgbim=np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()),
        compat=recipe.bilateral_weight,
    )
    return torch.tensor(np.array(crf.inference(recipe.iterations))).reshape(1, count, height, width)


def voc_images(data_root: Path, number: int) -> list[tuple[Tensor, Tensor]]:
    """Images ``(1, 3, H, W)`` and their masks ``(1, H, W)`` numbered 0, 1, ... in the order of their labels."""
    root = data_root / "voc" / "VOCdevkit" / "VOC2012"
    pairs = []
    for mask in sorted((root / "SegmentationClass").glob("*.png"))[:number]:
        labels = torch.from_numpy(np.array(Image.open(mask)))
        labels = labels.masked_fill(labels == 255, 0).unique(return_inverse=True)[1]
        image = np.array(Image.open(root / "JPEGImages" / f"{mask.stem}.jpg").convert("RGB"))
        pairs.append((torch.from_numpy(image).permute(2, 0, 1)[None], labels[None]))
    return pairs


def corrupted(labels: Tensor, cell: int = 12) -> Tensor:
    """Labels in squares of a coarse grid, some of them wrong: what seeds look like."""
    generator = torch.Generator().manual_seed(0)
    coarse = labels[:, ::cell, ::cell]
    noise = torch.randint(int(labels.max()) + 1, coarse.shape, generator=generator)
    coarse = torch.where(torch.rand(coarse.shape, generator=generator) < 0.15, noise, coarse)
    blocks = coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return blocks[:, : labels.shape[1], : labels.shape[2]]


def unary_of(name: str, labels: Tensor, count: int) -> Tensor:
    """What the recipe is for: hard labels, or scores as soft as class maps are, or logits."""
    if name in ("irn", "table1"):
        return unary_from_labels(labels, count)
    one_hot = torch.nn.functional.one_hot(labels, count).permute(0, 3, 1, 2).float()
    soft = torch.nn.functional.avg_pool2d(one_hot, 31, stride=1, padding=15)
    return unary_from_scores(soft) if name == "psa" else unary_from_logits(soft * 6)


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CRF_RECIPES)
def test_equals_pydensecrf_on_photographs(data_root, name, number):
    for image, labels in voc_images(data_root, number):
        unary = unary_of(name, corrupted(labels), int(labels.max()) + 1)
        assert assert_equals_pydensecrf(image, unary, name).all()


def test_equals_pydensecrf_on_logits_of_21_labels(data_root):
    image, _ = voc_images(data_root, 1)[0]
    logits = torch.nn.functional.interpolate(logits_of(21, 9, 12), image.shape[2:], mode="bicubic") * 2
    assert assert_equals_pydensecrf(image, unary_from_logits(logits), "deeplab").all()


def test_raises_the_overlap_with_true_masks(data_root):
    """Coarse, partly wrong labels get closer to the truth on real images."""
    before, after = [], []
    for image, labels in voc_images(data_root, 2):
        seeds = corrupted(labels)
        refined = refine_labels(DenseCRF(image, "irn"), seeds, among=range(int(labels.max()) + 1))
        before.append((seeds == labels).float().mean())
        after.append((refined == labels).float().mean())
    assert torch.stack(after).mean() > torch.stack(before).mean() + 0.03


@pytest.mark.parametrize(("name", "error"), [("irn", 0.01), ("psa", 0.05), ("deeplab", 0.01), ("table1", 0.01)])
def test_near_the_exact_mean_field(name, error):
    """The lattice's kernel is not the Gaussian, and between few pixels vertices are missing: Q is near, not equal.

    Noise for unaries is the hardest case: nothing but the kernels decides. PSA's kernel spans the whole little image.
    """
    image, unary = random_image(14, 18), unary_from_logits(logits_of(3, 14, 18))
    approximate, exact = DenseCRF(image, name, dtype=torch.float64)(unary), brute_force(image, unary, CRF_RECIPES[name])
    assert (approximate - exact).abs().mean() < error
    assert (approximate.argmax(1) == exact.argmax(1)).double().mean() > 1 - 1.5 * error


def test_one_pixel_by_hand():
    """Alone, a pixel gets its own message from both kernels: Q' = softmax(-U + 13 Q)."""
    unary = torch.tensor([0.2, 0.5]).reshape(1, 2, 1, 1)
    first = torch.softmax(torch.tensor([-0.2, -0.5]), 0)
    second = torch.softmax(torch.tensor([-0.2, -0.5]) + 13 * first, 0)
    crf = DenseCRF(torch.full((1, 3, 1, 1), 77, dtype=torch.uint8), "irn")
    torch.testing.assert_close(crf(unary, iterations=0).flatten(), first)
    torch.testing.assert_close(crf(unary, iterations=1).flatten(), second)


def test_batch_equals_singles():
    images = torch.cat([random_image(20, 30, seed) for seed in range(3)])
    unary = unary_from_logits(logits_of(4, 20, 30, number=3))
    together = DenseCRF(images, "psa")(unary)
    for i in range(3):
        alone = DenseCRF(images[i : i + 1], "psa")(unary[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_labels_are_interchangeable(scene):
    image, unary = scene
    order = torch.tensor([3, 0, 4, 1, 2])
    crf = DenseCRF(image, "irn", dtype=torch.float64)
    torch.testing.assert_close(crf(unary[:, order]), crf(unary)[:, order], atol=1e-9, rtol=0)


def test_marginals_sum_to_one_and_nothing_is_changed(scene):
    """Nor is a second pass over the same lattices changed by another number of labels in between."""
    image, unary = scene
    before = image.clone(), unary.clone()
    crf = DenseCRF(image, "irn")
    marginals = crf(unary)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 20, 30))
    crf(unary_from_logits(logits_of(2, 20, 30)))
    assert torch.equal(crf(unary), marginals)
    assert torch.equal(image, before[0])
    assert torch.equal(unary, before[1])
    assert not DenseCRF(image, "irn")(unary.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", CRF_RECIPES)
@pytest.mark.parametrize(("height", "width"), [(1, 40), (40, 1), (1, 1), (2, 3)])
def test_thin_images(height, width, name):
    assert_equals_pydensecrf(random_image(height, width), unary_from_logits(logits_of(3, height, width)), name)


@pytest.mark.parametrize("color", [0, 255])
def test_an_image_of_one_color(color):
    image = torch.full((1, 3, 40, 50), color, dtype=torch.uint8)
    labels = torch.zeros(1, 40, 50, dtype=torch.long)
    labels[:, :, 30:] = 1
    labels[:, 5, 5] = 1
    unary = unary_from_labels(labels, 2)
    assert_equals_pydensecrf(image, unary, "irn")
    assert int(DenseCRF(image, "irn")(unary).argmax(1)[0, 5, 5]) == 0


def test_one_label_only_and_scores_of_zeros():
    image = random_image(6, 7)
    crf = DenseCRF(image, "irn")
    assert torch.equal(crf(unary_from_labels(torch.zeros(1, 6, 7).long(), 1)), torch.ones(1, 1, 6, 7))
    labels = torch.full((1, 6, 7), 9, dtype=torch.uint8)
    assert torch.equal(refine_labels(crf, labels, among=[9]), labels)
    marginals = DenseCRF(image, "psa")(unary_from_scores(torch.zeros(1, 4, 6, 7)))
    torch.testing.assert_close(marginals, torch.full((1, 4, 6, 7), 0.25))


def test_unaries_by_hand():
    labels = unary_from_labels(torch.tensor([[[0, 2]]]), 3)[0, :, 0]
    torch.testing.assert_close(labels, -torch.tensor([[0.7, 0.15], [0.15, 0.15], [0.15, 0.7]]).log())
    scores = unary_from_scores(torch.tensor([0.0, 0.5, 2.0]).reshape(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(scores, -torch.tensor([1e-5, 0.5, 1.0]).log())
    logits = unary_from_logits(torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)).flatten()
    torch.testing.assert_close(logits, -torch.tensor([0.0, 1.0]).softmax(0).log())


def test_labels_that_do_not_occur_compete_too(scene):
    """Three labels of which two occur share 0.3 between two: the unary of IRN's code with an image's classes."""
    crf, labels = DenseCRF(scene[0], "irn"), logits_of(2, 20, 30).argmax(1)
    assert torch.equal(refine_labels(crf, labels, among=(0, 1, 2)), crf(unary_from_labels(labels, 3)).argmax(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda crf, image: DenseCRF(image.float(), "irn"), "uint8 as read"),
        (lambda crf, image: DenseCRF(image[:, :1], "irn"), r"RGB \(N, 3, H, W\)"),
        (lambda crf, image: DenseCRF(image, "psi"), "did you mean 'psa'"),
        (lambda crf, image: DenseCRF(image, CRFRecipe("x", "", 3, 3, 0, 5, 10)), "must be positive"),
        (lambda crf, image: crf(torch.zeros(1, 2, 9, 8)), "resize the maps"),
        (lambda crf, image: crf(torch.full((1, 2, 8, 9), torch.inf)), "clip scores"),
        (lambda crf, image: unary_from_labels(torch.full((1, 8, 9), 255), 3), "255 where 3 compete"),
        (lambda crf, image: unary_from_labels(torch.zeros(1, 8, 9), 3, confidence=1), "confidence"),
        (lambda crf, image: refine_labels(crf, torch.full((1, 8, 9), 7), among=(0, 6)), r"\[7\] are not among"),
    ],
)
def test_bad_input_raises(call, message):
    image = random_image(8, 9)
    with pytest.raises(AdvCAMError, match=message):
        call(DenseCRF(image, "irn"), image)


def test_probabilities_are_clipped():
    """pydensecrf clips them at 1e-5: labels that a net rules out still compete."""
    logits = torch.tensor([40.0, 0.0, 4.0])[None, :, None, None].expand(1, 3, 2, 2)
    energies = unary_from_logits(logits)[0, :, 0, 0].tolist()
    assert energies == pytest.approx([0, -math.log(1e-5), -math.log(1e-5)], abs=1e-6)
    mild = logits / 10
    torch.testing.assert_close(unary_from_logits(mild), -mild.log_softmax(1))
