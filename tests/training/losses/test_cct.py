"""CCT's loss and its ramps against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from advcam_attr.training.losses.cct import (
    CCTLoss,
    annealed_cross_entropy,
    annealed_threshold,
    consistency,
    cross_entropy,
    disagreement,
    ramp_up,
)


def case(seed: int, decoders: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 2 + decoders, 4, 3, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (2, 2, 3, 5), generator=generator)]
    return scores, labels.to(torch.uint8)


def softmax(scores: Tensor, place: tuple[int, int, int]) -> list[float]:
    n, i, j = place
    e = [math.exp(float(v)) for v in scores[n, :, i, j]]
    return [v / sum(e) for v in e]


def slow_cross_entropy(scores: Tensor, labels: Tensor, threshold: float = 1.0) -> float:
    """The mean of -log p of the labels' probabilities below a threshold."""
    own = sorted(softmax(scores, p)[int(labels[p])] for p in np.ndindex(2, 3, 5) if labels[p] != 255)
    kept = [p for p in own if p < max(threshold, own[2])]  # min_kept: one of each of two images
    return sum(-math.log(p) for p in kept) / len(kept)


def slow_consistency(scores: Tensor, main: Tensor, confidence: float = -1.0) -> float:
    squares = []
    for p in np.ndindex(2, 3, 5):
        target = softmax(main, p)
        if max(target) > confidence:
            squares += [(a - b) ** 2 for a, b in zip(softmax(scores, p), target, strict=True)]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_a_loop_over_pixels(seed):
    scores, labels = case(seed)
    found = CCTLoss(steps=80, ramp_steps=8).at(4)(scores, labels)
    unsupervised = np.mean([slow_consistency(scores[:, k], scores[:, 1]) for k in (2, 3, 4)])
    weak = np.mean([slow_cross_entropy(scores[:, k], labels[:, 1]) for k in (2, 3, 4)])
    supervised, ramp = slow_cross_entropy(scores[:, 0], labels[:, 0]), math.exp(-5 * 0.25)
    parts = {name: float(value) for name, value in found.parts.items()}
    assert parts == pytest.approx({"supervised": supervised, "consistency": unsupervised, "weak": weak})
    assert float(found.total) == pytest.approx(supervised + 30 * ramp * unsupervised + 0.4 * ramp * weak)


@pytest.mark.parametrize("seed", range(3))
def test_options_equal_a_loop_over_pixels(seed):
    scores, labels = case(seed)
    loss = CCTLoss(80, 8, supervised="abce", weak_weight=0.0, confidence=0.5, pairwise_weight=2.0)
    found = loss.at(8)(scores, labels)
    threshold = 0.25 + 0.65 * (1 - math.exp(-5 * 8 / 32))
    assert float(found.parts["supervised"]) == pytest.approx(slow_cross_entropy(scores[:, 0], labels[:, 0], threshold))
    sure = np.mean([slow_consistency(scores[:, k], scores[:, 1], 0.5) for k in (2, 3, 4)])
    assert float(found.parts["consistency"]) == pytest.approx(sure)
    variances = []
    for p in np.ndindex(2, 3, 5):
        each = np.array([softmax(scores[:, k], p) for k in (2, 3, 4)])
        variances.append(((each - each.mean(0)) ** 2).mean(0).sum())
    assert float(found.parts["pairwise"]) == pytest.approx(np.mean(variances))
    assert "weak" not in found.parts
    assert float(found.total) == pytest.approx(
        float(found.parts["supervised"]) + 30 * sure + 2 * float(np.mean(variances))
    )


def test_golden_annealed_cross_entropy():
    """Two classes; p(label) of four pixels is 0.9, 0.6, 0.3 and, void, 0.1; at least one pixel remains."""
    own = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64)
    scores = torch.stack([own.log(), (1 - own).log()])[None, :, None]
    labels = torch.tensor([[[0, 0, 0, 255]]])
    for threshold, kept in ((0.95, (0.9, 0.6, 0.3)), (0.7, (0.6, 0.3)), (0.5, (0.3,)), (0.0, (0.3,))):
        expected = -sum(math.log(p) for p in kept) / len(kept)
        assert float(annealed_cross_entropy(scores, labels, threshold)) == pytest.approx(expected)


def test_thresholds_and_ramps():
    assert annealed_threshold(0, 100, 21) == pytest.approx(1 / 21)
    assert annealed_threshold(40, 100, 21) == annealed_threshold(99, 100, 21) == pytest.approx(0.9, abs=0.01)
    rising = [annealed_threshold(step, 100, 21) for step in range(41)]
    assert rising == sorted(set(rising))
    assert ramp_up(0, 8) == pytest.approx(math.exp(-5))
    assert ramp_up(8, 8) == ramp_up(100, 8) == ramp_up(0, 0) == 1


def test_void_alone_gives_no_loss_and_no_nan():
    scores, labels = case(0)
    scores.requires_grad_(True)
    void = torch.full_like(labels, 255)
    for supervised in ("ce", "abce"):
        loss = CCTLoss(80, 8, supervised=supervised).at(3)(scores, void)
        assert loss.parts["supervised"].item() == loss.parts["weak"].item() == 0
        loss.total.backward()
        assert bool(scores.grad.isfinite().all())
    assert consistency(scores[:, 2], scores[:, 1].softmax(1), confidence=0.9999999).item() == 0


def test_gradients_of_each_decoder():
    scores, labels = case(1)
    scores.requires_grad_(True)
    CCTLoss(80, 8).at(3)(scores, labels).total.backward()
    assert bool(scores.grad[:, 0].any())
    assert not bool(scores.grad[:, 1].any())  # the target is detached, and has no pseudo mask
    assert bool(scores.grad[:, 2:].flatten(2).any(2).all())


def test_without_auxiliary_decoders():
    scores, labels = case(2)
    found = CCTLoss(80, 8).at(3)(scores[:, :1], labels)
    assert torch.equal(found.total, cross_entropy(scores[:, 0], labels[:, 0]))
    assert list(found.parts) == ["supervised"]


def test_disagreement_draws_eight_decoders_at_most():
    scores = torch.randn(1, 12, 3, 2, 2)
    torch.manual_seed(0)
    found = disagreement(scores)
    torch.manual_seed(0)
    assert torch.equal(found, disagreement(scores[:, torch.randperm(12)[:8]]))
    assert float(disagreement(scores[:, :1].expand_as(scores))) == pytest.approx(0, abs=1e-9)
