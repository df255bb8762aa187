"""Scores of seeds and masks in; the paper's segmentation tables, with its numbers above ours, out.

Scores are shares of 1, as the metrics give them, and are printed in percent; what there is no number for is a dash. A
method that bears the name of one of the paper's rows stands right below it; `advcam_attr.tables.paper` has the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    Numbers,
)
from advcam_attr.types import AdvCAMError

#: A share of 1, or nothing.
Share = float | None

#: The paper's rows and ours, unless these are to be called after their data.
PAPER, HERE = "paper", "here"

_DASH = "–"
_SPLITS = ("val", "test")
_CHOSEN = "Seeds are cut at the threshold that is best on the masks they are scored on, as in the paper, unless said."


@dataclass(frozen=True)
class Table:
    """A table to print.

    Attributes:
        title: what it is.
        columns: their heads.
        rows: one cell a column.
        notes: sentences below it.
        words: how many columns, from the left, are names; the others are numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 2

    def markdown(self) -> str:
        """As Markdown: title, table, notes.

        Example:
            >>> print(Table("Sizes", ("name", "size"), (("cat", "3"),), words=1).markdown())
            **Sizes**
            <BLANKLINE>
            | name | size |
            |---|---:|
            | cat | 3 |
        """
        lines = [self.columns, *self.rows]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        body.insert(1, "|" + "---|" * self.words + "---:|" * (len(self.columns) - self.words))
        return "\n".join([f"**{self.title}**", "", *body, *(f"\n{note}" for note in self.notes)])

    def text(self) -> str:
        """As plain text in aligned columns, numbers to the right.

        Example:
            >>> print(Table("Sizes", ("name", "size"), (("cat", "3"),), words=1).text())
            Sizes
            name  size
            cat      3
        """
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = [
            "  ".join(
                cell.ljust(width) if i < self.words else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *body, *self.notes])

    def describe(self) -> dict[str, Any]:
        """As JSON has it: numbers as they are printed, null where there is none.

        Example:
            >>> Table("Sizes", ("name", "size"), (("cat", "3.5"), ("dog", "–")), words=1).describe()["rows"]
            [['cat', 3.5], ['dog', None]]
        """
        rows = [[*row[: self.words], *(None if cell == _DASH else float(cell) for cell in row[self.words :])]
                for row in self.rows]  # fmt: skip
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def table_i(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table I: mean IoU on PASCAL VOC train of seeds, of seeds after a CRF, and of pseudo masks.

    Args:
        ours: three shares a method, None for what was not made.
        source: what our rows are called, e.g. ``"here, 94 images"`` where they are of other data than the paper's.

    Raises:
        AdvCAMError: a method has more or fewer numbers than there are columns.

    Example:
        >>> print(*table_i({"IRN": (0.481, None, 0.66)}).text().splitlines()[5:8], sep="\\n")
        IRN                   paper   48.8   54.3  66.3
        IRN                   here    48.1      –  66.0
        AdvCAM                paper   55.6   62.1  69.9
    """
    return beside(
        "Table I: mean IoU on PASCAL VOC train, %",
        ("seed", "+ CRF", "mask"),
        ours,
        TABLE_I,
        source,
        (_CHOSEN, "Masks are measured before ambiguous pixels are left out."),
    )


def table_ii(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table II: mean IoU on MS COCO train of seeds and pseudo masks, and AdvCAM's gain over IRN.

    Args:
        ours: two shares a method; the gain is of ``"AdvCAM"`` over ``"IRN"``, where both are given.
        source: see `table_i`.

    Example:
        >>> print(*table_ii({"IRN": (0.335, 0.43), "AdvCAM": (0.37, None)}).text().splitlines()[-3:-1], sep="\\n")
        AdvCAM − IRN  paper   +3.7  +3.1
        AdvCAM − IRN  here    +3.5     –
    """
    columns = ("seed", "mask")
    rows = [(name, source, *map(_percent, _checked(name, shares, columns))) for name, shares in ours.items()]
    rows.append(("AdvCAM − IRN", PAPER, *(f"{gain:+.1f}" for gain in TABLE_II_GAIN)))
    if {"AdvCAM", "IRN"} <= ours.keys():
        pairs = zip(ours["AdvCAM"], ours["IRN"], strict=True)
        gains = (None if a is None or b is None else a - b for a, b in pairs)
        rows.append(("AdvCAM − IRN", source, *(_percent(gain, "+.1f") for gain in gains)))
    return Table("Table II: mean IoU on MS COCO train, %", ("method", "source", *columns), tuple(rows), (_CHOSEN,))


def table_iii(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table III: mean IoU on PASCAL VOC val and test of a segmentation net that has learnt from pseudo masks.

    Args:
        ours: two shares a method. VOC's test masks are its server's alone.
        source: see `table_i`.

    Example:
        >>> print(*table_iii({"AdvCAM": (0.675, None)}).text().splitlines()[3:5], sep="\\n")
        AdvCAM      paper   68.1  68.0
        AdvCAM      here    67.5     –
    """
    return beside("Table III: mean IoU on PASCAL VOC by a segmentation net, %", _SPLITS, ours, TABLE_III, source, ())


def table_iv(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table IV: Table III with Res2Net as backbone; the paper has masks with saliency alone.

    Args:
        ours: two shares a method and backbone, e.g. ``"AdvCAM-Sal, Res2Net-101"``.
        source: see `table_i`.
    """
    title = "Table IV: mean IoU on PASCAL VOC by a segmentation net with Res2Net, %"
    return beside(title, _SPLITS, ours, TABLE_IV, source, ())


def table_v(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table V: mean IoU on MS COCO val of a segmentation net that has learnt from pseudo masks.

    Args:
        ours: a share a method.
        source: see `table_i`.
    """
    return beside("Table V: mean IoU on MS COCO val by a segmentation net, %", ("val",), ours, TABLE_V, source, ())


def table_vi(ours: Mapping[str, Sequence[Share]], source: str = HERE) -> Table:
    """Table VI: mean IoU on PASCAL VOC val and test of semi-supervised nets.

    Args:
        ours: two shares a method.
        source: see `table_i`.
    """
    return beside(
        "Table VI: mean IoU on PASCAL VOC of semi-supervised nets, %", _SPLITS, ours, TABLE_VI, source,
        ("The paper: 1464 images with true masks, 9118 without; CCT's own row has pseudo masks of its own.",),
    )  # fmt: skip


def table_ix(ours: Mapping[str, Sequence[Share]], classes: Sequence[str], source: str = HERE) -> Table:
    """Table IX: IoU of each class, and their mean. The paper's numbers are not at hand.

    Args:
        ours: for each method, the IoU of the background and of each class.
        classes: their names, without the background.
        source: see `table_i`.

    Example:
        >>> print(table_ix({"AdvCAM": (0.9, 0.5, float("nan"))}, ["cat", "dog"]).text())
        Table IX: IoU of each class, %
        method  source  background   cat  dog  mean
        AdvCAM  here          90.0  50.0    –  70.0
        Classes that do not occur count for nothing in the mean.
    """
    columns = ("background", *classes, "mean")
    rows = []
    for name, shares in ours.items():
        known = [share for share in shares if share is not None and not math.isnan(share)]
        mean = sum(known) / len(known) if known else None
        rows.append((name, source, *map(_percent, _checked(name, [*shares, mean], columns))))
    note = "Classes that do not occur count for nothing in the mean."
    return Table("Table IX: IoU of each class, %", ("method", "source", *columns), tuple(rows), (note,))


def table_xi(ours: Mapping[str, Scores], source: str = HERE) -> Table:
    """Table XI: mean IoU, precision, recall and F1 of designs of the final map, on PASCAL VOC train.

    Args:
        ours: scores of all classes by design.
        source: see `table_i`.
    """
    return beside(
        "Table XI: design of the final map, seeds on PASCAL VOC train, %",
        ("mIoU", "precision", "recall", "F1"),
        {name: (s.mean_iou, s.precision, s.recall, s.f1_of_means) for name, s in ours.items()},
        TABLE_XI,
        source,
        (_CHOSEN, "F1 is the harmonic mean of mean precision and mean recall; means are over all classes that occur."),
    )


def table_xiii(ours: Mapping[str, Mapping[str, Scores]], source: str = HERE) -> Table:
    """Table XIII: precision, recall and F1 of all classes, the ten smallest and the ten largest, on MS COCO train.

    Args:
        ours: for each method the scores of ``"all"``, ``"small"`` and ``"large"`` classes; see
            `advcam_attr.metrics.evaluation.MaskEvaluation.by_size`.
        source: see `table_i`.
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
            _CHOSEN,
            "F1 is the mean of the classes' F1. Size is the mean number of pixels of a class in images that show it.",
        ),
    )


def beside(
    title: str,
    columns: tuple[str, ...],
    ours: Mapping[str, Sequence[Share]],
    paper: Mapping[str, Numbers],
    source: str,
    notes: tuple[str, ...],
) -> Table:
    """The paper's rows, each followed by ours of the same name; then ours of other names.

    Args:
        title: of the table.
        columns: the heads of the numbers.
        ours: shares of 1 by method, one for each column.
        paper: percentages by method.
        source: what our rows are called.
        notes: sentences below the table.

    Raises:
        AdvCAMError: a method has more or fewer numbers than there are columns.
    """
    rows = []
    for name in dict.fromkeys((*paper, *ours)):
        if name in paper:
            rows.append((name, PAPER, *(_DASH if n is None else f"{n:.1f}" for n in paper[name])))
        if name in ours:
            rows.append((name, source, *map(_percent, _checked(name, ours[name], columns))))
    return Table(title, ("method", "source", *columns), tuple(rows), notes)


def _checked(name: str, shares: Sequence[Share], columns: Sequence[str]) -> Sequence[Share]:
    if len(shares) != len(columns):
        raise AdvCAMError(f"{name!r} must have a number for each of {', '.join(columns)}: got {len(shares)}")
    return shares


def _percent(share: Share, form: str = ".1f") -> str:
    return _DASH if share is None or math.isnan(share) else format(100 * share, form)
