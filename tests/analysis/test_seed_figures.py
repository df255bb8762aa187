"""Figs. 11, 13 and 14: curves and gains of seeds by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from advcam_attr.analysis.class_gains import class_gains, plot_class_gains
from advcam_attr.analysis.failures import image_gains
from advcam_attr.analysis.seed_curves import plot_seed_curves, seed_curve
from advcam_attr.metrics.evaluation import Scope, SeedEvaluation
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.types import AdvCAMError


def evaluation(*maps: list[float], ids: tuple[str, ...] = ("a", "b")) -> SeedEvaluation:
    """Two images of one row of four pixels; the first shows class 0 on two, the second class 1 on one."""
    truths = torch.tensor([[[1, 1, 0, 0]], [[2, 0, 0, 0]]], dtype=torch.uint8)
    sweep, counts = ThresholdSweep([0.5], 3), ImageCounts(1, 3)
    for k, (row, truth) in enumerate(zip(maps, truths, strict=True)):
        histogram = sweep.histogram(torch.tensor([[row]]), [k], truth)
        sweep.add(histogram, [k])
        counts.add(histogram, [k])
    return SeedEvaluation(Scope("toy", ("cat", "dog"), ids), sweep, counts)


def test_gains_by_class_and_image_by_hand():
    before = evaluation([0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1])
    after = evaluation([0.9, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1])
    classes = class_gains(before, after)
    assert classes.classes == ("dog", "cat"), "one pixel, then two"
    assert classes.size == (1.0, 2.0)
    assert classes.cam == (1.0, 0.5)
    assert classes.advcam == (0.5, 1.0)
    assert classes.gain() == (-0.5, 0.5)
    plot_class_gains(classes)
    found = image_gains(before, after)
    assert found.ids == ("b", "a"), "the loss first"
    assert found.cam == (1.0, pytest.approx((0.5 + 2 / 3) / 2))
    assert found.advcam == (pytest.approx((0.5 + 2 / 3) / 2), 1.0)
    assert found.describe()["worse"] == 1


def test_evaluations_of_other_images_raise():
    one, other = ([0.9, 0.1, 0.1, 0.1],) * 2, ("a", "c")
    with pytest.raises(AdvCAMError, match="different images"):
        image_gains(evaluation(*one), evaluation(*one, ids=other))


def test_seed_curves():
    good, wide = ([0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]), ([0.9, 0.9, 0.9, 0.9], [0.9, 0.1, 0.1, 0.1])
    curve = seed_curve("both", {2: evaluation(*wide), 0: evaluation(*good)})
    assert curve.values == (0, 2)
    assert curve.mean_iou[0] == 1.0
    assert curve.noise == (0.0, pytest.approx(2 / 5))
    drawing = plot_seed_curves({"steps": [curve, dataclasses.replace(curve, name="none")], "tau": [curve]}, 2)
    colours = [[line.get_color() for line in place.lines] for place in drawing.axes]
    assert colours[0][0] == colours[1][0] != colours[0][1], "a name has one colour in all columns"
    assert drawing.axes[0].get_ylim() == drawing.axes[1].get_ylim()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "none"]
    with pytest.raises(AdvCAMError, match="no seeds for the curve"):
        seed_curve("none", {})
