"""Training logs: one JSON line a step, each step once however often the training resumes; optionally further logs."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from advcam_attr.files import write_error, write_text
from advcam_attr.reading import parse_json, read_text
from advcam_attr.runs.runtime import Logger
from advcam_attr.types import AdvCAMError

Record = dict[str, Any]


class Log:
    """An open log; see `json_log`."""

    def __init__(self, path: Path, stream: TextIO, also: Callable[[Record], None] | None = None) -> None:
        self.path, self.stream, self.also = path, stream, also

    def write(self, record: Record) -> None:
        """Append a record, which has a ``step``, and flush."""
        try:
            self.stream.write(_line(record))
            self.stream.flush()
            if self.also is not None:
                self.also(record)
        except OSError as error:
            raise write_error(self.path, error) from error


@contextmanager
def json_log(path: Path, resume_at: int = 0, logger: Logger | None = None) -> Iterator[Log]:
    """Open a JSONL file for appending, without records from ``resume_at`` on and without an unfinished line.

    Args:
        path: the file, ``NAME.jsonl``.
        resume_at: the next step.
        logger: a further log of the records' numbers: the folder ``tensorboard/NAME``, the file ``NAME.csv``, or a run
            of Weights & Biases, whose local files are in ``wandb/``.
    """
    earlier = [record for record in read_log(path) if record["step"] < resume_at]
    with ExitStack() as stack:
        also = None if logger is None else stack.enter_context(_WRITERS[logger](path, earlier))
        write_text(path, "".join(_line(record) for record in earlier))
        stream = path.open("a", encoding="utf-8")
        stack.callback(_close, stream)
        yield Log(path, stream, also)


def _close(stream: TextIO) -> None:
    """Close a stream whose records are written, or have raised; what is left would raise once more."""
    with suppress(OSError):
        stream.close()


def require_logger(logger: Logger | None) -> None:
    """Raise if the package of a further log is not installed."""
    if logger in _PACKAGES:
        _PACKAGES[logger]()


@contextmanager
def _tensorboard(path: Path, earlier: Sequence[Record]) -> Iterator[Callable[[Record], None]]:
    step = earlier[-1]["step"] + 1 if earlier else None
    with _summary_writer()(path.parent / "tensorboard" / path.stem, purge_step=step) as board:

        def write(record: Record) -> None:
            for name, value in _numbers(record).items():
                board.add_scalar(name, value, record["step"])

        yield write


@contextmanager
def _wandb(path: Path, earlier: Sequence[Record]) -> Iterator[Callable[[Record], None]]:
    """Log to the run of this path, which a resumed training continues; steps of before are logged once."""
    wandb, place = _wandb_package(), path.resolve()
    run = wandb.init(
        dir=str(path.parent),
        id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
        name="/".join(place.with_suffix("").parts[-3:]),
        resume="allow",
    )
    try:
        yield lambda record: run.log(_numbers(record), step=record["step"])
    finally:
        run.finish()


@contextmanager
def _csv(path: Path, earlier: Sequence[Record]) -> Iterator[Callable[[Record], None]]:
    """Write a CSV file whose columns are the first record's numbers."""
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as stream:
        table: list[csv.DictWriter[str]] = []

        def write(record: Record) -> None:
            row = {"step": record["step"], **_numbers(record)}
            if not table:
                table.append(csv.DictWriter(stream, list(row), extrasaction="ignore"))
                table[0].writeheader()
            table[0].writerow(row)
            stream.flush()

        for record in earlier:
            write(record)
        yield write


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AdvCAMError("TensorBoard is not installed; pip install tensorboard, or log without it") from error
    return SummaryWriter


def _wandb_package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise AdvCAMError("Weights & Biases is not installed; pip install wandb, or log without it") from error
    return wandb


_PACKAGES: dict[Any, Callable[[], Any]] = {"tensorboard": _summary_writer, "wandb": _wandb_package}

_WRITERS = {"tensorboard": _tensorboard, "wandb": _wandb, "csv": _csv}


def _numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a record; those of a list by index, ``"lr/0"``."""
    found: dict[str, float] = {}
    for name, value in record.items():
        items = {f"{name}/{n}": item for n, item in enumerate(value)} if isinstance(value, list) else {name: value}
        found |= {key: item for key, item in items.items() if key != "step" and isinstance(item, (int, float))}
    return found


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log in order, without an unfinished line; none if there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in read_text(path, "put a copy back, or remove it: its records are lost then").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
