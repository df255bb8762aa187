"""Records of steps in; one JSON line each in a file, each step once however often the training resumes, out.

TensorBoard's files too, where they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from advcam_attr.files import read_text, write_text
from advcam_attr.types import AdvCAMError


class Log(Protocol):
    """What takes records."""

    def write(self, record: dict[str, Any]) -> None:
        """Keep a record, which has a ``step``."""


@contextmanager
def training_log(path: Path, resume_at: int = 0, tensorboard: Path | None = None) -> Iterator[Log]:
    """A block that keeps records as `json_log`, and as `tensorboard_log` too where a folder is given for that.

    Args:
        path: the JSONL file.
        resume_at: the next step.
        tensorboard: the folder of TensorBoard's files; None for none.

    Raises:
        AdvCAMError: a file cannot be written, or TensorBoard is asked for and not installed.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(json_log(path, resume_at))]
        if tensorboard is not None:
            logs.append(stack.enter_context(tensorboard_log(tensorboard, resume_at)))
        yield _Logs(logs)


class _Logs:
    def __init__(self, logs: Sequence[Log]) -> None:
        self.logs = logs

    def write(self, record: dict[str, Any]) -> None:
        """Give a record to each log."""
        for log in self.logs:
            log.write(record)


@contextmanager
def json_log(path: Path, resume_at: int = 0) -> Iterator[Log]:
    """A block that appends records to a JSONL file.

    Records of the step ``resume_at`` and later ones, which are about to be made again, are dropped first, and so is a
    line that an interruption left unfinished.

    Args:
        path: the file.
        resume_at: the next step.

    Raises:
        AdvCAMError: the file cannot be written, or what is there is no text.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "log.jsonl")
        >>> for start in (0, 1):
        ...     with json_log(file, start) as log:
        ...         log.write({"step": start, "loss": 0.5})
        >>> [record["step"] for record in read_log(file)]
        [0, 1]
    """
    kept = [record for record in read_log(path) if record["step"] < resume_at]
    write_text(path, "".join(_line(record) for record in kept))
    with path.open("a", encoding="utf-8") as stream:
        yield _JsonLog(path, stream)


class _JsonLog:
    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.stream = path, stream

    def write(self, record: dict[str, Any]) -> None:
        """Append a line, at once."""
        try:
            self.stream.write(_line(record))
            self.stream.flush()
        except OSError as error:
            raise AdvCAMError(f"cannot write the log {self.path}: {error.strerror}") from error


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order; none where there is no file. An unfinished last line is left out.

    Raises:
        AdvCAMError: the file is no text.
    """
    if not path.is_file():
        return []
    records = []
    for line in read_text(path, "put a copy back, or remove it: its records are lost then").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


@contextmanager
def tensorboard_log(folder: Path, resume_at: int = 0) -> Iterator[Log]:
    """A block that writes the numbers of records as TensorBoard scalars.

    Raises:
        AdvCAMError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AdvCAMError("TensorBoard is not installed; pip install tensorboard, or log without it") from error
    with SummaryWriter(folder, purge_step=resume_at or None) as writer:
        yield _TensorBoardLog(writer)


class _TensorBoardLog:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def write(self, record: dict[str, Any]) -> None:
        """Add every number of a record, by its name."""
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, record["step"])
