"""The paper's numbers against a list typed from it by hand, and ours beside them."""

from __future__ import annotations

import math

import pytest

from advcam_attr.metrics.segmentation import Scores
from advcam_attr.tables.segmentation import (
    table_i,
    table_ii,
    table_iii,
    table_iv,
    table_ix,
    table_v,
    table_vi,
    table_xi,
    table_xiii,
    val_and_test,
)
from advcam_attr.types import AdvCAMError

PAPER = {
    "I": """
        PSA: 48.0/–/61.0
        Chang et al.: 50.9/55.3/63.4
        SEAM: 55.4/56.8/63.6
        IRN: 48.8/54.3/66.3
        AdvCAM: 55.6/62.1/69.9
        AdvCAM, masks by PSA: –/–/68.0
        EPS: –/–/71.6
        AdvCAM-Sal: 60.8/66.6/72.3
    """,
    "II": "AdvCAM − IRN: +3.7/+3.1",
    "III": """
        IRN: 63.5/64.8
        AdvCAM: 68.1/68.0
        AdvCAM-Sal: 71.3/71.2
    """,
    "IV": """
        AdvCAM-Sal, Res2Net-101: 72.0/72.7
        AdvCAM-Sal, Res2Net-152: 73.0/72.7
    """,
    "V": """
        IRN: 41.4
        AdvCAM: 44.4
    """,
    "VI": """
        CCT: 73.2/–
        CCT with AdvCAM's masks: 77.8/76.9
    """,
    "XI": """
        last map only: 54.0/64.4/78.2/70.6
        sum over t: 55.6/66.9/77.6/71.9
    """,
    "XIII": """
        CAM: 44.5/61.6/47.6; 11.5/73.0/19.2; 69.3/60.4/63.5
        AdvCAM, T=10, τ=0.5: 46.7/63.8/50.6; 14.8/69.7/23.8; 70.9/63.9/65.6
        AdvCAM, T=20, τ=0.5: 47.1/64.7/51.3; 16.5/67.4/25.4; 70.9/66.0/66.5
        AdvCAM, T=30, τ=0.5: 48.1/63.6/51.6; 18.5/64.9/27.2; 71.4/65.7/66.7
        AdvCAM, T=30, τ=0.4: 48.0/63.6/51.4; 17.1/66.6/26.1; 71.5/64.9/66.3
        AdvCAM, T=30, τ=0.6: 47.7/63.7/51.4; 19.2/64.3/28.1; 71.2/66.1/66.5
    """,
}
TABLES = {
    "I": table_i,
    "II": table_ii,
    "III": table_iii,
    "IV": table_iv,
    "V": table_v,
    "VI": table_vi,
    "XI": table_xi,
    "XIII": table_xiii,
}


def typed(name):
    lines = (line.strip().split(": ", 1) for line in PAPER[name].strip().splitlines())
    return [(method, "paper", *numbers.replace("; ", "/").split("/")) for method, numbers in lines]


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_numbers(name):
    table = TABLES[name]({})
    assert list(table.rows) == typed(name)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.title.startswith(f"Table {name}: ")


def test_columns():
    heads = {name: make({}).columns[2:] for name, make in TABLES.items()}
    assert heads["I"] == ("seed", "+ CRF", "mask")
    assert heads["II"] == ("seed", "mask")
    assert heads["XI"] == ("mIoU", "precision", "recall", "F1")
    assert heads["XIII"] == tuple(f"{size} {m}" for size in ("all", "small", "large") for m in ("P", "R", "F1"))


def test_ours_follow_the_papers_row_and_unknown_methods_last():
    rows = table_i({"mine": (0.5, None, math.nan), "SEAM": (0.51234, 0.6, 0.7)}, source="here, 94 images").rows
    at = [row[:2] for row in rows].index(("SEAM", "paper"))
    assert rows[at + 1] == ("SEAM", "here, 94 images", "51.2", "60.0", "70.0")
    assert rows[-1] == ("mine", "here, 94 images", "50.0", "–", "–")
    assert len(rows) == 8 + 2


def test_the_gain_of_table_ii_is_computed():
    rows = table_ii({"IRN": (0.335, 0.429), "AdvCAM": (0.372, None)}).rows
    assert rows == (
        ("IRN", "here", "33.5", "42.9"),
        ("AdvCAM", "here", "37.2", "–"),
        ("AdvCAM − IRN", "paper", "+3.7", "+3.1"),
        ("AdvCAM − IRN", "here", "+3.7", "–"),
    )
    assert table_ii({"IRN": (0.4, 0.3), "AdvCAM": (0.3, 0.3)}).rows[-1][2:] == ("-10.0", "+0.0")
    assert len(table_ii({"IRN": (0.4, 0.3)}).rows) == 2


def test_each_f1_is_the_tables_own():
    scores = {size: Scores(0.1 + i, 0.2, 0.3, 0.4, 0.5, 0.6) for i, size in enumerate(("all", "small", "large"))}
    assert table_xi({"sum over t": scores["all"]}).rows[-1] == ("sum over t", "here", "10.0", "20.0", "30.0", "40.0")
    assert table_xiii({"CAM": scores}).rows[1][2:] == ("20.0", "30.0", "50.0") * 3


def test_the_mean_of_table_ix_is_over_classes_that_occur():
    table = table_ix({"CAM": (0.9, math.nan, 0.3), "AdvCAM": (None, None, None)}, ("cat", "dog"))
    assert table.columns == ("method", "source", "background", "cat", "dog", "mean")
    assert table.rows == (
        ("CAM", "here", "90.0", "–", "30.0", "60.0"),
        ("AdvCAM", "here", "–", "–", "–", "–"),
    )


def test_layouts():
    table = table_ix({"a|b": (0.9, 0.25)}, ("cat",))
    assert table.markdown().splitlines()[2:5] == [
        "| method | source | background | cat | mean |",
        "|---|---|---:|---:|---:|",
        "| a\\|b | here | 90.0 | 25.0 | 57.5 |",
    ]
    lines = table_i({"IRN": (0.081, None, 0.66)}).text().splitlines()
    assert len({len(line) for line in lines[1:-2]}) == 1, "columns are aligned"


def test_wrong_numbers_of_columns_raise():
    for make, ours in ((table_i, {"IRN": (0.1, 0.2)}), (table_ii, {"IRN": (0.1,)})):
        with pytest.raises(AdvCAMError, match="'IRN' must have a number for each of seed"):
            make(ours)
    with pytest.raises(AdvCAMError, match="a number for each of background, cat, mean: got 4"):
        table_ix({"CAM": (0.1, 0.2, 0.3)}, ("cat",))


@pytest.mark.parametrize(
    ("split", "columns"),
    [
        ("val", (0.5, None)), ("val2014", (0.5, None)), ("lists/val_id.txt", (0.5, None)), ("test", (None, 0.5)),
        ("train", None), ("train_aug", None), ("trainval", None), ("", None),
    ],
)  # fmt: skip
def test_columns_are_of_val_and_test(split, columns):
    assert val_and_test(0.5, split) == columns
