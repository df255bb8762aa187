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


#: A process that shares its work with nobody.
ALONE = Shard()


def shard_of_launch(environment: Mapping[str, str] | None = None) -> Shard:
    """This process among those that its launcher started together; they can talk to each other.

    ``torchrun`` sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; ``srun`` sets ``SLURM_PROCID``,
    ``SLURM_STEP_NUM_TASKS`` and ``SLURM_LOCALID``. (``SLURM_NTASKS`` alone does not count: a batch script sees it too
    when it starts a single process, which would then do a part of the work only.)

    Args:
        environment: in place of the process's own.

    Raises:
        AdvCAMError: a variable that is no number, or a rank outside of the world.

    Example:
        >>> shard_of_launch({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
        Shard(rank=1, world=4, local=1)
        >>> shard_of_launch({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"})
        Shard(rank=5, world=8, local=1)
        >>> shard_of_launch({})
        Shard(rank=0, world=1, local=0)
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
    """This process's share of work whose parts do not depend on each other.

    Each task of a SLURM array is a share of `shard_of_launch` again, so that an array of 10 tasks of 4 processes is a
    run of 40.

    Args:
        environment: in place of the process's own.

    Raises:
        AdvCAMError: as `shard_of_launch`, and an array with gaps.

    Example:
        >>> array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10"}
        >>> shard_of({**array, "SLURM_ARRAY_TASK_COUNT": "10"})
        Shard(rank=4, world=10, local=0)
    """
    env = os.environ if environment is None else environment
    launch = shard_of_launch(env)
    if "SLURM_ARRAY_TASK_COUNT" not in env:
        return launch
    task, low, high, tasks = (number(env, f"SLURM_ARRAY_TASK_{part}") for part in ("ID", "MIN", "MAX", "COUNT"))
    step = (high - low) // (tasks - 1) if tasks > 1 else 1
    place, rest = divmod(task - low, max(step, 1))
    if rest or high - low != step * (tasks - 1):
        raise AdvCAMError("the SLURM array has gaps, so its shares cannot be told: use --array=0-N")
    return Shard(place * launch.world + launch.rank, tasks * launch.world, launch.local)


def number(env: Mapping[str, str], name: str) -> int:
    """A variable of the environment that holds a whole number.

    Raises:
        AdvCAMError: it is missing, or holds something else.
    """
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise AdvCAMError(f"the environment's {name} must be a number, got {env.get(name)!r}") from error


def choose_device(name: str = "auto", local: int = 0) -> torch.device:
    """A device that can be used.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or another that torch has. By ``"auto"`` a GPU if there
            is one, else the CPU.
        local: the number of this process on its machine, which chooses among its GPUs where the name does not.

    Raises:
        AdvCAMError: a device that cannot be used here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AdvCAMError(f"device {name!r} cannot be used here; cpu always can") from error
    return torch.device(name)
