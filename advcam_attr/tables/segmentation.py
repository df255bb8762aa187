"""The paper's segmentation tables (I to VI, IX, XI, XIII), with its numbers above ours.

A method with the name of one of the paper's rows is printed right below it; `advcam_attr.tables.paper` has the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from advcam_attr.metrics.evaluation import SIZE_GROUPS
from advcam_attr.metrics.segmentation import Scores
from advcam_attr.tables.paper import (
    TABLE_I,
    TABLE_II_GAIN,
    TABLE_III,
    TABLE_IV,
    TABLE_V,
    TABLE_VI,
    TABLE_XI,
    TABLE_XIII,
)
from advcam_attr.tables.table import HERE, PAPER, Share, Table, beside, percent

_SPLITS = ("val", "test")
_BEST_THRESHOLD = (
    "Seeds are at the threshold that is best on the masks they are scored on, as in the paper, unless noted."
)


def table_i(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table I: mean IoU on PASCAL VOC train of seeds, of seeds after a CRF, and of pseudo masks.

    Args:
        ours: three shares a method, None for what was not made.
        source: of our rows, e.g. ``"here, 94 images"`` for other data than the paper's.

    Example:
        >>> print(*table_i({"IRN": (0.481, None, 0.66)}).text().splitlines()[5:8], sep="\\n")
        IRN                   paper   48.8   54.3  66.3
        IRN                   here    48.1      –  66.0
        AdvCAM                paper   55.6   62.1  69.9
    """
    notes = (_BEST_THRESHOLD, "Masks are scored before ambiguous pixels are left out.")
    return beside("Table I: mean IoU on PASCAL VOC train, %", ("seed", "+ CRF", "mask"), ours, TABLE_I, source, notes)


def table_ii(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table II: mean IoU on MS COCO train of seeds and pseudo masks, and AdvCAM's gain over IRN.

    The gain is of ``"AdvCAM"`` over ``"IRN"``, where both are given.
    """
    table = beside("Table II: mean IoU on MS COCO train, %", ("seed", "mask"), ours, {}, source, (_BEST_THRESHOLD,))
    rows = [*table.rows, ("AdvCAM − IRN", PAPER, *(f"{gain:+.1f}" for gain in TABLE_II_GAIN))]
    if {"AdvCAM", "IRN"} <= ours.keys():
        pairs = zip(ours["AdvCAM"], ours["IRN"], strict=True)
        gains = (None if a is None or b is None else a - b for a, b in pairs)
        rows.append(("AdvCAM − IRN", source, *(percent(gain, "+.1f") for gain in gains)))
    return replace(table, rows=tuple(rows))


def table_iii(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table III: mean IoU on PASCAL VOC val and test of a net trained on pseudo masks."""
    return beside("Table III: mean IoU on PASCAL VOC by a segmentation net, %", _SPLITS, ours, TABLE_III, source)


def table_iv(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table IV: Table III by Res2Net backbones, e.g. ``"AdvCAM-Sal, Res2Net-101"``."""
    title = "Table IV: mean IoU on PASCAL VOC by a segmentation net with Res2Net, %"
    return beside(title, _SPLITS, ours, TABLE_IV, source)


def table_v(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table V: mean IoU on MS COCO val of a net trained on pseudo masks."""
    return beside("Table V: mean IoU on MS COCO val by a segmentation net, %", ("val",), ours, TABLE_V, source)


def table_vi(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return Table VI: mean IoU on PASCAL VOC val and test of semi-supervised nets."""
    title = "Table VI: mean IoU on PASCAL VOC of semi-supervised nets, %"
    note = "The paper: 1464 images with true masks, 9118 without; CCT's own row has pseudo masks of its own."
    return beside(title, _SPLITS, ours, TABLE_VI, source, (note,))


def val_and_test(share: Share, split: str) -> tuple[Share, Share] | None:
    """Return the columns that a share of a split, given by its name or its list's path, fills; None of other splits."""
    name = PurePath(split).stem
    if name.startswith("val"):
        return share, None
    return (None, share) if name.startswith("test") else None


def table_ix(ours: Mapping[str, Sequence[Share]], classes: Sequence[str], source: str = HERE) -> Table:
    """Return Table IX: IoU of the background and each class, and their mean; the paper's numbers are not available.

    ``classes`` are without the background.
    """
    with_means = {}
    for name, shares in ours.items():
        occurring = [share for share in shares if share is not None and not math.isnan(share)]
        with_means[name] = (*shares, sum(occurring) / len(occurring) if occurring else None)
    note = "Classes that do not occur are left out of the mean."
    return beside("Table IX: IoU of each class, %", ("background", *classes, "mean"), with_means, {}, source, (note,))


def table_instances(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Return average precision of instance masks: the mean over IoU 0.5 to 0.95, at 0.5, and at 0.7."""
    note = "COCO's average precision, mean over the classes that occur."
    return beside("Instance masks: average precision, %", ("AP", "AP50", "AP70"), ours, {}, source, (note,))


def table_xi(ours: Mapping[str, Scores], source: str = HERE) -> Table:
    """Return Table XI: mean IoU, precision, recall and F1 of designs of the final map, on PASCAL VOC train."""
    return beside(
        "Table XI: design of the final map, seeds on PASCAL VOC train, %",
        ("mIoU", "precision", "recall", "F1"),
        {name: (s.mean_iou, s.precision, s.recall, s.f1_of_means) for name, s in ours.items()},
        TABLE_XI,
        source,
        (
            _BEST_THRESHOLD,
            "F1 is the harmonic mean of mean precision and mean recall; means are over all classes that occur.",
        ),
    )


def table_xiii(ours: Mapping[str, Mapping[str, Scores]], source: str = HERE) -> Table:
    """Return Table XIII: precision, recall and F1 of all classes, the ten smallest and the ten largest, on COCO train.

    ``ours`` has `advcam_attr.metrics.evaluation.MaskEvaluation.by_size` for each method.
    """
    return beside(
        "Table XIII: seeds on MS COCO train, all classes, the 10 smallest, the 10 largest, %",
        tuple(f"{size} {measure}" for size in SIZE_GROUPS for measure in ("P", "R", "F1")),
        {
            name: [value for size in SIZE_GROUPS for value in (s[size].precision, s[size].recall, s[size].mean_f1)]
            for name, s in ours.items()
        },
        TABLE_XIII,
        source,
        (
            _BEST_THRESHOLD,
            "F1 is the mean of the classes' F1. Size is the mean number of pixels of a class in images that show it.",
        ),
    )
