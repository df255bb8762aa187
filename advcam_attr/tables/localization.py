"""The paper's localization tables (VII, VIII and X), with its numbers above ours.

A method with the name of one of the paper's rows is printed right below it; `advcam_attr.tables.paper` has the names.
"""

from __future__ import annotations

from collections.abc import Mapping

from advcam_attr.metrics.localization import IOUS, LocalizationScores
from advcam_attr.tables.paper import TABLE_VII, TABLE_VIII, TABLE_X
from advcam_attr.tables.table import HERE, Share, Table, beside
from advcam_attr.types import AdvCAMError

_BOXES = ("IoU 0.3", "IoU 0.5", "IoU 0.7", "mean")
_BEST_THRESHOLD = "MaxBoxAcc is at the threshold that is best on these very images, for each IoU, as in the paper."
_TOP_1 = "Top-1 Loc is at its own best threshold; the paper does not say which one it takes."


def table_vii(ours: Mapping[str, LocalizationScores], data: str = "CUB-200-2011", source: str = HERE) -> Table:
    """Return Table VII: localization by ResNet-50 on one of its two data sets.

    Args:
        ours: measures of all contours by method.
        data: ``"CUB-200-2011"`` or ``"ImageNet-1K"``.
        source: of our rows, e.g. ``"here, 6 species"`` for other data than the paper's.
    """
    if data not in TABLE_VII:
        raise AdvCAMError(f"Table VII has {' and '.join(TABLE_VII)}, and not {data!r}")
    return beside(
        f"Table VII: localization by ResNet-50 on {data}, %",
        ("Top-1 Cls", "Top-1 Loc", *_BOXES),
        {name: (s.top1_cls, s.top1_loc, *_boxes(name, s)) for name, s in ours.items()},
        TABLE_VII[data],
        source,
        (_BEST_THRESHOLD, _TOP_1),
    )


def table_viii(ours: Mapping[str, LocalizationScores], source: str = HERE) -> Table:
    """Return Table VIII: localization by Inception-V3 on CUB-200-2011; see `table_vii`."""
    return beside(
        "Table VIII: localization by Inception-V3 on CUB-200-2011, %",
        _BOXES,
        {name: _boxes(name, s) for name, s in ours.items()},
        TABLE_VIII,
        source,
        (_BEST_THRESHOLD,),
    )


def table_x(ours: Mapping[str, LocalizationScores], source: str = HERE) -> Table:
    """Return Table X: the effect of climbing and its regularization, with CutMix and ResNet-50 on CUB-200-2011.

    Methods are ``"no climbing"``, ``"climbing"``, ``"climbing, regularized"``, or others; see `table_vii`.
    """
    return beside(
        "Table X: climbing and regularization, CutMix, ResNet-50, CUB-200-2011, %",
        ("Top-1 Loc", *_BOXES),
        {name: (s.top1_loc, *_boxes(name, s)) for name, s in ours.items()},
        TABLE_X,
        source,
        (_BEST_THRESHOLD, _TOP_1),
    )


def _boxes(name: str, scores: LocalizationScores) -> tuple[Share, ...]:
    if scores.contours != "all" or scores.ious != IOUS:
        raise AdvCAMError(
            f"{name!r} must be measured with all contours at IoU {IOUS}: got {scores.contours}, {scores.ious}"
        )
    return *scores.max_box_acc, scores.max_box_acc_v2
