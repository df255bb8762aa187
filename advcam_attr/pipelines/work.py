"""Parts of a run in; what of each is done and left, how long that takes at measured rates, and these rates, out.

A rate is what the parts of its kind have made in this run folder, over the seconds that this took; ``rates.json`` keeps
both. A process that is killed outright leaves no rate of what it did.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advcam_attr.files import write_json
from advcam_attr.runs.sharding import shard_of
from advcam_attr.tables.segmentation import Table
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError

#: The file of a run folder that holds what was made in how many seconds.
RATES = "rates.json"


@dataclass(frozen=True)
class Work:
    """A part of a run that can be counted.

    Attributes:
        name: what it is called in plans.
        kind: parts of one kind are about equally fast.
        unit: what is counted, e.g. ``"images"``.
        total: how many there are.
        done: counts those that are done, from the files.
    """

    name: str
    kind: str
    unit: str
    total: int
    done: Callable[[], int]


@contextlib.contextmanager
def measured(work: Work, run: Path) -> Iterator[None]:
    """A block that does a part of a run, whose rate is kept in the run folder, even if the block raises.

    Where all was done before, or there is no run folder even now, nothing is measured. The first process alone keeps
    what it sees of all.

    Args:
        work: what is done.
        run: the folder.
    """
    before, begin = work.done(), time.monotonic()
    try:
        yield
    finally:
        if shard_of().rank == 0 and before < work.total and run.is_dir():
            seconds, made = read_rates(run).get(work.kind, (0.0, 0))
            spent = seconds + time.monotonic() - begin, made + max(0, work.done() - before)
            with contextlib.suppress(AdvCAMError):  # a full disk is told by what the block writes
                write_json(run / RATES, _as_json({**read_rates(run), work.kind: spent}))


def _as_json(rates: dict[str, tuple[float, int]]) -> dict[str, Any]:
    return {kind: {"seconds": round(seconds, 1), "made": made} for kind, (seconds, made) in rates.items()}


def read_rates(run: Path) -> dict[str, tuple[float, int]]:
    """Seconds and what was made in them, by kind of work; nothing where nothing was measured."""
    try:
        record = json.loads((run / RATES).read_text(encoding="utf-8"))
        return {str(kind): (float(one["seconds"]), int(one["made"])) for kind, one in record.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def plan(works: Sequence[Work], run: Path) -> str:
    """What of a run is done and what is left, with the time that is left where its rate was measured.

    Args:
        works: the parts, in order.
        run: the folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_json(folder / RATES, {"seeds": {"seconds": 60, "made": 30}})
        >>> works = [Work("training", "training", "steps", 5, lambda: 5), Work("seeds", "seeds", "images", 70,
        ...          lambda: 30), Work("masks", "masks", "images", 70, lambda: 0)]
        >>> print("\\n".join(plan(works, folder).splitlines()[1:]))
        stage     state  made             rate              time left
        training  done   5 of 5 steps     –                         –
        seeds     begun  30 of 70 images  0.5 images/s           80 s
        masks     to do  0 of 70 images   not measured yet          ?
        left: 80 s at these rates, and masks, which is not measured yet
    """
    rates = read_rates(run)
    rows, left, unknown = [], 0.0, []
    for work in works:
        done = min(work.done(), work.total)
        seconds, made = rates.get(work.kind, (0.0, 0))
        rate = made / seconds if made and seconds else None
        state = "done" if done == work.total else "begun" if done else "to do"
        shown = f"{rate:.2g} {work.unit}/s" if rate else "not measured yet" if done < work.total else "–"
        time_left = "–" if done == work.total else "?" if rate is None else duration((work.total - done) / rate)
        rows.append((work.name, state, f"{done} of {work.total} {work.unit}", shown, time_left))
        if done < work.total and rate is None:
            unknown.append(work.name)
        elif done < work.total and rate is not None:
            left += (work.total - done) / rate
    table = Table(f"Plan of {run}", ("stage", "state", "made", "rate", "time left"), tuple(rows), words=4)
    return table.text() + f"\n{_left(left, unknown)}"


def _left(seconds: float, unknown: Sequence[str]) -> str:
    if not seconds and not unknown:
        return "left: nothing"
    known = f"{duration(seconds)} at these rates" if seconds else ""
    rest = f"{', '.join(unknown)}, which {'is' if len(unknown) == 1 else 'are'} not measured yet" if unknown else ""
    return "left: " + ", and ".join(part for part in (known, rest) if part)


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(90), duration(1000), duration(10000)
        ('90 s', '17 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def steps_done(folder: Path, weights: str, total: int) -> Callable[[], int]:
    """What counts the steps of a training: all of them where its net is there, else those of its log.

    Args:
        folder: of the training.
        weights: the net's file in it.
        total: steps of the whole training.
    """

    def count() -> int:
        if (folder / weights).is_file():
            return total
        return max((record["step"] + 1 for record in read_log(folder / "log.jsonl")), default=0)

    return count


def files_done(folder: Path, names: Sequence[str]) -> Callable[[], int]:
    """What counts the files of a folder that have one of these names."""
    wanted = frozenset(names)
    return lambda: sum(file.name in wanted for file in folder.iterdir()) if folder.is_dir() else 0
