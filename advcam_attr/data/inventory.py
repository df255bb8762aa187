"""What was found of data sets on disk, as counts; a text that people read, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from advcam_attr.types import Sample

#: More classes than this are shown in two blocks side by side.
_ROWS = 40

#: More classes than this are not shown one by one.
_CLASSES = 100


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with files.

    Attributes:
        what: in the plural, e.g. ``"images that cannot be read"``.
        cases: all that there are, at least one: ids, or lines that name a file.
        fix: what to do.
    """

    what: str
    cases: tuple[str, ...]
    fix: str


@dataclass(frozen=True)
class SplitInventory:
    """One split, as far as it is there.

    Attributes:
        name: of the split.
        published: how many images the published one lists; None for one's own lists.
        samples: all that it lists, with empty labels where they are not known.
        there: ids of those whose photograph is there.
        known: ids of those whose labels are known.
        masked: ids of those that have a label map, or boxes.
        mask: reads the label map, or checks that the boxes fit the image.
        looked_for: whether photographs were looked for; none are there, if not.
    """

    name: str
    published: int | None
    samples: tuple[Sample, ...]
    there: frozenset[str]
    known: frozenset[str]
    masked: frozenset[str]
    mask: Callable[[Sample], Tensor | None]
    looked_for: bool = True

    @property
    def labelled(self) -> int:
        """How many images show a class."""
        return sum(bool(sample.labels) for sample in self.samples)

    @property
    def unlabelled(self) -> int:
        """How many images are known to show none of the classes."""
        return sum(sample.id in self.known and not sample.labels for sample in self.samples)

    def per_class(self, num_classes: int) -> tuple[int, ...]:
        """How many images show each class, K numbers."""
        counts = Counter(k for sample in self.samples for k in sample.labels)
        return tuple(counts[k] for k in range(num_classes))


@dataclass(frozen=True)
class DataSetInventory:
    """One data set.

    Attributes:
        name: of the data set.
        root: its folder.
        classes: K names.
        parts: what lies in it: folder or file, and what that holds.
        splits: those that can be read.
        absent: published parts that are not there, and what they would take.
        problems: what is wrong.
        truth: what images have besides labels: ``"masks"`` or ``"boxes"``.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    splits: tuple[SplitInventory, ...]
    absent: tuple[str, ...]
    problems: tuple[Problem, ...]
    truth: str = "masks"

    def text(self) -> str:
        """Some lines for a terminal."""
        sections = [
            f"{self.name} in {self.root}",
            _indented(_table([list(part) for part in self.parts], "<<")),
        ]
        if self.splits:
            sections.append(_indented(_table(self._split_rows(), "<" + ">" * 6)))
            sections.append(_indented(_side_by_side(_table(self._class_rows(), "<" + ">" * len(self.splits)))))
        if self.absent:
            sections.append(_indented(["not there:", *(f"  {line}" for line in self.absent)]))
        found = [line for problem in self.problems for line in _problem_lines(problem)]
        sections.append(_indented(["problems:", *(f"  {line}" for line in found)] if found else ["no problems"]))
        return "\n\n".join(sections)

    def _split_rows(self) -> list[list[str]]:
        return [["split", "listed", "published", "there", "labelled", "no object", self.truth]] + [
            [s.name, *map(_count, (len(s.samples), s.published, there, s.labelled, s.unlabelled, len(s.masked)))]
            for s in self.splits
            for there in [len(s.there) if s.looked_for else None]
        ]

    def _class_rows(self) -> list[list[str]]:
        columns = [split.per_class(len(self.classes)) for split in self.splits]
        if len(self.classes) > _CLASSES:
            summaries = (("classes with images", lambda c: sum(map(bool, c))), ("fewest of one", min), ("most", max))
            return [["", *(split.name for split in self.splits)]] + [
                [what, *(_count(count(column)) for column in columns)] for what, count in summaries
            ]
        return [["images of", *(split.name for split in self.splits)]] + [
            [name, *(_count(column[k]) for column in columns)] for k, name in enumerate(self.classes)
        ]


@dataclass(frozen=True)
class Inventory:
    """All data sets at or below a folder.

    Attributes:
        root: the folder.
        data_sets: what was found, at least one.
    """

    root: Path
    data_sets: tuple[DataSetInventory, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with what is there."""
        return not any(data_set.problems for data_set in self.data_sets)

    def text(self) -> str:
        """Some lines for a terminal: what is there and what is not, counts by split and class, and what is wrong."""
        return "\n\n\n".join(data_set.text() for data_set in self.data_sets)


def _problem_lines(problem: Problem) -> list[str]:
    shown, more = problem.cases[:3], len(problem.cases[3:])
    head = f"{len(problem.cases)} {problem.what}; {problem.fix}"
    return [head, *(f"  {case}" for case in shown), *([f"  and {more} more"] if more else [])]


def problems(*found: tuple[str, Iterable[str], str]) -> tuple[Problem, ...]:
    """Those of some kinds of problems that have cases, each named once.

    Args:
        found: what it is, its cases, and the fix; see `Problem`.
    """
    named = (Problem(what, tuple(dict.fromkeys(cases)), fix) for what, cases, fix in found)
    return tuple(problem for problem in named if problem.cases)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number}"


def _table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Rows of cells as lines of equal columns, each aligned to the left (``<``) or right (``>``)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]


def _side_by_side(lines: Sequence[str]) -> list[str]:
    """A long table's lines, below a head, as two blocks next to each other."""
    if len(lines) <= _ROWS:
        return list(lines)
    head, *body = lines
    half = (len(body) + 1) // 2
    left, right = [head, *body[:half]], [head, *body[half:]]
    right += [""] * (len(left) - len(right))
    width = max(map(len, left))
    return [f"{a:<{width}}    {b}".rstrip() for a, b in zip(left, right, strict=True)]


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
