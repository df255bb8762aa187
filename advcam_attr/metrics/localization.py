"""Localization measures (MaxBoxAcc, GT-known Loc, Top-1 Loc, PxAP) of a table of best overlaps.

The table of each image's best overlap at every grey level is the whole state: tables of shards or ranks merge in any
order. Protocol: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020). One
threshold holds for all images, for each measure the best one *on these very images*: scores are upper bounds.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advcam_attr.metrics.bootstrap import Interval, paired_bootstrap, paired_order
from advcam_attr.metrics.box_sweep import LEVELS
from advcam_attr.types import VOID, AdvCAMError

#: The overlaps at which a box counts as correct (MaxBoxAccV2 is the mean over them).
IOUS = (0.3, 0.5, 0.7)

#: The overlap of GT-known Loc and Top-1 Loc.
LOC_IOU = 0.5

#: The thresholds on maps, as shares of their highest value.
MAP_THRESHOLDS: tuple[float, ...] = tuple(np.arange(0, 1, 0.001).tolist())

#: Which contours are boxed: every one (MaxBoxAccV2), or the one of the largest area (MaxBoxAcc).
Contours = Literal["all", "largest"]

#: The measures of `compare_tables`.
Measure = Literal["max_box_acc", "max_box_acc_v2", "gt_known", "top1_cls", "top1_loc"]


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of N images, scored at every level.

    Attributes:
        ids: the images.
        best: the best IoU of any box with any true one at each level, ``(N, 255)`` float64.
        peak: the highest grey level of each map, ``(N,)`` uint8: 255 of normalised maps, 0 of empty ones.
        correct: whether the image's class was predicted, ``(N,)`` bool; None if unknown.
        contours: which contours were boxed.
    """

    ids: tuple[str, ...]
    best: Tensor
    peak: Tensor
    correct: Tensor | None = None
    contours: Contours = "all"

    def __post_init__(self) -> None:
        count = len(self.ids)
        shapes = [tuple(t.shape) for t in (self.best, self.peak, self.correct) if t is not None]
        if shapes != [(count, LEVELS), (count,), (count,)][: len(shapes)]:
            raise AdvCAMError(f"a table of {count} images must have as many rows of {LEVELS} levels, got {shapes}")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Sequence[int]) -> BoxTable:
        index = torch.as_tensor(places, dtype=torch.long)
        correct = None if self.correct is None else self.correct[index]
        return BoxTable(
            tuple(self.ids[place] for place in places), self.best[index], self.peak[index], correct, self.contours
        )


@dataclass(frozen=True)
class LocalizationScores:
    """The measures of the paper's localization tables, as shares of 1; None without predicted classes.

    Each threshold is the lowest that reaches its measure. The paper does not say which Top-1 Loc it reports; the first
    is the common extension of the released evaluation.

    Attributes:
        ious: the overlaps at which a box counts as correct.
        max_box_acc: the share of images with a correct box, at the best threshold of each overlap.
        max_box_acc_v2: the mean of ``max_box_acc``.
        gt_known: the same share at IoU 0.5 alone.
        top1_cls: the share of images whose class was predicted.
        top1_loc: the share of images with both (IoU 0.5), at its own best threshold.
        top1_loc_at_gt_known: the same share at ``gt_known_threshold``.
    """

    images: int
    contours: Contours
    ious: tuple[float, ...]
    max_box_acc: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_box_acc_v2: float
    gt_known: float
    gt_known_threshold: float
    top1_cls: float | None = None
    top1_loc: float | None = None
    top1_loc_threshold: float | None = None
    top1_loc_at_gt_known: float | None = None


def levels_at(peak: int, thresholds: Sequence[float] = MAP_THRESHOLDS) -> np.ndarray:
    """Return the grey level that a map must exceed at each threshold: ``int(threshold * peak)``, in floating point."""
    return (np.asarray(thresholds) * peak).astype(np.int64)


