"""Average precision by hand, against a slow definition and scikit-learn."""

import pytest
import torch

from advcam_attr.metrics.classification import AveragePrecision, average_precision
from advcam_attr.types import AdvCAMError


def slow_average_precision(scores: list[float], labels: list[int]) -> float:
    """Precision at each distinct score, weighted by the gain in recall."""
    total, found, area = sum(labels), 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        area += (sum(above) - found) / total * sum(above) / len(above)
        found = sum(above)
    return area


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2), ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1], 0.25),
     ([0, 0, 0, 0], [0, 0, 0, 1], 0.25), ([0.9, 0.8], [0, 0], float("nan")), ([], [], float("nan"))],
)  # fmt: skip
def test_golden(scores, labels, expected):
    found = average_precision(torch.tensor(scores)[:, None], torch.tensor(labels)[:, None])
    assert found.tolist() == pytest.approx([expected], nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_the_slow_definition_and_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 8, (30, 4), generator=generator) / 8  # with ties
    labels = torch.randint(0, 2, (30, 4), generator=generator)
    found = average_precision(scores, labels).tolist()
    assert found == pytest.approx([slow_average_precision(*c) for c in columns(scores, labels)], abs=1e-12)
    metrics = pytest.importorskip("sklearn.metrics")
    sklearn = [metrics.average_precision_score(labels, scores) for scores, labels in columns(scores, labels)]
    assert found == pytest.approx(sklearn, abs=1e-12)


def columns(scores, labels):
    return zip(scores.T.tolist(), labels.T.tolist(), strict=True)


def test_parts_add_up_in_any_order():
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.rand(40, 3, generator=generator), torch.randint(0, 2, (40, 3), generator=generator)
    whole = AveragePrecision(3)
    whole.update(scores, labels)
    parts = [AveragePrecision(3) for _ in range(4)]
    for n, part in enumerate(parts):
        part.update(scores[n::4], labels[n::4])
    for part in parts[1:][::-1]:
        parts[0].merge(part)
    assert torch.equal(parts[0].per_class(), whole.per_class())
    assert parts[0].mean() == whole.mean() == pytest.approx(float(average_precision(scores, labels).mean()))


def test_bad_input_raises():
    with pytest.raises(AdvCAMError, match=r"must both be \(N, K\)"):
        average_precision(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(AdvCAMError, match="NaN"):
        average_precision(torch.full((1, 1), torch.nan), torch.ones(1, 1))
    with pytest.raises(AdvCAMError, match=r"are not \(N, 3\)"):
        AveragePrecision(3).update(torch.zeros(2, 4), torch.zeros(2, 4))
