"""Losses of segmentation nets against loops over pixels and golden values."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from advcam_attr.training.losses.segmentation import (
    SEGMENTATION_LOSSES,
    balanced_cross_entropy,
    cross_entropy,
    resized_labels,
    summed_over_grids,
)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 6, 7, generator=generator, dtype=torch.float64) * 6
    labels = torch.randint(0, 5, (4, 6, 7), generator=generator)
    labels[0, :2] = 255
    labels[1] = 0
    labels[2] = 3
    labels[3] = 255
    return logits, labels


def log_probability(logits: torch.Tensor, n: int, y: int, x: int, label: int) -> float:
    values = logits[n, :, y, x].tolist()
    return values[label] - math.log(sum(math.exp(v) for v in values))


def test_cross_entropy_equals_a_loop_over_pixels(batch):
    logits, labels = batch
    terms = [
        -log_probability(logits, n, y, x, int(labels[n, y, x]))
        for n in range(4) for y in range(6) for x in range(7) if labels[n, y, x] != 255
    ]  # fmt: skip
    assert float(cross_entropy(logits, labels)) == pytest.approx(sum(terms) / len(terms))


@pytest.mark.parametrize(("name", "least"), [("balanced", 0.0), ("balanced_clamped", 1e-5)])
def test_balanced_loss_equals_a_loop_over_pixels(batch, name, least):
    logits, labels = batch
    per_image = []
    for n in range(4):
        parts: dict[bool, list[float]] = {True: [], False: []}
        for y in range(6):
            for x in range(7):
                if (label := int(labels[n, y, x])) != 255:
                    p = max(math.exp(log_probability(logits, n, y, x, label)), least)
                    parts[label > 0].append(-math.log(p))
        per_image.append(sum(sum(part) / len(part) for part in parts.values() if part))
    assert per_image[3] == 0
    assert float(SEGMENTATION_LOSSES[name](logits, labels)) == pytest.approx(sum(per_image) / 4)


def test_clamped_pixels_have_no_gradient():
    """p(label) = 1 / (1 + e^20): its gradient is -1 unless it is clamped."""
    labels = torch.ones(1, 1, 1, dtype=torch.long)
    gradients = {}
    for name in ("balanced", "balanced_clamped"):
        logits = torch.tensor([20.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
        SEGMENTATION_LOSSES[name](logits, labels).backward()
        gradients[name] = logits.grad.flatten().tolist()
    assert gradients["balanced"] == pytest.approx([1, -1])
    assert gradients["balanced_clamped"] == [0, 0]


def test_golden_balanced():
    """p = 1/2 everywhere: ln 2 for one pixel of foreground, ln 2 for three of background, whatever their number."""
    labels = torch.tensor([[[1, 0], [0, 0]]])
    assert float(balanced_cross_entropy(torch.zeros(1, 2, 2, 2), labels)) == pytest.approx(2 * math.log(2))
    assert float(cross_entropy(torch.zeros(1, 2, 2, 2), labels)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", sorted(SEGMENTATION_LOSSES))
def test_void_alone_gives_no_loss_and_no_gradient(name):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    loss = summed_over_grids(SEGMENTATION_LOSSES[name])((logits, logits[..., :2, :2]), labels)
    loss.backward()
    assert loss.item() == 0
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize("size", [(41, 41), (20, 21), (30, 17)])
def test_labels_are_resized_as_pil_does(size):
    labels = torch.randint(0, 256, (1, 65, 53), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = Image.fromarray(labels[0].numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    assert resized_labels(labels, size)[0].tolist() == torch.tensor(list(expected.getdata())).view(size).tolist()


def test_losses_of_several_grids_are_summed(batch):
    logits, labels = batch
    coarse = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    small = torch.stack([torch.stack([labels[:, y, x] for x in (1, 3, 5)], 1) for y in (1, 3, 5)], 1)
    for loss in SEGMENTATION_LOSSES.values():
        total = summed_over_grids(loss)((logits, coarse), labels.to(torch.uint8))
        torch.testing.assert_close(total, loss(logits, labels) + loss(coarse, small))
