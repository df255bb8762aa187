"""Progress of long work: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from advcam_attr.runs.run_log import PACKAGE
from advcam_attr.runs.sharding import shard_of_launch

logger = logging.getLogger(__name__)

#: Seconds between two log lines.
INTERVAL = 30.0


class ProgressBar:
    """The state of one piece of long work; see `progress_bar`."""

    def __init__(self, total: int, desc: str, unit: str, initial: int, bar: tqdm[None] | None) -> None:
        self.total, self.desc, self.unit, self.bar = total, desc, unit, bar
        self.initial = self.done = initial
        self.start = self.logged = time.monotonic()

    def update(self, count: int = 1, **values: float) -> None:
        """Count finished units; ``values``, such as the loss, are shown beside them."""
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.logged >= INTERVAL and shard_of_launch().rank == 0:
            self.logged = time.monotonic()
            shown = "".join(f", {name} {value:.4g}" for name, value in values.items())
            logger.info(f"{self.desc}: {self.done} of {self.total} {self.unit}, {self._speed()}{shown}")

    def _speed(self) -> str:
        rate = (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)
        left = f", {duration((self.total - self.done) / rate)} left" if rate else ""
        return f"{rate:.3g} {self.unit}/s{left}"


@contextmanager
def progress_bar(total: int, desc: str, unit: str = "images", *, initial: int = 0) -> Iterator[ProgressBar]:
    """Report the progress of long work: a bar on a terminal, otherwise a log line every 30 seconds.

    ``unit`` is a plural noun; ``initial`` counts the units that were done before.
    """
    with ExitStack() as stack:
        bar = None
        if sys.stderr.isatty() and shard_of_launch().rank == 0:
            if any(getattr(handler, "stream", None) in (sys.stdout, sys.stderr) for handler in PACKAGE.handlers):
                stack.enter_context(logging_redirect_tqdm([PACKAGE]))
            bar = stack.enter_context(tqdm(total=total, initial=initial, desc=desc, unit=f" {unit}"))
        yield ProgressBar(total, desc, unit, initial, bar)


def duration(seconds: float) -> str:
    """Return a time for people to read.

    Example:
        >>> duration(90), duration(1000), duration(10000)
        ('90 s', '17 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
