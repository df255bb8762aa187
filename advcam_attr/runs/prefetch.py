"""Reading ahead in threads, and batches of images of one size."""

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
    """Yield ``map(make, items)`` in order, computed by threads ahead of use.

    Threads, because decoding and resizing images release the interpreter lock and nothing is copied between processes.

    Args:
        make: called with one item; its error is raised in the result's place.
        items: consumed lazily.
        workers: threads; 0 computes each result on demand.
        ahead: finished results that may wait.

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
    sizes: Sequence[tuple[int, int] | None], samples: Sequence[int], batch_samples: int
) -> list[tuple[int, ...]]:
    """Group images of one size into batches of indices, ordered by their first image.

    Args:
        sizes: height and width of each image; None leaves it out.
        samples: image-class pairs of each image.
        batch_samples: the most pairs in a batch; images with more, or none, are batches of their own.

    Example:
        >>> plan_batches([(3, 4), (4, 3), (3, 4), (3, 4)], samples=[1, 1, 2, 1], batch_samples=3)
        [(0, 2), (1,), (3,)]
    """
    if batch_samples < 1:
        raise AdvCAMError(f"batch_samples must be at least 1, got {batch_samples}")
    batches: list[list[int]] = []
    last: dict[tuple[int, int], tuple[list[int], int]] = {}  # by size: the batch being filled, and its samples
    for index, (size, count) in enumerate(zip(sizes, samples, strict=True)):
        if size is None:
            continue
        if count == 0:
            batches.append([index])
            continue
        batch, filled = last.get(size, ([], batch_samples))
        if filled + count > batch_samples:
            batch, filled = [], 0
            batches.append(batch)
        batch.append(index)
        last[size] = batch, filled + count
    return [tuple(batch) for batch in batches]
