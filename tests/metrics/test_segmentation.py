"""The confusion matrix against counting by hand, its merging, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from advcam_attr.metrics.segmentation import ConfusionMatrix, confusion
from advcam_attr.types import AdvCAMError


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 4, (5, 6, 7), generator=generator)
    truth = torch.randint(0, 4, (5, 6, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = 255
    return prediction, truth


def test_golden():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 1, 2], [2, 255, 1]]))
    assert matrix.counts.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert matrix.iou().tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert matrix.precision().tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert matrix.recall().tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert matrix.mean_iou() == pytest.approx(4 / 9)


def test_against_counting_by_hand(labels):
    prediction, truth = labels
    matrix = ConfusionMatrix(4)
    matrix.update(prediction, truth.byte())
    pairs = [(t, p) for t, p in zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True) if t != 255]
    for k in range(4):
        both = sum(t == k and p == k for t, p in pairs)
        either = sum(k in (t, p) for t, p in pairs)
        assert matrix.iou()[k] == pytest.approx(both / either)
        assert matrix.precision()[k] == pytest.approx(both / sum(p == k for _, p in pairs))
        assert matrix.recall()[k] == pytest.approx(both / sum(t == k for t, _ in pairs))


def test_parts_merge_to_the_whole(labels):
    prediction, truth = labels
    whole, merged = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, truth)
    for one_prediction, one_truth in zip(prediction, truth, strict=True):
        part = ConfusionMatrix(4)
        part.update(one_prediction, one_truth)
        merged.merge(part)
    assert torch.equal(whole.counts, merged.counts)


def test_classes_that_do_not_occur_have_no_measure():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert math.isnan(matrix.iou()[2])
    assert matrix.mean_iou() == 1


def test_refusals():
    with pytest.raises(AdvCAMError, match=r"\(2,\) and truth \(3,\)"):
        confusion(torch.zeros(2).long(), torch.zeros(3).long(), 2)
    with pytest.raises(AdvCAMError, match="prediction holds labels 0 to 5, but there are 2"):
        confusion(torch.tensor([0, 5]), torch.tensor([0, 1]), 2)
    with pytest.raises(AdvCAMError, match="truth holds labels -1 to 1"):
        confusion(torch.tensor([0, 1]), torch.tensor([-1, 1]), 2)
    with pytest.raises(AdvCAMError, match="3 and 2 classes"):
        ConfusionMatrix(3).merge(ConfusionMatrix(2))
