"""The share of a process among those of a run, from the environment.

Every process holds the same list and takes every ``world``-th item of it, so no process group is needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from advcam_attr.types import AdvCAMError

T = TypeVar("T")

#: Seconds without a new result of other processes after which they count as stopped.
PATIENCE = 1800.0


@dataclass(frozen=True)
class Shard:
    """One process among those of a run: its number, their number, its number on its machine (which selects the GPU)."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local < 0:
            raise AdvCAMError(f"shard: the rank must be in 0 to world - 1, got rank {self.rank} of {self.world}")

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"

    def take(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process, ``items[rank::world]``."""
        return items[self.rank :: self.world]


#: A process that shares no work.
ALONE = Shard()


def shard_of_launch(environment: Mapping[str, str] | None = None) -> Shard:
    """Return this process among those launched together by ``torchrun`` or ``srun``.

    A batch script's own process belongs to no step and is alone, whatever its job has allocated.

    Example:
        >>> shard_of_launch({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
        Shard(rank=1, world=4, local=1)
    """
    env = os.environ if environment is None else environment
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in env and world in env:
            return Shard(number(env, rank), number(env, world), number(env, local) if local in env else 0)
    return ALONE


def shard_of(environment: Mapping[str, str] | None = None) -> Shard:
    """Return this process's share of independent work, the tasks of a SLURM array included.

    An array of 10 tasks of 4 processes is a run of 40.
    """
    env = os.environ if environment is None else environment
    launch = shard_of_launch(env)
    if "SLURM_ARRAY_TASK_COUNT" not in env:
        return launch
    task, low, high, tasks = (number(env, f"SLURM_ARRAY_TASK_{part}") for part in ("ID", "MIN", "MAX", "COUNT"))
    step = (high - low) // (tasks - 1) if tasks > 1 else 1
    place, rest = divmod(task - low, max(step, 1))
    if rest or high - low != step * (tasks - 1):
        raise AdvCAMError("the SLURM array has gaps, so its shares are undefined: use --array=0-N")
    return Shard(place * launch.world + launch.rank, tasks * launch.world, launch.local)


def number(env: Mapping[str, str], name: str) -> int:
    """Return an integer variable of the environment."""
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise AdvCAMError(f"the environment's {name} must be a number, got {env.get(name)!r}") from error


def wait_for(missing: Callable[[], Sequence[object]]) -> None:
    """Wait until ``missing`` returns no results of the other processes of a launch."""
    if shard_of_launch().world == 1:
        return
    count, since = None, time.monotonic()
    while left := missing():
        if count is None or len(left) < count:
            count, since = len(left), time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise AdvCAMError(f"another process has stopped: {left[0]} and {len(left) - 1} more did not come")
        time.sleep(0.2)
