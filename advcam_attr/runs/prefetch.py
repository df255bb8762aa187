"""A list in; its items, each made ready by a thread while those before it are used, out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from advcam_attr.types import AdvCAMError

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


def plan_batches(
    sizes: Sequence[tuple[int, int] | None], rows: Sequence[int], batch_rows: int
) -> list[tuple[int, ...]]:
    """Gather images of one size into batches.

    Args:
        sizes: height and width of each image; one without (None) is in no batch.
        rows: how many rows each image makes: one a class.
        batch_rows: at most so many rows in a batch; an image of more, or of none, makes one alone.

    Returns:
        Batches of indices, in the order of their first image; within a batch, in the order of the list.

    Raises:
        AdvCAMError: ``batch_rows`` is below 1.

    Example:
        >>> plan_batches([(3, 4), (4, 3), (3, 4), (3, 4)], rows=[1, 1, 2, 1], batch_rows=3)
        [(0, 2), (1,), (3,)]
    """
    if batch_rows < 1:
        raise AdvCAMError(f"batch_rows must be at least 1, got {batch_rows}")
    batches: list[list[int]] = []
    open_batch: dict[tuple[int, int], int] = {}
    filled: dict[tuple[int, int], int] = {}
    for index, (size, count) in enumerate(zip(sizes, rows, strict=True)):
        if size is None:
            continue
        if count == 0:
            batches.append([index])
            continue
        if size not in open_batch or filled[size] + count > batch_rows:
            open_batch[size], filled[size] = len(batches), 0
            batches.append([])
        batches[open_batch[size]].append(index)
        filled[size] += count
    return [tuple(batch) for batch in batches]
