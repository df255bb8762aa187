"""Tables VII, VIII and X: the paper's numbers are consistent, and ours follow those of the same name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advcam_attr.metrics.localization import LocalizationScores
from advcam_attr.tables.localization import table_vii, table_viii, table_x
from advcam_attr.tables.paper import TABLE_VII, TABLE_VIII, TABLE_X
from advcam_attr.types import AdvCAMError

SCORES = LocalizationScores(
    9, "all", (0.3, 0.5, 0.7), (0.931, 0.62, 0.256), (0.1, 0.2, 0.3), 0.6023, 0.62, 0.2, 0.7, 0.5555, 0.2, 0.55
)


@pytest.mark.parametrize("rows", [*TABLE_VII.values(), TABLE_VIII, TABLE_X])
def test_the_papers_means_are_the_means_of_its_numbers(rows):
    for name, numbers in rows.items():
        *boxes, mean = numbers[-4:]
        if mean is not None and None not in boxes:
            assert sum(boxes) / 3 == pytest.approx(mean, abs=0.11), name


def test_climbing_changes_no_prediction_in_the_paper():
    for rows in TABLE_VII.values():
        for name in ("CAM", "CutMix"):
            assert rows[name][0] == rows[f"{name} + AdvCAM"][0]
    assert TABLE_X["no climbing"] == TABLE_VII["CUB-200-2011"]["CutMix"][1:]
    assert TABLE_X["climbing, regularized"] == TABLE_VII["CUB-200-2011"]["CutMix + AdvCAM"][1:]


def test_ours_follow_the_papers():
    table = table_vii({"CAM": SCORES, "ours": replace(SCORES, top1_cls=None, top1_loc=None)}, "ImageNet-1K", "here, 9")
    place = next(i for i, row in enumerate(table.rows) if row[:2] == ("CAM", "here, 9"))
    assert table.rows[place - 1] == ("CAM", "paper", "75.5", "51.9", "83.9", "65.8", "41.5", "63.7")
    assert table.rows[place][2:] == ("70.0", "55.5", "93.1", "62.0", "25.6", "60.2")
    assert table.rows[-1] == ("ours", "here, 9", "–", "–", "93.1", "62.0", "25.6", "60.2")
    assert table_viii({"CutMix": SCORES}).rows[-2][1:] == ("here", "93.1", "62.0", "25.6", "60.2")
    assert table_x({"no climbing": SCORES}).rows[1][2] == "55.5"


def test_measures_of_another_kind_raise():
    with pytest.raises(AdvCAMError, match="Table VII has CUB-200-2011 and ImageNet-1K"):
        table_vii({}, "VOC")
    for other in (replace(SCORES, contours="largest"), replace(SCORES, ious=(0.5,))):
        with pytest.raises(AdvCAMError, match="'x' must be measured with all contours"):
            table_x({"x": other})
