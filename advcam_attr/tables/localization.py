"""Measures of localization in; the paper's Tables VII, VIII and X, with its numbers above ours, out.

Measures are shares of 1, as `advcam_attr.metrics.localization` gives them, and are printed in percent. A method that
bears the name of one of the paper's rows stands right below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from advcam_attr.metrics.localization import IOUS, LocalizationScores
from advcam_attr.tables.paper import Numbers
from advcam_attr.tables.segmentation import HERE, Share, Table, beside
from advcam_attr.types import AdvCAMError

#: Table VII, ResNet-50: Top-1 Cls, Top-1 Loc, MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean, MaxBoxAccV2. Source:
#: Lee et al., TPAMI 2022, which takes the rows down to Babar and Das from earlier papers.
TABLE_VII: Mapping[str, Mapping[str, Numbers]] = MappingProxyType(
    {
        "CUB-200-2011": MappingProxyType(
            {
                "HaS": (69.7, None, 93.1, 72.2, 28.6, 64.6),
                "ACoL": (71.1, None, 97.0, 77.3, 25.0, 66.4),
                "SPG": (50.5, None, 92.2, 68.2, 20.8, 60.4),
                "ADL": (66.6, None, 91.8, 64.8, 18.4, 58.3),
                "Ki et al.": (80.4, 56.1, 96.2, 72.8, 20.6, 63.2),
                "Bae et al.": (75.0, 59.5, None, 77.6, None, None),
                "I2C": (None, 56.0, None, 72.6, None, None),
                "DGL": (None, 60.8, None, 74.7, None, None),
                "Babar and Das": (77.3, 64.7, None, 77.4, None, None),
                "CAM": (77.6, 58.0, 95.3, 71.5, 19.0, 61.9),
                "CAM + AdvCAM": (77.6, 63.7, 97.8, 80.5, 27.4, 68.6),
                "CutMix": (78.3, 57.6, 93.1, 70.8, 23.4, 62.4),
                "CutMix + AdvCAM": (78.3, 64.9, 97.3, 80.7, 32.5, 70.2),
            }
        ),
        "ImageNet-1K": MappingProxyType(
            {
                "HaS": (75.4, None, 83.7, 63.2, 41.3, 62.7),
                "ACoL": (73.1, None, 83.5, 64.4, 39.0, 62.3),
                "SPG": (73.3, None, 83.9, 65.4, 40.6, 63.3),
                "ADL": (71.2, None, 83.6, 65.6, 41.8, 63.7),
                "Ki et al.": (71.3, 48.4, 84.3, 67.6, 43.6, 65.2),
                "Bae et al.": (75.8, 49.4, None, 62.2, None, None),
                "I2C": (76.7, 54.8, None, 68.5, None, None),
                "DGL": (None, 53.4, None, 66.5, None, None),
                "Babar and Das": (None, 52.4, None, 67.9, None, None),
                "CAM": (75.5, 51.9, 83.9, 65.8, 41.5, 63.7),
                "CAM + AdvCAM": (75.5, 55.0, 86.5, 70.3, 47.4, 68.1),
                "CutMix": (77.9, 52.8, 84.6, 65.4, 41.6, 63.9),
                "CutMix + AdvCAM": (77.9, 54.8, 86.2, 68.4, 45.5, 66.7),
            }
        ),
    }
)

#: Table VIII, Inception-V3 on CUB-200-2011: MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean.
TABLE_VIII: Mapping[str, Numbers] = MappingProxyType(
    {
        "ADL": (93.8, 65.8, 16.9, 58.8),
        "DGL": (None, 67.6, None, None),
        "Ki et al.": (95.9, 67.9, 17.2, 60.3),
        "Bae et al.": (None, 70.0, None, None),
        "CALM": (None, None, None, 60.3),
        "IVR": (None, None, None, 61.7),
        "CutMix": (91.4, 62.2, 18.0, 57.2),
        "CutMix + AdvCAM": (95.5, 72.4, 28.2, 65.4),
    }
)

#: Table X, CutMix with ResNet-50 on CUB-200-2011: Top-1 Loc, MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean.
TABLE_X: Mapping[str, Numbers] = MappingProxyType(
    {
        "no climbing": (57.6, 93.1, 70.8, 23.4, 62.4),
        "climbing": (62.5, 98.0, 78.2, 26.4, 67.6),
        "climbing, regularized": (64.9, 97.3, 80.7, 32.5, 70.2),
    }
)

_BOXES = ("IoU 0.3", "IoU 0.5", "IoU 0.7", "mean")
_CHOSEN = "MaxBoxAcc is at the threshold that is best on the very images, for each IoU apart, as in the paper."
_TOP_1 = "Top-1 Loc is at its own best threshold; which one the paper takes is not told."


def table_vii(ours: Mapping[str, LocalizationScores], data: str = "CUB-200-2011", source: str = HERE) -> Table:
    """Table VII: localization by ResNet-50 on one of its two data sets.

    Args:
        ours: measures of all contours by method; the names of the paper's rows are those of `TABLE_VII`.
        data: ``"CUB-200-2011"`` or ``"ImageNet-1K"``.
        source: what our rows are called, e.g. ``"here, 6 species"`` where they are of other data than the paper's.

    Raises:
        AdvCAMError: another data set; measures of single contours, or at other overlaps.
    """
    if data not in TABLE_VII:
        raise AdvCAMError(f"Table VII has {' and '.join(TABLE_VII)}, and not {data!r}")
    return beside(
        f"Table VII: localization by ResNet-50 on {data}, %",
        ("Top-1 Cls", "Top-1 Loc", *_BOXES),
        {name: (s.top1_cls, s.top1_loc, *_boxes(name, s)) for name, s in ours.items()},
        TABLE_VII[data],
        source,
        (_CHOSEN, _TOP_1),
    )


def table_viii(ours: Mapping[str, LocalizationScores], source: str = HERE) -> Table:
    """Table VIII: localization by Inception-V3 on CUB-200-2011.

    Args:
        ours: measures of all contours by method.
        source: see `table_vii`.
    """
    return beside(
        "Table VIII: localization by Inception-V3 on CUB-200-2011, %",
        _BOXES,
        {name: _boxes(name, s) for name, s in ours.items()},
        TABLE_VIII,
        source,
        (_CHOSEN,),
    )


def table_x(ours: Mapping[str, LocalizationScores], source: str = HERE) -> Table:
    """Table X: what climbing and its regularization do, with CutMix and ResNet-50 on CUB-200-2011.

    Args:
        ours: measures of all contours, by ``"no climbing"``, ``"climbing"``, ``"climbing, regularized"``, or others.
        source: see `table_vii`.

    Example:
        >>> scores = LocalizationScores(
        ...     9, "all", (0.3, 0.5, 0.7), (0.9, 0.6, 0.3), (0.1, 0.1, 0.1), 0.6, 0.6, 0.1, 0.7, 0.5, 0.1, 0.5
        ... )
        >>> print(*table_x({"climbing": scores}).text().splitlines()[1:5], sep="\\n")
        method                 source  Top-1 Loc  IoU 0.3  IoU 0.5  IoU 0.7  mean
        no climbing            paper        57.6     93.1     70.8     23.4  62.4
        climbing               paper        62.5     98.0     78.2     26.4  67.6
        climbing               here         50.0     90.0     60.0     30.0  60.0
    """
    return beside(
        "Table X: climbing and regularization, CutMix, ResNet-50, CUB-200-2011, %",
        ("Top-1 Loc", *_BOXES),
        {name: (s.top1_loc, *_boxes(name, s)) for name, s in ours.items()},
        TABLE_X,
        source,
        (_CHOSEN, _TOP_1),
    )


def _boxes(name: str, scores: LocalizationScores) -> tuple[Share, ...]:
    if scores.contours != "all" or scores.ious != IOUS:
        raise AdvCAMError(
            f"{name!r} must be measured with all contours at IoU {IOUS}: got {scores.contours}, {scores.ious}"
        )
    return *scores.max_box_acc, scores.max_box_acc_v2
