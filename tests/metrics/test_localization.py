"""MaxBoxAcc, Top-1 Loc, PxAP and comparisons: by hand, and against all 1000 thresholds."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from advcam_attr.metrics.box_sweep import LEVELS
from advcam_attr.metrics.localization import (
    IOUS,
    BoxTable,
    PixelAP,
    box_hits,
    compare_tables,
    levels_at,
    localization_scores,
    merge_tables,
)
from advcam_attr.pipelines.wsol.evaluate import load_table, save_table, score_boxes
from advcam_attr.refine.boxes import check_scores
from advcam_attr.types import AdvCAMError, Sample
from box_maps import KINDS, random_grey, random_truth
from slow_boxes import THRESHOLDS, best_at_thresholds, max_box_acc

SIZE = (9, 13)


def table_of(rows, peaks=None, correct=None, ids=None, contours="all") -> BoxTable:
    best = torch.zeros(len(rows), LEVELS, dtype=torch.float64)
    for row, values in zip(best, rows, strict=True):
        for level, value in values.items():
            row[level] = value
    peak = torch.tensor(peaks or [255] * len(rows), dtype=torch.uint8)
    correct = None if correct is None else torch.tensor(correct)
    return BoxTable(tuple(ids or map(str, range(len(rows)))), best, peak, correct, contours)


def small_data(count: int, seed: int = 0):
    """Score maps of every kind, also with peaks below 1, and a data set of their boxes."""
    random = np.random.default_rng(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    maps = {f"{i:03d}": random_grey(kind, SIZE, random) / 255 for i, kind in enumerate(kinds)}
    boxes = {id: [tuple(box) for box in random_truth(SIZE, random).tolist()] for id in maps}
    samples = tuple(Sample(id, None, (int(random.integers(3)),)) for id in maps)
    data = SimpleNamespace(
        name="random", root=".", split="all", samples=samples, boxes=boxes, sizes=dict.fromkeys(maps, SIZE)
    )
    return data, maps, {sample.id: int(random.integers(3)) for sample in samples}


def scored(data, maps, **options) -> BoxTable:
    return score_boxes(maps.__getitem__, data, prepare=partial(check_scores, size=SIZE), **options)


def test_by_hand():
    """The first threshold has both boxes at 0.3, the second one box at 0.7; only the first image is classified."""
    table = table_of([{0: 0.3, 200: 0.7}, {0: 0.6, 200: 0.1}], correct=[True, False])
    scores = localization_scores(table)
    assert scores.max_box_acc == (1, 0.5, 0.5)
    assert scores.max_box_acc_v2 == pytest.approx(2 / 3)
    assert [int(t * 255) for t in scores.thresholds] == [0, 0, 200]
    assert (scores.gt_known, scores.gt_known_threshold) == (0.5, 0)
    assert (scores.top1_cls, scores.top1_loc, scores.top1_loc_at_gt_known) == (0.5, 0.5, 0)
    assert int(scores.top1_loc_threshold * 255) == 200


def test_one_threshold_holds_for_all_images():
    table = table_of([{0: 0.9}, {100: 0.9}, {254: 0.9}])
    assert localization_scores(table).max_box_acc == (1 / 3,) * 3


def test_peaks_below_one_are_read_at_their_own_levels():
    """A map of peak 2 has levels 0 and 1 alone: 1 is what thresholds from 0.5 on mean."""
    table = table_of([{1: 0.9}, {127: 0.9, 128: 0}, {126: 0.9}], peaks=[2, 255, 255])
    hits, thresholds = box_hits(table)
    for n, peak in enumerate((2, 255, 255)):
        expected = (table.best[n].numpy()[levels_at(peak)] >= 0.5).tolist()
        places = [max(i for i, t in enumerate(thresholds) if t <= threshold) for threshold in THRESHOLDS]
        assert hits[n, 1][places].tolist() == expected
    assert localization_scores(table).gt_known == 2 / 3
    assert localization_scores(table).gt_known_threshold == 0.5


def test_equals_all_thresholds_on_random_maps():
    data, maps, predictions = small_data(22)
    reference = {
        largest: np.stack([
            best_at_thresholds((maps[s.id] * 255).astype(np.uint8), data.boxes[s.id], largest) for s in data.samples
        ])
        for largest in (False, True)
    }  # fmt: skip
    correct = np.array([predictions[s.id] == s.labels[0] for s in data.samples])
    for contours, rows in (("all", reference[False]), ("largest", reference[True])):
        scores = localization_scores(scored(data, maps, contours=contours, predictions=predictions))
        assert scores.max_box_acc == tuple(max_box_acc(rows, delta) for delta in IOUS)
        assert scores.max_box_acc_v2 == sum(scores.max_box_acc) / 3
        assert scores.gt_known == max_box_acc(rows, 0.5)
        known = (rows >= 0.5).mean(0)
        assert scores.gt_known_threshold == THRESHOLDS[known.argmax()]
        located = ((rows >= 0.5) & correct[:, None]).mean(0)
        assert (scores.top1_cls, scores.top1_loc) == (correct.mean(), located.max())
        assert scores.top1_loc_at_gt_known == located[known.argmax()]


def test_merged_shards_are_the_whole_in_any_order(tmp_path):
    data, maps, predictions = small_data(15)
    whole = scored(data, maps, predictions=predictions)
    parts = [scored(data, maps, predictions=predictions, samples=data.samples[rank::3]) for rank in range(3)]
    for rank, part in enumerate(parts):
        save_table(part, tmp_path / f"{rank}.safetensors")
    merged = merge_tables([load_table(tmp_path / f"{rank}.safetensors") for rank in (2, 0, 1)])
    assert localization_scores(merged) == localization_scores(whole)
    assert sorted(merged.ids) == sorted(whole.ids)
    assert compare_tables(whole, merged) == (0, 0, 0)
    nothing = scored(data, maps, predictions=predictions, samples=())
    assert localization_scores(merge_tables([nothing, whole])) == localization_scores(whole)


def test_several_processes_give_the_same_table():
    data, maps, _ = small_data(70)
    seen = []
    found = scored(data, maps, processes=2, search="levels", progress=lambda done, total: seen.append((done, total)))
    expected = scored(data, maps)
    assert torch.equal(found.best, expected.best)
    assert torch.equal(found.peak, expected.peak)
    assert found.ids == expected.ids
    assert seen == [(32, 70), (64, 70), (70, 70)]


def test_each_draw_chooses_its_thresholds():
    a = table_of([{0: 0.9}, {100: 0.9}, {0: 0.9}], ids="abc")
    b = table_of([{0: 0.1}, {0: 0.1}, {0: 0.6}], ids="cab")
    value, low, high = compare_tables(a, b, "gt_known", samples=500, seed=3)
    assert value == pytest.approx(2 / 3 - 1 / 3)
    generator, draws = torch.Generator().manual_seed(3), []
    hits_a, hits_b = ([{0}, {100}, {0}], [set(), {0}, set()])  # of images a, b, c
    for _ in range(500):
        drawn = torch.randint(3, (3,), generator=generator).tolist()
        best = [max(sum(t in hits[i] for i in drawn) for t in (0, 100)) / 3 for hits in (hits_a, hits_b)]
        draws.append(best[0] - best[1])
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])))
    assert compare_tables(a, a)[0] == 0


def test_comparison_by_class_predictions():
    a = table_of([{0: 0.9}, {0: 0.9}], correct=[True, True])
    b = table_of([{0: 0.9}, {0: 0.9}], correct=[True, False])
    assert compare_tables(a, b, "top1_cls").value == 0.5
    assert compare_tables(a, b, "top1_loc").value == 0.5
    assert compare_tables(a, b).value == 0


def slow_pixel_ap(scores, truths) -> float:
    """The area under precision over recall, one threshold after the other."""
    s = np.concatenate([s[t != 255] for s, t in zip(scores, truths, strict=True)])
    y = np.concatenate([t[t != 255] for t in truths])
    total, area, recall = (y == 1).sum(), 0.0, 0.0
    for threshold in [2.0, 1.0, *THRESHOLDS[::-1]]:
        found = s >= threshold
        true = (y[found] == 1).sum()
        if found.any():
            area += true / found.sum() * (true / total - recall)
        recall = true / total
    return area


def test_pixel_ap_is_that_of_pooled_pixels():
    random = np.random.default_rng(0)
    scores = [random.random((6, 7)).round(2) for _ in range(5)]
    scores[0].flat[0], scores[1].flat[0] = 0, 1
    truths = [random.choice([0, 1, 255], (6, 7), p=[0.5, 0.4, 0.1]) for _ in range(5)]
    metric, halves = PixelAP(), [PixelAP(), PixelAP()]
    for i, (s, t) in enumerate(zip(scores, truths, strict=True)):
        metric.update(s, t)
        halves[i % 2].update(s, t)
    assert metric.value() == pytest.approx(slow_pixel_ap(scores, truths), rel=1e-12)
    halves[0].merge(halves[1])
    assert halves[0].value() == metric.value()


def test_nan_maps_are_scored_as_empty_ones():
    data, maps, _ = small_data(2)
    found = score_boxes({id: np.full((4, 4), np.nan) for id in maps}.__getitem__, data)
    assert found.peak.tolist() == [0, 0]
    at_corner = [1 if tuple(box[:2]) == (0, 0) else 0 for id in maps for box in data.boxes[id]]
    assert (found.best[:, 0] > 0).any() == any(at_corner)


ONE, KNOWN = table_of([{}], ids=["a"]), table_of([{}], ids=["d"], correct=[True])
ZEROS = np.zeros((1, 2), np.uint8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: compare_tables(ONE, ONE, "top1_loc"), "predicted classes"),
        (lambda: compare_tables(ONE, ONE, "speed"), "unknown measure"),
        (lambda: compare_tables(ONE, table_of([{}], ids=["b"])), "same images"),
        (lambda: compare_tables(ONE, table_of([{}], ids=["a"], contours="largest")), "contours"),
        (lambda: merge_tables([]), "no table"),
        (lambda: merge_tables([ONE, ONE]), "several shards"),
        (lambda: merge_tables([ONE, table_of([{}], ids=["c"], contours="largest")]), "different contours"),
        (lambda: merge_tables([ONE, KNOWN]), "with and without predictions"),
        (lambda: localization_scores(table_of([])), "no image"),
        (lambda: BoxTable(("a",), torch.zeros(1, 254), torch.zeros(1)), "as many rows"),
        (lambda: load_table(Path(__file__)), "cannot read a table"),
        (lambda: PixelAP().update(np.zeros((2, 2)), np.zeros((2, 3))), "differ in shape"),
        (lambda: PixelAP().update(np.full((1, 2), 1.5), ZEROS), "lie in"),
        (lambda: PixelAP().update(np.full((1, 2), np.nan), ZEROS), "lie in"),
        (lambda: PixelAP().update(np.zeros((1, 2)), np.array([[0, 7]])), "a mask must hold"),
        (lambda: PixelAP().value(), "no mask has a pixel"),
        (lambda: PixelAP().merge(PixelAP([0.0, 0.5])), "different thresholds"),
    ],
)
def test_bad_input_raises(call, word):
    with pytest.raises(AdvCAMError, match=word):
        call()


@pytest.mark.parametrize(
    ("changes", "options", "word"),
    [
        ({"boxes": {"001": []}}, {}, "has no box"),
        ({"boxes": {"001": [(0, 0, 13, 2)]}}, {}, "image 001: the box 0, 0, 13, 2 .* 13 x 9"),
        ({"sizes": {"000": None}}, {}, "size of image 000 is not known"),
        ({"maps": {"002": np.zeros((3, 3))}}, {}, "image 002: scores must be of 9 x 13 pixels"),
        ({"samples": ()}, {}, "no images in random all"),
        ({}, {"predictions": {"000": 0, "002": 0}}, "predictions of 1 of 3 images"),
        ({}, {"search": "fast"}, "search must"),
        ({}, {"contours": "one"}, "contours must"),
        ({}, {"search": "union-find", "contours": "largest"}, "union-find finds"),
        ({}, {"processes": 0}, "processes must"),
    ],
)
def test_bad_data_raise_and_name_the_image(changes, options, word):
    data, maps, _ = small_data(3)
    for name, change in changes.items():
        if isinstance(change, dict):
            table = maps if name == "maps" else getattr(data, name)
            table.update(change)
            for id in [id for id in change if change[id] is None]:
                del table[id]
        else:
            setattr(data, name, change)
    with pytest.raises(AdvCAMError, match=word):
        scored(data, maps, **options)
