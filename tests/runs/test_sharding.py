"""Who does what: shares from the environment, batches of one size, pictures read ahead."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from advcam_attr.runs.prefetch import plan_batches, prefetched
from advcam_attr.runs.sharding import Shard, choose_device, shard_of, shard_of_launch
from advcam_attr.types import AdvCAMError

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "9",
         "SLURM_ARRAY_TASK_COUNT": "4"}  # fmt: skip
STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "together", "share"),
    [
        ({}, Shard(), Shard()),
        (TORCHRUN, Shard(1, 2, 1), Shard(1, 2, 1)),
        (STEP, Shard(3, 8, 1), Shard(3, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Shard(), Shard()),  # a batch script's own process
        (STEP | {"RANK": "5", "WORLD_SIZE": "9"}, Shard(5, 9, 0), Shard(5, 9, 0)),
        (ARRAY, Shard(), Shard(2, 4, 0)),
        (ARRAY | TORCHRUN, Shard(1, 2, 1), Shard(5, 8, 1)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "1"},
         Shard(), Shard()),
    ],
)  # fmt: skip
def test_the_launcher_tells_the_share(environment, together, share):
    assert shard_of_launch(environment) == together
    assert shard_of(environment) == share


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK must be a number, got 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "got rank 2 of 2"),
        (ARRAY | {"SLURM_ARRAY_TASK_MAX": "20"}, "gaps"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "4"}, "gaps"),
        ({"SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID must be a number, got None"),
    ],
)
def test_a_share_that_cannot_be_told_is_refused(environment, message):
    with pytest.raises(AdvCAMError, match=message):
        shard_of(environment)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
def test_shares_are_the_whole_and_never_overlap(world):
    shares = [Shard(rank, world).take(list(range(13))) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 6) == choose_device("cuda", 6) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 6) == torch.device("cpu")
    with pytest.raises(AdvCAMError, match="device 'nonsense' cannot be used here"):
        choose_device("nonsense")


def test_batches_hold_images_of_one_size_up_to_the_rows():
    generator = torch.Generator().manual_seed(0)
    kinds = [(3, 4), (4, 3), (9, 9)]
    sizes = [kinds[int(i)] for i in torch.randint(3, (200,), generator=generator)]
    rows = torch.randint(0, 6, (200,), generator=generator).tolist()
    batches = plan_batches(sizes, rows, 8)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len({sizes[i] for i in batch}) == 1
        assert list(batch) == sorted(batch)
        assert sum(rows[i] for i in batch) <= 8
        assert all(rows[i] for i in batch) or len(batch) == 1
    assert len(batches) < 120


def test_images_without_a_size_are_in_no_batch():
    assert plan_batches([None, (1, 1), None], [1, 1, 1], 4) == [(1,)]
    with pytest.raises(AdvCAMError, match="batch_rows must be at least 1"):
        plan_batches([(1, 1)], [1], 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    def slow_first(n: int) -> int:
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert list(prefetched(slow_first, range(20), workers=workers)) == [n * n for n in range(20)]


def test_only_so_many_are_made_ahead_and_nothing_stays():
    made = []
    results = prefetched(made.append, range(100), workers=2, ahead=3)
    next(results)
    time.sleep(0.05)
    assert 1 <= len(made) <= 2 + 3 + 1
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_where_its_result_would_be(workers):
    def broken(n: int) -> int:
        if n == 3:
            raise AdvCAMError("three")
        return n

    results = prefetched(broken, range(9), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AdvCAMError, match="three"):
        next(results)
