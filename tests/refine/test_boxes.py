"""Boxes of maps: the protocol's examples, both exact searches against all 1000 thresholds, and map_to_boxes."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from advcam_attr.metrics.box_sweep import (
    available,
    best_ious,
    best_ious_by_union_find,
    box_iou,
    compiled_sweep,
    make_sweep,
    run_sweeps,
)
from advcam_attr.metrics.localization import levels_at
from advcam_attr.refine.boxes import (
    boxes_above,
    check_scores,
    grey_levels,
    largest_box_above,
    map_to_boxes,
    map_to_mask,
    resize_boxes,
    score_map,
)
from advcam_attr.types import AdvCAMError
from box_maps import KINDS, SMOOTH, bird_maps, random_grey, random_truth
from slow_boxes import THRESHOLDS, best_at_thresholds, boxes_at, iou

needs_numba = pytest.mark.skipif(not available(), reason="numba is not installed")

SQUARE = [[0, 0, 0, 0, 0], [0, 0.4, 0.4, 0.4, 0.6], [0, 0.4, 1, 0.8, 0.6], [0, 0.4, 0.4, 0.4, 0.6]]
TORN = [[0.4, 0, 0.2, 0.2, 0.2], [0.4, 0.4, 0, 0.4, 0], [0, 0, 0, 0.4, 0], [1, 0.6, 0.8, 0.2, 0.2]]


def same_at_all_thresholds(grey, truth) -> None:
    expected = best_at_thresholds(grey, truth)
    levels = levels_at(int(grey.max()))
    np.testing.assert_array_equal(best_ious(grey, truth, boxes_above)[levels], expected)
    if available():
        np.testing.assert_array_equal(best_ious_by_union_find(grey, truth)[levels], expected)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (SQUARE, [(1, 1, 4, 3), (1, 1, 4, 3), (2, 1, 4, 3), (2, 2, 4, 3), (2, 2, 3, 3)]),
        (TORN, [(0, 0, 4, 3), (0, 0, 2, 2), (0, 3, 3, 3), (2, 3, 3, 3), (0, 3, 1, 3)]),
    ],
)
def test_largest_contour_of_the_protocols_examples(rows, expected):
    grey = grey_levels(check_scores(np.array(rows, np.float64), (4, 5)))
    for threshold, box in zip((0, 0.2, 0.4, 0.6, 0.8), expected, strict=True):
        assert largest_box_above(grey, int(threshold * grey.max())) == [box]


def test_boxes_of_contours_by_hand():
    """A box ends a pixel later than its contour, but not beyond the map; the border of a hole is a contour, too."""
    grey = np.zeros((40, 40), np.uint8)
    grey[4:15, 3:16] = 200
    grey[7:9, 6:10] = 0
    assert sorted(boxes_above(grey, 10)) == [(3, 4, 16, 15), (5, 6, 11, 10)]
    grey = np.zeros((6, 9), np.uint8)
    grey[2:, 5:] = 1
    assert boxes_above(grey, 0) == [(5, 2, 8, 5)]
    assert boxes_above(grey, 1) == [(0, 0, 0, 0)]
    y, x = np.mgrid[:50, :60]
    raw = np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 100)
    for threshold in (0.1, 0.5, 0.9):
        x0, y0, x1, y1 = map_to_boxes(raw, threshold)[0].tolist()
        assert boxes_above(grey_levels(score_map(raw, None)), int(threshold * 255)) == [(x0, y0, x1 + 1, y1 + 1)]


def test_overlap_counts_last_pixels():
    boxes = np.array([[1, 2, 5, 6], [0, 0, 0, 0], [3, 3, 3, 4]])
    assert box_iou(boxes[:1], np.array([[3, 1, 4, 5]]))[0, 0] == 8 / 27
    assert box_iou(boxes[1:2], boxes[1:2])[0, 0] == 1
    random = np.random.default_rng(0)
    a, b = random_truth((20, 30), random), random_truth((20, 30), random)
    assert box_iou(a, b).tolist() == [[iou(tuple(x), tuple(y)) for y in b.tolist()] for x in a.tolist()]


def test_true_boxes_are_truncated_to_whole_pixels():
    assert resize_boxes([[1, 2, 4, 3]], size=(20, 10), to=(10, 35)).tolist() == [[3, 1, 14, 1]]
    assert resize_boxes([[1, 2, 1, 2]], size=(3, 3), to=(3, 3)).tolist() == [[1, 2, 1, 2]]
    random = np.random.default_rng(1)
    for width, height in random.integers(30, 900, (50, 2)).tolist():
        boxes = random_truth((height, width), random)
        expected = [[int(v * 224 / s) for v, s in zip(b, (width, height) * 2, strict=True)] for b in boxes.tolist()]
        assert resize_boxes(boxes, (height, width)).tolist() == expected


def test_an_empty_map_has_one_box_of_the_first_pixel():
    assert boxes_at(np.zeros((5, 5), np.uint8), 0.7, False) == [(0, 0, 0, 0)]
    for truth, expected in (([0, 0, 1, 2], 1 / 6), ([1, 0, 1, 2], 0), ([0, 0, 0, 0], 1)):
        found = best_ious(np.zeros((5, 5), np.uint8), np.array([truth]), boxes_above)
        assert found[0] == expected
        assert run_sweeps(make_sweep(lambda f: f), np.zeros((5, 5), np.uint8), np.array([truth]))[0] == expected


@pytest.mark.parametrize("raw", [np.full((7, 7), 3.0), np.array([[1.0, np.nan], [0.0, 2.0]]), np.zeros((1, 1))])
def test_constant_maps_and_nan_become_zeros(raw):
    scores = score_map(raw, (20, 30))
    assert scores.shape == (20, 30)
    assert scores.dtype == np.float64
    assert not scores.any()


def test_score_maps_reach_from_0_to_1_and_keep_the_order():
    raw = torch.randn(1, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    scores = score_map(raw)
    assert (scores.shape, scores.min(), scores.max()) == ((224, 224), 0, 1)
    lowest, highest = float(raw.double().min()), float(raw.double().max())
    np.testing.assert_allclose(score_map(raw, None), (raw[0, 0].double() - lowest) / (highest - lowest), rtol=1e-14)
    np.testing.assert_array_equal(scores, score_map(raw.numpy().astype(np.float64) * 8))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        *(
            (lambda raw=raw: score_map(raw), "a map must")
            for raw in (np.zeros(5), np.zeros((0, 4)), np.zeros((2, 3, 4)))
        ),
        (lambda: score_map(np.array([["a"]])), "a map must"),
        *(
            (lambda row=row, size=size: score_map(np.array([row]), size), "infinite")
            for row in ([0.0, np.inf], [np.inf, np.inf], [-np.inf, -np.inf])
            for size in (None, (20, 30))
        ),
        *(
            (lambda size=size: map_to_boxes(np.array([[0.0, 1.0]]), 0.2, size=size), "at least 1")
            for size in ((0, 30), (30, 0), (-1, 5))
        ),
        *(
            (lambda threshold=threshold: map_to_boxes(torch.zeros(8, 8), threshold), "threshold must")
            for threshold in (-0.1, 1, float("nan"))
        ),
        (lambda: map_to_mask(torch.zeros(8, 8), 0.2, components="some"), "components must"),
        *(
            (lambda box=box: resize_boxes([box], (20, 10)), "does not lie in an image of 10 x 20")
            for box in ([0, 0, 10, 3], [-1, 0, 3, 3], [4, 0, 3, 3], [0, 5, 1, 20])
        ),
        (lambda: resize_boxes(np.zeros((0, 4)), (20, 10)), "at least one"),
    ],
)
def test_bad_input_raises(call, word):
    with pytest.raises(AdvCAMError, match=word):
        call()


def test_missing_opencv_and_numba_raise(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(AdvCAMError, match="pip install opencv-contrib-python-headless"):
        boxes_above(np.zeros((2, 2), np.uint8), 0)
    with pytest.raises(AdvCAMError, match=r"advcam_attr\[fast\]"):
        compiled_sweep.__wrapped__()


@pytest.mark.parametrize("kind", KINDS)
def test_both_evaluations_equal_all_thresholds(kind):
    random = np.random.default_rng(KINDS.index(kind))
    for size in ((14, 11), (25, 30), (1, 17), (9, 2)) if kind in SMOOTH else ((8, 11), (1, 17), (9, 2)):
        grey, truth = random_grey(kind, size, random), random_truth(size, random)
        same_at_all_thresholds(grey, truth)


@needs_numba
def test_many_true_boxes():
    random = np.random.default_rng(3)
    grey = random_grey("blobs", (60, 60), random)
    truth = np.concatenate([random_truth((60, 60), random) for _ in range(120)])[:259]
    assert len(truth) == 259
    np.testing.assert_array_equal(best_ious_by_union_find(grey, truth), best_ious(grey, truth, boxes_above))


@pytest.mark.parametrize(
    ("count", "step"), [(2, 120), pytest.param(120, 2, marks=[pytest.mark.slow, needs_numba])], ids=["few", "many"]
)
def test_real_maps_equal_all_thresholds(data_root, count, step):
    maps = bird_maps(data_root, count, step)
    assert len(maps) == count
    for grey, truth in maps:
        same_at_all_thresholds(grey, truth)


@pytest.mark.slow
@needs_numba
@pytest.mark.parametrize("kind", KINDS)
def test_many_maps_of_full_size_equal_all_thresholds(kind):
    random = np.random.default_rng(100 + KINDS.index(kind))
    size, count = ((224, 224), 40) if kind in SMOOTH else ((64, 64), 3)
    for _ in range(count):
        grey, truth = random_grey(kind, size, random), random_truth(size, random)
        same_at_all_thresholds(grey, truth)


def test_largest_contour_and_plain_sweep_equal_all_thresholds():
    random, sweep = np.random.default_rng(8), make_sweep(lambda f: f)
    for kind in KINDS:
        grey, truth = random_grey(kind, (9, 12), random), random_truth((9, 12), random)
        found = best_ious(grey, truth, largest_box_above)[levels_at(int(grey.max()))]
        np.testing.assert_array_equal(found, best_at_thresholds(grey, truth, largest=True))
        np.testing.assert_array_equal(run_sweeps(sweep, grey, truth), best_ious(grey, truth, boxes_above))


def test_levels_follow_the_floating_point_formula():
    for peak in range(256):
        expected = [int(t * peak) for t in THRESHOLDS]
        assert levels_at(peak).tolist() == expected
        assert set(expected) == set(range(max(peak, 1)))


@pytest.mark.parametrize("find", [lambda g, t: best_ious(g, t, boxes_above), best_ious_by_union_find])
@pytest.mark.parametrize(
    "truth",
    [[[0, 0, 5, 3]], [[2, 2, 1, 3]], [[-1, 0, 1, 1]], [[0.5, 0, 1, 1]], np.zeros((0, 4), int), [[0, 0, 1]]],
)
def test_true_boxes_off_the_map_raise(find, truth):
    with pytest.raises(AdvCAMError, match="true box"):
        find(np.ones((4, 5), np.uint8), np.array(truth))


def test_a_users_boxes_hold_the_mask():
    random = np.random.default_rng(2)
    for kind in ("blobs", "noisy blobs", "fine"):
        raw = random_grey(kind, (30, 40), random).astype(float)
        for threshold in (0, 0.3, 0.8):
            mask = map_to_mask(raw, threshold, size=(60, 90))
            boxes = map_to_boxes(raw, threshold, size=(60, 90), components="all")
            covered = torch.zeros_like(mask)
            for x0, y0, x1, y1 in boxes.tolist():
                inside = mask[y0 : y1 + 1, x0 : x1 + 1]
                assert inside.any(0)[[0, -1]].all()
                assert inside.any(1)[[0, -1]].all()
                covered[y0 : y1 + 1, x0 : x1 + 1] = True
            assert not (mask & ~covered).any()
            largest = map_to_mask(raw, threshold, size=(60, 90), components="largest")
            y, x = largest.nonzero().T
            box = [int(v) for v in (x.min(), y.min(), x.max(), y.max())]
            assert map_to_boxes(raw, threshold, size=(60, 90)).tolist() == [box] == boxes[:1].tolist()
            assert (largest & mask).sum() == largest.sum() <= mask.sum()


def test_constant_maps_have_no_boxes_and_scores_are_checked():
    flat, good = torch.zeros(8, 8), np.linspace(0, 0.5, 6).reshape(2, 3)
    assert map_to_boxes(flat, 0.2).shape == (0, 4)
    assert map_to_boxes(flat, 0.2, components="all").dtype == torch.int64
    assert not map_to_mask(flat, 0.2, components="largest").any()
    assert check_scores(good, (2, 3)) is good
    for bad in (good.astype(np.float32), good.tolist(), good[0], good * 3, good - 1, np.full((2, 3), np.nan)):
        with pytest.raises(AdvCAMError, match="scores must"):
            check_scores(bad, (2, 3))
