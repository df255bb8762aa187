"""The environment of a process in; which share of a list is its own, out. No process group, no messages.

Every process of a run holds the same list and takes every world-th item of it, from its rank on. Nothing is padded and
nothing is done twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from advcam_attr.types import AdvCAMError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One process among those of a run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number among those of its machine, which chooses its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local < 0:
            raise AdvCAMError(f"shard: the rank must be in 0 to world - 1, got rank {self.rank} of {self.world}")

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"

    def take(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: ``items[rank::world]``.

        Example:
            >>> Shard(1, 3).take("abcdefg")
            'be'
        """
        return items[self.rank :: self.world]

    def device(self, name: str = "auto") -> torch.device:
        """The device of this process: by ``"auto"`` the GPU of its local number if there is one, else the CPU.

        Raises:
            AdvCAMError: a device that cannot be used here.
        """
        if name in ("auto", "cuda") and torch.cuda.is_available():
            return torch.device("cuda", self.local % torch.cuda.device_count())
        if name == "auto":
            return torch.device("cpu")
        try:
            torch.empty(1, device=name).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise AdvCAMError(f"device {name!r} cannot be used here; cpu always can") from error
        return torch.device(name)


def shard_of(environment: Mapping[str, str] | None = None) -> Shard:
    """This process's share, as its launcher tells it.

    ``torchrun`` sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; ``srun`` sets ``SLURM_PROCID``,
    ``SLURM_STEP_NUM_TASKS`` and ``SLURM_LOCALID``. (``SLURM_NTASKS`` alone does not count: a batch script sees it too
    when it starts a single process, which would then do a part of the work only.) Each task of a SLURM array is a share
    again, so that an array of 10 tasks of 4 processes is a run of 40.

    Args:
        environment: in place of the process's own.

    Raises:
        AdvCAMError: a variable that is no number, or an array with gaps.

    Example:
        >>> shard_of({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
        Shard(rank=1, world=4, local=1)
        >>> shard_of({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "10"})
        Shard(rank=4, world=10, local=0)
    """
    env = os.environ if environment is None else environment
    if "WORLD_SIZE" in env and "RANK" in env:
        rank, world, local = (_number(env, name, 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    elif "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        rank, world, local = (_number(env, name, 0) for name in names)
    else:
        rank, world, local = 0, 1, 0
    if "SLURM_ARRAY_TASK_ID" in env and "SLURM_ARRAY_TASK_COUNT" in env:
        task, tasks = _array_task(env)
        rank, world = task * world + rank, tasks * world
    return Shard(rank, world, local)


def _array_task(env: Mapping[str, str]) -> tuple[int, int]:
    """The number of this task among those of its array, and how many there are."""
    tasks, step = _number(env, "SLURM_ARRAY_TASK_COUNT", 1), _number(env, "SLURM_ARRAY_TASK_STEP", 1)
    first = _number(env, "SLURM_ARRAY_TASK_MIN", 0)
    task, rest = divmod(_number(env, "SLURM_ARRAY_TASK_ID", 0) - first, max(step, 1))
    last = _number(env, "SLURM_ARRAY_TASK_MAX", first + (tasks - 1) * step)
    if rest or not 0 <= task < tasks or last != first + (tasks - 1) * step:
        raise AdvCAMError("the SLURM array has gaps, so its shares cannot be told: use --array=0-N")
    return task, tasks


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(env.get(name, default))
    except ValueError as error:
        raise AdvCAMError(f"the environment's {name} must be a number, got {env[name]!r}") from error
