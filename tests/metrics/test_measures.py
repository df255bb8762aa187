"""Measures against numbers by hand and torchmetrics; object sizes; the bootstrap against resampling by loops."""

from __future__ import annotations

import math

import pytest
import torch

from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.bootstrap import bootstrap, paired_bootstrap
from advcam_attr.metrics.segmentation import (
    ConfusionMatrix,
    marginals,
    object_sizes,
    smallest_and_largest,
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


def test_golden():
    counts = marginals(GOLDEN)
    assert counts.tolist() == [[70, 15, 0, 0, 0], [80, 20, 10, 0, 0], [85, 21, 0, 0, 4], [0, 6, 0, 0, 4]]
    nan = math.nan
    assert measures.iou(counts).tolist() == pytest.approx([70 / 95, 15 / 26, 0, nan, 0], nan_ok=True)
    assert measures.precision(counts).tolist() == pytest.approx([70 / 85, 15 / 21, 0, nan, 0], nan_ok=True)
    assert measures.recall(counts).tolist() == pytest.approx([70 / 80, 15 / 20, 0, nan, 0], nan_ok=True)
    assert measures.f1(counts).tolist() == pytest.approx([140 / 165, 30 / 41, 0, nan, 0], nan_ok=True)
    assert measures.noise(counts).tolist() == pytest.approx([nan, 6 / 21, nan, nan, 1], nan_ok=True)
    assert float(measures.pooled_noise(counts)) == pytest.approx(10 / 25)
    found = measures.scores(counts)
    p, r = (70 / 85 + 15 / 21) / 4, (70 / 80 + 15 / 20) / 4
    assert found.mean_iou == pytest.approx((70 / 95 + 15 / 26) / 4)
    assert (found.precision, found.recall) == pytest.approx((p, r))
    assert found.f1_of_means == pytest.approx(2 * p * r / (p + r))
    assert found.mean_f1 == pytest.approx((140 / 165 + 30 / 41) / 4)
    assert found.noise == pytest.approx(0.4)


def test_a_choice_of_classes():
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
    # One class of much precision, one of much recall: the averages hide it.
    counts = marginals(torch.tensor([[0, 0, 0], [0, 10, 90], [0, 0, 10]]))
    assert float(measures.f1_of_means(counts)) == pytest.approx(0.55)
    assert float(measures.mean_f1(counts)) == pytest.approx((20 / 110 + 20 / 110) / 2)


def test_nothing_found_is_0_and_not_nan():
    found = measures.scores(marginals(torch.tensor([[0, 5], [5, 0]])))
    assert (found.mean_iou, found.precision, found.recall, found.f1_of_means, found.mean_f1) == (0, 0, 0, 0, 0)
    assert found.noise == 1


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(4)
    truth = torch.randint(0, 5, (4, 30, 40), generator=generator)
    right = torch.rand(truth.shape, generator=generator) < 0.6
    prediction = torch.where(right, truth, torch.randint(0, 4, truth.shape, generator=generator))
    prediction[prediction == 3] = 2
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = 255
    return prediction, truth


def test_against_torchmetrics(labels):
    """Six classes: 3 and 4 are never predicted right, 5 is nowhere."""
    from torchmetrics import classification

    matrix = ConfusionMatrix(6)
    oracle = {
        name: getattr(classification, f"Multiclass{name}")(
            6, ignore_index=255, **({} if name == "ConfusionMatrix" else {"average": average})
        ).set_dtype(torch.float64)
        for name, average in (
            ("ConfusionMatrix", ""), ("JaccardIndex", "macro"), ("Precision", "macro"), ("Recall", "macro"),
            ("F1Score", "macro"),
        )
    }  # fmt: skip
    for prediction, truth in zip(*labels, strict=True):
        matrix.update(prediction, truth)
        for metric in oracle.values():
            metric.update(prediction[None], truth[None])
    found = measures.scores(matrix.marginals())
    assert torch.equal(matrix.counts, oracle["ConfusionMatrix"].compute())
    assert found.mean_iou == pytest.approx(float(oracle["JaccardIndex"].compute()), abs=1e-6)
    assert found.precision == pytest.approx(float(oracle["Precision"].compute()), abs=1e-6)
    assert found.recall == pytest.approx(float(oracle["Recall"].compute()), abs=1e-6)
    assert found.mean_f1 == pytest.approx(float(oracle["F1Score"].compute()), abs=1e-6)


def test_leading_dimensions_are_kept():
    several = torch.stack([GOLDEN, GOLDEN.T, 2 * GOLDEN]).reshape(3, 1, 5, 5)
    for measure in (measures.mean_iou, measures.mean_f1, measures.f1_of_means, measures.pooled_noise):
        found = measure(marginals(several))
        assert found.shape == (3, 1)
        assert float(found[1, 0]) == float(measure(marginals(GOLDEN.T)))
        assert float(found[0, 0]) == float(found[2, 0])


def test_void_is_background():
    assert void_as_background(torch.tensor([[0, 255, 7]], dtype=torch.uint8)).tolist() == [[0, 0, 7]]


def test_object_sizes():
    truth = torch.tensor([[50, 10, 0, 5, 0], [60, 30, 0, 0, 0], [90, 0, 0, 7, 12]])
    sizes = object_sizes(truth)
    assert sizes.tolist() == pytest.approx([200 / 3, 20, math.nan, 6, 12], nan_ok=True)
    assert smallest_and_largest(sizes, 1) == ((3,), (1,))
    assert smallest_and_largest(sizes) == ((3,), (1,)), "three classes: one of each"
    equal = torch.tensor([100.0, 5, 5, 5, 5])
    assert smallest_and_largest(equal) == ((1, 2), (4, 3))
    ten = torch.arange(81.0).flip(0)
    small, large = smallest_and_largest(ten)
    assert small == tuple(range(80, 70, -1))
    assert large == tuple(range(1, 11))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 40, (2, 30, 3, 3), generator=generator) + 30 * torch.eye(3).long()


