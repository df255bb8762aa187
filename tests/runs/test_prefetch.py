"""Reading ahead in threads, and batches of images of one size."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from advcam_attr.runs.prefetch import plan_batches, prefetched
from advcam_attr.types import AdvCAMError


def test_batches_hold_images_of_one_size():
    generator = torch.Generator().manual_seed(0)
    kinds = [(3, 4), (4, 3), (9, 9)]
    sizes = [kinds[int(i)] for i in torch.randint(3, (200,), generator=generator)]
    samples = torch.randint(0, 6, (200,), generator=generator).tolist()
    batches = plan_batches(sizes, samples, 8)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len({sizes[i] for i in batch}) == 1
        assert list(batch) == sorted(batch)
        assert sum(samples[i] for i in batch) <= 8
        assert all(samples[i] for i in batch) or len(batch) == 1
    assert len(batches) < 120


def test_images_without_a_size_are_in_no_batch():
    assert plan_batches([None, (1, 1), None], [1, 1, 1], 4) == [(1,)]
    with pytest.raises(AdvCAMError, match="batch_samples must be at least 1"):
        plan_batches([(1, 1)], [1], 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    def slow_first(n: int) -> int:
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert list(prefetched(slow_first, range(20), workers=workers)) == [n * n for n in range(20)]


def test_few_results_are_computed_ahead_and_no_thread_stays():
    made = []
    results = prefetched(made.append, range(100), workers=2, ahead=3)
    next(results)
    time.sleep(0.05)
    assert 1 <= len(made) <= 2 + 3 + 1
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_takes_the_place_of_its_result(workers):
    def broken(n: int) -> int:
        if n == 3:
            raise AdvCAMError("three")
        return n

    results = prefetched(broken, range(9), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AdvCAMError, match="three"):
        next(results)
