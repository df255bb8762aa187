"""How large every image is and how many rows it has in; batches of one shape, the same in every process, out.

The plan depends on the whole list and on nothing else: not on what is done already, and not on how many processes share
the work. So an image has the same batch-mates in every run, and its maps the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from advcam_attr.types import AdvCAMError


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
