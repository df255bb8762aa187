"""A list in; its items, each made ready by a thread while those before it are used, out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetched(make: Callable[[S], T], items: Iterable[S], *, workers: int, ahead: int = 2) -> Iterator[T]:
    """``map(make, items)``, in order, with up to ``workers + ahead`` results made before they are asked for.

    Threads, not processes: decoding and resizing pictures frees the interpreter, nothing is copied between processes,
    and nothing outlives a killed run. An error of ``make`` is raised where its result would be.

    Args:
        make: called with one item, in a thread.
        items: taken as they are needed.
        workers: how many threads; 0 makes each result when it is asked for.
        ahead: how many finished results may wait.

    Example:
        >>> list(prefetched(str.upper, ["a", "b", "c"], workers=2))
        ['A', 'B', 'C']
    """
    if workers == 0:
        yield from map(make, items)
        return
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        waiting: deque[Future[T]] = deque(pool.submit(make, item) for item in islice(source, workers + ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(make, item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
