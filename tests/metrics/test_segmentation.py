"""Confusion matrices and their measures: by hand, and against torchmetrics; object sizes."""

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
GOLDEN = torch.tensor([[70, 6, 0, 0, 4], [5, 15, 0, 0, 0], [10, 0, 0, 0, 0], [0] * 5, [0] * 5])


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
    chosen = measures.Scores(15 / 26 / 2, 15 / 21 / 2, 15 / 20 / 2, math.nan, 30 / 41 / 2, 6 / 21)
    for field, value in vars(measures.scores(counts, [1, 2])).items():
        assert field == "f1_of_means" or value == pytest.approx(getattr(chosen, field))
    nothing = measures.scores(marginals(torch.tensor([[0, 5], [5, 0]])))
    assert set(vars(nothing).items()) == {("noise", 1), *((k, 0) for k in vars(nothing) if k != "noise")}, "not NaN"
    several = torch.stack([GOLDEN, GOLDEN.T, 2 * GOLDEN]).reshape(3, 1, 5, 5)
    one, turned = measures.mean_iou(counts), measures.mean_iou(marginals(GOLDEN.T))
    assert measures.mean_iou(marginals(several)).tolist() == [[one], [turned], [one]]


def test_the_two_f1_are_the_papers():
    """Table XI's F1 is the harmonic mean of its averages; Table XIII's is not: one class of high precision and one of
    high recall have high averages and a low mean F1."""
    for p, r, f1 in ((64.4, 78.2, 70.6), (66.9, 77.6, 71.9)):
        assert 2 * p * r / (p + r) == pytest.approx(f1, abs=0.06)
    found = measures.scores(marginals(torch.tensor([[0, 0, 0], [0, 10, 90], [0, 0, 10]])))
    assert (found.f1_of_means, found.mean_f1) == pytest.approx((0.55, (20 / 110 + 20 / 110) / 2))


def test_against_torchmetrics(labels):
    from torchmetrics import classification

    names = {"mean_iou": "JaccardIndex", "precision": "Precision", "recall": "Recall", "mean_f1": "F1Score"}
    matrix, merged = ConfusionMatrix(6), ConfusionMatrix(6)
    oracles = {"counts": classification.MulticlassConfusionMatrix(6, ignore_index=255)} | {
        field: getattr(classification, f"Multiclass{name}")(6, ignore_index=255, average="macro")
        for field, name in names.items()
    }
    for prediction, truth in zip(*labels, strict=True):
        part = ConfusionMatrix(6)
        for counted in (matrix, part):
            counted.update(prediction, truth)
        merged.merge(part)
        for oracle in oracles.values():
            oracle.set_dtype(torch.float64).update(prediction[None], truth[None])
    assert torch.equal(matrix.counts, oracles.pop("counts").compute())
    assert torch.equal(matrix.counts, merged.counts)
    found = measures.scores(matrix.marginals())
    for field, oracle in oracles.items():
        assert getattr(found, field) == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_devices_count_as_the_cpu_does():
    index = torch.randint(0, 90, (7, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tally(index, 100), tally_by_scatter(index.int(), 100))
    assert void_as_background(torch.tensor([[0, 255, 7]], dtype=torch.uint8)).tolist() == [[0, 0, 7]]


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