def resampled(matrices, draws):
    """Mean IoU of each draw, by loops."""
    values = []
    for draw in draws:
        total = sum(matrices[i].double() for i in draw)
        values.append(sum(total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3)) / 3)
    return torch.tensor(values)


def test_bootstrap_against_loops(images):
    generator = torch.Generator().manual_seed(7)
    draws = torch.randint(30, (50, 30), generator=generator).tolist()
    one, two = (resampled(matrices, draws) for matrices in images)
    ends = torch.tensor([0.1, 0.9], dtype=torch.float64)
    counts = marginals(images)
    found = bootstrap(counts[0], measures.mean_iou, samples=50, level=0.8, seed=7)
    assert found == pytest.approx((float(resampled(images[0], [range(30)])), *one.quantile(ends).tolist()), abs=1e-12)
    difference = paired_bootstrap(counts[0], counts[1], measures.mean_iou, samples=50, level=0.8, seed=7)
    assert difference[1:] == pytest.approx((one - two).quantile(ends).tolist(), abs=1e-12)


def test_bootstrap_covers_the_truth():
    """Of 200 data sets whose images have a known share of hits, about nine in ten intervals hold it."""
    generator = torch.Generator().manual_seed(1)

    def share(pool):
        return pool[:, 0] / pool[:, 1]

    covered = 0
    for seed in range(200):
        hits = torch.distributions.Binomial(20, torch.rand(60, generator=generator)).sample().long()
        found = bootstrap(torch.stack([hits, torch.full((60,), 20)], 1), share, samples=200, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 165 <= covered <= 195


def test_a_pair_of_one_method_does_not_differ(images):
    counts = marginals(images[0])
    assert paired_bootstrap(counts, counts, measures.mean_iou, samples=20) == (0, 0, 0)


def test_the_bootstrap_leaves_the_random_state_alone(images):
    before = torch.get_rng_state()
    first = bootstrap(images[0], lambda pool: measures.mean_iou(marginals(pool)), samples=20)
    assert torch.equal(before, torch.get_rng_state())
    assert first == bootstrap(images[0], lambda pool: measures.mean_iou(marginals(pool)), samples=20)
    assert first.low < first.value < first.high


def test_bootstrap_refusals(images):
    with pytest.raises(AdvCAMError, match="got 30 and 29"):
        paired_bootstrap(images[0], images[1, 1:], measures.mean_iou)
    for changes in ({"samples": 0}, {"level": 1.0}):
        with pytest.raises(AdvCAMError, match="a bootstrap needs"):
            bootstrap(images[0], measures.mean_iou, **changes)
    with pytest.raises(AdvCAMError, match="got 0 images"):
        bootstrap(images[0, :0], measures.mean_iou)
