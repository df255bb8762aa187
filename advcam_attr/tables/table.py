"""Tables of results as Markdown, text or JSON, with the paper's numbers above ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advcam_attr.reading import printable
from advcam_attr.tables.paper import Numbers
from advcam_attr.types import AdvCAMError

#: A share of 1, or none.
Share = float | None

#: The sources of the paper's rows and of ours.
PAPER, HERE = "paper", "here"

DASH = "–"


@dataclass(frozen=True)
class Table:
    """A table to print; the first ``words`` columns hold words, the others numbers; notes are sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 2

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, *self.rows]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        body.insert(1, "|" + "---|" * self.words + "---:|" * (len(self.columns) - self.words))
        return "\n".join([f"**{self.title}**", "", *body, *(f"\n{note}" for note in self.notes)])

    def text(self) -> str:
        """Return the table as plain text in aligned columns, numbers to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = [
            "  ".join(
                cell.ljust(width) if i < self.words else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join(map(printable, [self.title, *body, *self.notes]))

    def describe(self) -> dict[str, Any]:
        """Return the table for JSON: numbers as they are printed, null where there is none."""
        rows = [
            [*row[: self.words], *(None if cell == DASH else float(cell) for cell in row[self.words :])]
            for row in self.rows
        ]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def beside(
    title: str,
    columns: tuple[str, ...],
    ours: Mapping[str, Sequence[Share]],
    paper: Mapping[str, Numbers],
    source: str,
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a table of the paper's rows, each followed by ours of the same name, then ours of other names.

    The paper's are percentages. Ours are shares of 1 by method, one for each column; None and NaN are dashes.
    """
    rows = []
    for name in dict.fromkeys((*paper, *ours)):
        if name in paper:
            rows.append((name, PAPER, *(DASH if n is None else f"{n:.1f}" for n in paper[name])))
        if name in ours:
            if len(ours[name]) != len(columns):
                raise AdvCAMError(
                    f"{name!r} must have a number for each of {', '.join(columns)}: got {len(ours[name])}"
                )
            rows.append((name, source, *map(percent, ours[name])))
    return Table(title, ("method", "source", *columns), tuple(rows), notes)


def percent(share: Share, form: str = ".1f") -> str:
    """Return a share in percent, or a dash for none."""
    return DASH if share is None or math.isnan(share) else format(100 * share, form)