def box_hits(table: BoxTable, ious: Sequence[float] = IOUS) -> tuple[Tensor, tuple[float, ...]]:
    """Return which images have a correct box, ``(N, D, T)`` bool, and the T thresholds that differ on these images.

    D overlaps are compared as ``IoU >= overlap``; each threshold is the lowest of those with equal hits. T is 255 where
    every map's peak is 255 or 0.
    """
    if not len(table):
        raise AdvCAMError("no image was scored: a table without rows has no measures")
    peaks, group = torch.unique(table.peak, return_inverse=True)
    levels = np.stack([levels_at(int(peak)) for peak in peaks])
    first = np.flatnonzero(np.append(True, (np.diff(levels, axis=1) != 0).any(0)))
    hits = torch.empty(len(table), len(ious), len(first), dtype=torch.bool)
    for place, columns in enumerate(torch.from_numpy(levels[:, first])):
        rows = (group == place).nonzero()[:, 0]
        for d, iou in enumerate(ious):
            hits[rows, d] = (table.best[rows] >= iou)[:, columns]
    return hits, tuple(MAP_THRESHOLDS[i] for i in first)


def localization_scores(table: BoxTable, ious: Sequence[float] = IOUS) -> LocalizationScores:
    """Return all measures of a table.

    Example:
        >>> best = torch.zeros(2, 255, dtype=torch.float64)
        >>> best[0, 9], best[1, 5] = 0.6, 0.4
        >>> table = BoxTable(("a", "b"), best, torch.tensor([255, 255]), correct=torch.tensor([True, False]))
        >>> scores = localization_scores(table)
        >>> scores.max_box_acc, scores.gt_known, scores.top1_cls, scores.top1_loc
        ((0.5, 0.5, 0.0), 0.5, 0.5, 0.5)
    """
    hits, thresholds = box_hits(table, (*ious, LOC_IOU))
    accuracy, place = _best(hits)
    scores = LocalizationScores(
        images=len(table),
        contours=table.contours,
        ious=tuple(ious),
        max_box_acc=tuple(accuracy[:-1]),
        thresholds=tuple(thresholds[i] for i in place[:-1]),
        max_box_acc_v2=sum(accuracy[:-1]) / len(ious),
        gt_known=accuracy[-1],
        gt_known_threshold=thresholds[place[-1]],
    )
    if table.correct is None:
        return scores
    located = hits[:, -1:] & table.correct[:, None, None]
    (top1,), (own,) = _best(located)
    return dataclasses.replace(
        scores,
        top1_cls=float(table.correct.double().mean()),
        top1_loc=top1,
        top1_loc_threshold=thresholds[own],
        top1_loc_at_gt_known=float(located[:, 0, place[-1]].double().mean()),
    )


def _best(hits: Tensor) -> tuple[list[float], list[int]]:
    """The best share of images over thresholds, and its first place, for each overlap of ``(N, D, T)``."""
    counts = hits.sum(0).numpy()
    return (counts.max(1) / len(hits)).tolist(), counts.argmax(1).tolist()


def merge_tables(parts: Sequence[BoxTable]) -> BoxTable:
    """Return the table of all images from those of shards or ranks, in any order."""
    if not parts:
        raise AdvCAMError("there is no table to merge")
    if len({(part.contours, part.correct is None) for part in parts}) > 1:
        raise AdvCAMError("cannot merge tables of different contours, or with and without predictions")
    ids = tuple(id for part in parts for id in part.ids)
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise AdvCAMError(f"{len(twice)} images were scored by several shards, e.g. {twice[0]}")
    correct = [part.correct for part in parts if part.correct is not None]
    best, peak = torch.cat([part.best for part in parts]), torch.cat([part.peak for part in parts])
    return BoxTable(ids, best, peak, torch.cat(correct) if correct else None, parts[0].contours)


