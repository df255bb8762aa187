"""The log of a run folder; which processes log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from advcam_attr.files import append_to, make_folder
from advcam_attr.reading import printable
from advcam_attr.runs.sharding import Shard, shard_of
from advcam_attr.types import AdvCAMError

#: The log's name in its run folder.
LOG = "run.log"

PACKAGE = logging.getLogger("advcam_attr")


#: For the ``extra`` of a log call whose message has several lines; in others a line break came from a name.
MULTILINE = {"multiline": True}


class LineFormatter(logging.Formatter):
    """Write control characters, which names and texts of files may hold, as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return "\n".join(map(printable, text.split("\n"))) if hasattr(record, "multiline") else printable(text)


class _LazyFileHandler(logging.FileHandler):
    """Whatever keeps the log from being written, such as a full disk, is left for the results to report."""

    def _open(self) -> TextIOWrapper:
        make_folder(Path(self.baseFilename).parent)
        return append_to(Path(self.baseFilename))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, AdvCAMError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Append the package's log, with times, to ``run.log`` of a run folder, which the first record creates.

    The first process alone writes; nested calls for the same folder write each record once.
    """
    path = str(folder.resolve() / LOG)
    if shard_of().rank or any(getattr(handler, "baseFilename", None) == path for handler in PACKAGE.handlers):
        yield
        return
    handler, level = _LazyFileHandler(path, encoding="utf-8", delay=True), PACKAGE.level
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    PACKAGE.addHandler(handler)
    if not PACKAGE.isEnabledFor(logging.INFO):
        PACKAGE.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        if folder.is_dir():
            message = f"{type(error).__name__}: {error}"
            handler.handle(PACKAGE.makeRecord(PACKAGE.name, logging.ERROR, path, 0, message, (), None))
        raise
    finally:
        PACKAGE.setLevel(level)
        PACKAGE.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


@contextmanager
def first_rank_logs(shard: Shard) -> Iterator[None]:
    """Log warnings and errors only on all ranks but the first."""
    level = PACKAGE.level
    if shard.rank:
        PACKAGE.setLevel(logging.WARNING)
    try:
        yield
    finally:
        PACKAGE.setLevel(level)
