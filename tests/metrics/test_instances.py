"""Average precision of instances: by hand, merged, with crowds, and of nothing."""

from __future__ import annotations

import math

import pytest
import torch

from advcam_attr.metrics.instances import IOU_THRESHOLDS, InstanceAP
from advcam_attr.types import AdvCAMError, Instances


def rows(*spans: tuple[int, int]) -> torch.Tensor:
    """Masks of 4 × 10 pixels, the columns from the first to before the second of each."""
    masks = torch.zeros(len(spans), 4, 10, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[:, first:last] = True
    return masks


def two_images() -> list[tuple[Instances, Instances]]:
    """Of 3 true ones, found with scores: 0.9 IoU 1, 0.85 nothing there, 0.8 IoU 0.6."""
    first = Instances((1, 1), rows((0, 3), (4, 7)), (0.9, 0.8)), Instances((1, 1), rows((0, 3), (4, 9)))
    second = Instances((1,), rows((7, 9)), (0.85,)), Instances((1,), rows((0, 3)))
    return [first, second]


def ap(pairs: list[tuple[Instances, Instances]], classes: int = 3) -> InstanceAP:
    metric = InstanceAP(classes)
    for found, truth in pairs:
        metric.update(found, truth)
    return metric


def test_average_precision_by_hand():
    """Recalls 1/3, 1/3, 2/3 with precisions 1, 1/2, 2/3, of 101: 34 at 1 and 33 at 2/3; at 0.7 the third is wrong."""
    scores = ap(two_images()).compute()
    assert scores.classes.shape == (10, 3)
    assert scores.at(0.5) == scores.at(0.6) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert scores.at(0.7) == pytest.approx(34 / 101)
    assert scores.mean == pytest.approx((3 * (34 + 33 * 2 / 3) + 7 * 34) / 1010)
    assert scores.classes[:, [0, 2]].isnan().all()


def test_merging_images_is_all_images():
    first, second = (ap([pair]) for pair in two_images())
    first.merge(second)
    assert torch.equal(first.compute().classes.nan_to_num(-1), ap(two_images()).compute().classes.nan_to_num(-1))


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (Instances((1, 1), rows((0, 3), (0, 3)), (0.9, 0.8)), Instances((1,), rows((0, 3))), 1),  # after the last hit
        (Instances((1, 1), rows((5, 8), (0, 3)), (0.9, 0.8)), Instances((1,), rows((0, 3))), 0.5),
        (Instances((1, 1), rows((5, 8), (0, 3)), (0.9, 0.8)),
         Instances((1, 1), rows((4, 9), (0, 3)), crowds=frozenset({0})), 1),
        (Instances((), rows(), ()), Instances((1,), rows((0, 3))), 0),
        (Instances((1,), rows((0, 3)), (0.9,)), Instances((), rows()), math.nan),
    ],
)  # fmt: skip
def test_one_image(found, truth, expected):
    assert ap([(found, truth)]).compute().at(0.5) == pytest.approx(expected, nan_ok=True)


def test_without_images_there_is_no_score():
    assert math.isnan(ap([]).compute().mean)
    assert IOU_THRESHOLDS[0] == 0.5
    assert 0.7 in IOU_THRESHOLDS
    assert IOU_THRESHOLDS[-1] == 0.95


@pytest.mark.parametrize(
    ("found", "truth", "word"),
    [
        (Instances((1,), rows((0, 3)), (1.0,)), Instances((), torch.zeros(0, 3, 3).bool()), "of one"),
        (Instances((1,), rows((0, 3))), Instances((), rows()), "0 scores"),
        (Instances((3,), rows((0, 3)), (1.0,)), Instances((), rows()), "none of the 3"),
    ],
)
def test_bad_input_raises(found, truth, word):
    with pytest.raises(AdvCAMError, match=word):
        ap([(found, truth)])