def compare_tables(a: BoxTable, b: BoxTable, measure: Measure = "max_box_acc_v2", **options: Any) -> Interval:
    """Return how much higher a measure of a is than that of b, with its bootstrap interval over images.

    The images are the same in any order; options are those of `advcam_attr.metrics.bootstrap.paired_bootstrap`. Each
    draw chooses its best thresholds, of a and of b and for each overlap, in up to 6 kB an image and table.
    ``"max_box_acc"`` and ``"gt_known"`` are both at IoU 0.5.
    """
    other = b.select(paired_order(a.ids, b.ids))
    if a.contours != b.contours:
        raise AdvCAMError(f"cannot compare boxes of {a.contours} with those of {b.contours} contours")
    return paired_bootstrap(
        measure_counts(a, measure), measure_counts(other, measure), lambda pool: best_share(pool) / len(a), **options
    )


def measure_counts(table: BoxTable, measure: Measure) -> Tensor:
    """Return the hits of each image for a measure, ``(N, D, T)`` bool: `best_share` of their sums, over N, is it."""
    if measure == "max_box_acc_v2":
        return box_hits(table)[0]
    if measure in ("max_box_acc", "gt_known"):
        return box_hits(table, (LOC_IOU,))[0]
    if measure not in ("top1_cls", "top1_loc"):
        raise AdvCAMError(
            f"unknown measure {measure!r}: there are max_box_acc, max_box_acc_v2, gt_known, top1_cls, top1_loc"
        )
    if table.correct is None:
        raise AdvCAMError(f"{measure} needs predicted classes, and this table has none")
    correct = table.correct[:, None, None]
    return correct if measure == "top1_cls" else box_hits(table, (LOC_IOU,))[0] & correct


def best_share(pooled: Tensor) -> Tensor:
    """Return the highest count over thresholds, averaged over overlaps: ``(..., D, T)`` to ``(...)``."""
    return pooled.amax(-1).mean(-1)


def table_state(table: BoxTable) -> dict[str, Tensor]:
    state = {"best": table.best, "peak": table.peak}
    return state if table.correct is None else {**state, "correct": table.correct}


def table_of_state(ids: Sequence[str], contours: Contours, state: Mapping[str, Tensor]) -> BoxTable:
    return BoxTable(tuple(ids), state["best"], state["peak"], state.get("correct"), contours)


class PixelAP:
    """Accumulate score maps and masks into PxAP, the pixel average precision.

    Scores between two of the ascending thresholds, from 0 to below 1, are equal.

    Example:
        >>> metric = PixelAP()
        >>> metric.update(np.array([[0.9, 0.2, 0.1]]), np.array([[1, 0, 255]]))
        >>> metric.update(np.array([[0.2, 0.9]]), np.array([[1, 0]]))
        >>> metric.value()
        0.5
    """

    def __init__(self, thresholds: Sequence[float] = MAP_THRESHOLDS) -> None:
        self._edges = np.append(thresholds, [1.0, 2.0, 3.0])
        #: Pixels by true foreground (0, 1) and interval of scores, ``(2, T + 2)`` int64.
        self.counts = np.zeros((2, len(self._edges) - 1), np.int64)

    def update(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """Add scores ``(H, W)`` in [0, 1] and their truth ``(H, W)``: 1 the object, 0 the background, 255 ignored."""
        if scores.shape != truth.shape:
            raise AdvCAMError(f"scores {scores.shape} and their mask {truth.shape} differ in shape")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise AdvCAMError("scores must lie in [0, 1]")
        if not np.isin(truth, (0, 1, VOID)).all():
            raise AdvCAMError(f"a mask must hold 0, 1 and {VOID} only, got {np.unique(truth).tolist()[:5]}")
        for value in (0, 1):
            self.counts[value] += np.histogram(scores[truth == value], self._edges)[0]

    def merge(self, other: PixelAP) -> None:
        if not np.array_equal(self._edges, other._edges):
            raise AdvCAMError("cannot merge pixel counts of different thresholds")
        self.counts += other.counts

    def value(self) -> float:
        """Return AP = Σ precision_k (recall_k − recall_{k−1}) from the highest interval on, a share of 1."""
        false, true = self.counts[:, ::-1].cumsum(1)
        if not true[-1]:
            raise AdvCAMError("no mask has a pixel of an object: there is no average precision")
        precision = true / np.maximum(true + false, 1)
        return float((precision[1:] * np.diff(true / true[-1])).sum())
