"""Confusion matrices and their measures: by hand, against counting pixels, against torchmetrics; object sizes."""

from __future__ import annotations

import math

import pytest
import torch

from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.segmentation import (
    ConfusionMatrix,
    marginals,
    object_sizes,
    smallest_and_largest,
    tally,
    tally_by_scatter,
    void_as_background,
)
from advcam_attr.types import AdvCAMError

#: Background, a class that is found in part, one that is never predicted, one that is nowhere, one only predicted.
GOLDEN = torch.tensor(
    [
        [70, 6, 0, 0, 4],
        [5, 15, 0, 0, 0],
        [10, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
)


@pytest.fixture
def labels():
    """Six classes: 3 and 4 are never predicted correctly, 5 is nowhere; a tenth of the truth is void."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.randint(0, 5, (4, 30, 40), generator=generator)
    right = torch.rand(truth.shape, generator=generator) < 0.6
    prediction = torch.where(right, truth, torch.randint(0, 4, truth.shape, generator=generator))
    prediction[prediction == 3] = 2
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = 255
    return prediction, truth


def test_golden_matrix():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 1, 2], [2, 255, 1]], dtype=torch.uint8))
    assert matrix.counts.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert matrix.iou().tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert matrix.precision().tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert matrix.recall().tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert matrix.mean_iou() == pytest.approx(4 / 9)


def test_golden_measures():
    counts = marginals(GOLDEN)
    assert counts.tolist() == [[70, 15, 0, 0, 0], [80, 20, 10, 0, 0], [85, 21, 0, 0, 4], [0, 6, 0, 0, 4]]
    nan = math.nan
    for measure, expected in {
        measures.iou: [70 / 95, 15 / 26, 0, nan, 0],
        measures.precision: [70 / 85, 15 / 21, 0, nan, 0],
        measures.recall: [70 / 80, 15 / 20, 0, nan, 0],
        measures.f1: [140 / 165, 30 / 41, 0, nan, 0],
        measures.noise: [nan, 6 / 21, nan, nan, 1],
    }.items():
        assert measure(counts).tolist() == pytest.approx(expected, nan_ok=True)
    found = measures.scores(counts)
    p, r = (70 / 85 + 15 / 21) / 4, (70 / 80 + 15 / 20) / 4
    assert found.mean_iou == pytest.approx((70 / 95 + 15 / 26) / 4)
    assert (found.precision, found.recall) == pytest.approx((p, r))
    assert found.f1_of_means == pytest.approx(2 * p * r / (p + r))
    assert found.mean_f1 == pytest.approx((140 / 165 + 30 / 41) / 4)
    assert found.noise == pytest.approx(10 / 25)


def test_scores_of_chosen_classes():
    found = measures.scores(marginals(GOLDEN), [1, 2])
    assert found.mean_iou == pytest.approx(15 / 26 / 2)
    assert found.precision == pytest.approx(15 / 21 / 2)
    assert found.recall == pytest.approx(15 / 20 / 2)
    assert found.mean_f1 == pytest.approx(30 / 41 / 2)
    assert found.noise == pytest.approx(6 / 21)


def test_the_two_f1_are_the_papers():
    """Table XI's F1 is the harmonic mean of its averages; Table XIII's is not."""
    for p, r, f1 in ((64.4, 78.2, 70.6), (66.9, 77.6, 71.9)):
        assert 2 * p * r / (p + r) == pytest.approx(f1, abs=0.06)
    # One class of high precision, one of high recall: the averages hide it.
    found = measures.scores(marginals(torch.tensor([[0, 0, 0], [0, 10, 90], [0, 0, 10]])))
    assert found.f1_of_means == pytest.approx(0.55)
    assert found.mean_f1 == pytest.approx((20 / 110 + 20 / 110) / 2)


def test_nothing_found_is_0_and_not_nan():
    found = measures.scores(marginals(torch.tensor([[0, 5], [5, 0]])))
    assert vars(found) == {"noise": 1} | dict.fromkeys(("mean_iou", "precision", "recall", "f1_of_means", "mean_f1"), 0)


def test_against_counting_pixels(labels):
    prediction, truth = labels
    matrix = ConfusionMatrix(6)
    matrix.update(prediction, truth.byte())
    pairs = [(t, p) for t, p in zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True) if t != 255]
    for k in range(3):
        both = sum(t == k and p == k for t, p in pairs)
        assert matrix.iou()[k] == pytest.approx(both / sum(k in pair for pair in pairs))
        assert matrix.precision()[k] == pytest.approx(both / sum(p == k for _, p in pairs))
        assert matrix.recall()[k] == pytest.approx(both / sum(t == k for t, _ in pairs))


def test_against_torchmetrics(labels):
    from torchmetrics import classification

    matrix, merged = ConfusionMatrix(6), ConfusionMatrix(6)
    oracles = {"counts": classification.MulticlassConfusionMatrix(6, ignore_index=255)} | {
        field: getattr(classification, f"Multiclass{name}")(6, ignore_index=255, average="macro")
        for field, name in (
            ("mean_iou", "JaccardIndex"),
            ("precision", "Precision"),
            ("recall", "Recall"),
            ("mean_f1", "F1Score"),
        )
    }
    for prediction, truth in zip(*labels, strict=True):
        matrix.update(prediction, truth)
        part = ConfusionMatrix(6)
        part.update(prediction, truth)
        merged.merge(part)
        for oracle in oracles.values():
            oracle.set_dtype(torch.float64).update(prediction[None], truth[None])
    assert torch.equal(matrix.counts, oracles.pop("counts").compute())
    assert torch.equal(matrix.counts, merged.counts)
    found = measures.scores(matrix.marginals())
    for field, oracle in oracles.items():
        assert getattr(found, field) == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_leading_dimensions_are_kept():
    several = torch.stack([GOLDEN, GOLDEN.T, 2 * GOLDEN]).reshape(3, 1, 5, 5)
    found = measures.mean_iou(marginals(several))
    assert found.shape == (3, 1)
    assert float(found[1, 0]) == float(measures.mean_iou(marginals(GOLDEN.T)))
    assert float(found[0, 0]) == float(found[2, 0])


def test_void_is_background():
    assert void_as_background(torch.tensor([[0, 255, 7]], dtype=torch.uint8)).tolist() == [[0, 0, 7]]


def test_devices_count_as_the_cpu_does():
    index = torch.randint(0, 90, (7, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tally(index, 100), tally_by_scatter(index.int(), 100))


def test_object_sizes():
    truth = torch.tensor([[50, 10, 0, 5, 0], [60, 30, 0, 0, 0], [90, 0, 0, 7, 12]])
    sizes = object_sizes(truth)
    assert sizes.tolist() == pytest.approx([200 / 3, 20, math.nan, 6, 12], nan_ok=True)
    assert smallest_and_largest(sizes, 1) == smallest_and_largest(sizes) == ((3,), (1,)), "three classes: one of each"
    assert smallest_and_largest(torch.tensor([100.0, 5, 5, 5, 5])) == ((1, 2), (4, 3))
    many = torch.arange(81.0).flip(0)
    assert smallest_and_largest(many) == (tuple(range(80, 70, -1)), tuple(range(1, 11)))


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        ([0, 0], [0, 0, 0], "differ in shape"),
        ([0, 5], [0, 1], "prediction holds labels 0 to 5"),
        ([0, 1], [-1, 1], "truth holds labels -1 to 1"),
    ],
)
def test_bad_labels_raise(prediction, truth, words):
    with pytest.raises(AdvCAMError, match=words):
        ConfusionMatrix(2).update(torch.tensor(prediction), torch.tensor(truth))


def test_bad_matrices_raise():
    with pytest.raises(AdvCAMError, match="3 and 2 classes"):
        ConfusionMatrix(3).merge(ConfusionMatrix(2))
    state = ConfusionMatrix(6).state()
    state["cells"][-1] = 2  # as a GPU counts labels outside the classes
    with pytest.raises(AdvCAMError, match="2 pixels"):
        ConfusionMatrix.from_state(state).mean_iou()
