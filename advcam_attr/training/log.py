"""Training logs: one JSON line a step, each step once however often the training resumes; optionally TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from advcam_attr.files import write_error, write_text
from advcam_attr.reading import parse_json, read_text
from advcam_attr.types import AdvCAMError


class Log:
    """An open log; see `json_log`."""

    def __init__(self, path: Path, stream: TextIO, board: Any = None) -> None:
        self.path, self.stream, self.board = path, stream, board

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, which has a ``step``, and flush."""
        try:
            self.stream.write(_line(record))
            self.stream.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        for name, value in record.items() if self.board is not None else ():
            if name != "step" and isinstance(value, (int, float)):
                self.board.add_scalar(name, value, record["step"])


@contextmanager
def json_log(path: Path, resume_at: int = 0, tensorboard: Path | None = None) -> Iterator[Log]:
    """Open a JSONL file for appending, without records from ``resume_at`` on and without an unfinished line.

    Args:
        path: the file.
        resume_at: the next step.
        tensorboard: folder of TensorBoard's files, which get the numbers of records as scalars; None for none.
    """
    earlier = [record for record in read_log(path) if record["step"] < resume_at]
    with ExitStack() as stack:
        board = None if tensorboard is None else stack.enter_context(_summary_writer(tensorboard, resume_at))
        write_text(path, "".join(_line(record) for record in earlier))
        stream = path.open("a", encoding="utf-8")
        stack.callback(_close, stream)
        yield Log(path, stream, board)


def _close(stream: TextIO) -> None:
    """Close a stream whose records are written, or have raised; what is left would raise once more."""
    with suppress(OSError):
        stream.close()


def _summary_writer(folder: Path, resume_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AdvCAMError("TensorBoard is not installed; pip install tensorboard, or log without it") from error
    return SummaryWriter(folder, purge_step=resume_at or None)


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
