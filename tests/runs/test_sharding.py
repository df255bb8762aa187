"""Shares of processes, read from the environment."""

from __future__ import annotations

import pytest

from advcam_attr.runs import sharding
from advcam_attr.runs.sharding import Shard, shard_of, shard_of_launch, wait_for
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
def test_shares_follow_the_launcher(environment, together, share):
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
def test_undefined_shares_are_errors(environment, message):
    with pytest.raises(AdvCAMError, match=message):
        shard_of(environment)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
def test_shares_partition_the_items(world):
    shares = [Shard(rank, world).take(list(range(13))) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_waiting_for_other_ranks(monkeypatch):
    left = [["a", "b"], ["b"], []]
    wait_for(lambda: ["never"])  # alone, there is nobody to wait for
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    wait_for(lambda: left.pop(0))
    assert left == []
    monkeypatch.setattr(sharding, "PATIENCE", 0.0)
    with pytest.raises(AdvCAMError, match="another process has stopped: a and 1 more did not come"):
        wait_for(lambda: ["a", "b"])
