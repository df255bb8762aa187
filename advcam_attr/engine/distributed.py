"""The environment of a process in; which of how many it is, its device, and its group, out.

A rank is read from the environment alone, so that work can be shared out without any group of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from advcam_attr.types import AdvCAMError

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """One of the processes that share some work.

    Attributes:
        rank: which, from 0.
        world: how many.
        local: which on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


#: The rank of a process that shares its work with nobody.
ALONE = Rank()


def training_rank(env: Mapping[str, str] | None = None) -> Rank:
    """The rank among processes that train one net: ``torchrun``'s, else that of a SLURM step (``srun``), else alone.

    A batch script that is not itself under ``srun`` is alone, however many tasks its job has. The tasks of a SLURM
    array do not train together, so they do not count here.

    Args:
        env: the environment; None is the process's own.

    Raises:
        AdvCAMError: the variables do not fit each other.

    Example:
        >>> training_rank({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
        Rank(rank=1, world=2, local=1)
        >>> training_rank({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"})
        Rank(rank=5, world=8, local=1)
        >>> training_rank({})
        Rank(rank=0, world=1, local=0)
    """
    env = os.environ if env is None else env
    if "RANK" in env and "WORLD_SIZE" in env:
        return _rank(env, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        return _rank(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return ALONE


def shard_rank(env: Mapping[str, str] | None = None) -> Rank:
    """The rank among processes that share independent work: as `training_rank`, else the task of a SLURM array.

    Example:
        >>> array = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_MAX": "7"}
        >>> shard_rank({**array, "SLURM_ARRAY_TASK_COUNT": "4"})
        Rank(rank=2, world=4, local=0)
    """
    env = os.environ if env is None else env
    together = training_rank(env)
    if together.world > 1 or "SLURM_ARRAY_TASK_COUNT" not in env:
        return together
    number, low, high, count = (_number(env, f"SLURM_ARRAY_TASK_{key}") for key in ("ID", "MIN", "MAX", "COUNT"))
    step = (high - low) // (count - 1) if count > 1 else 1
    if (high - low) != step * (count - 1) or (number - low) % step:
        raise AdvCAMError("the SLURM array has gaps, so its tasks cannot share the work; submit --array=0-N")
    return Rank((number - low) // step, count, 0)


def _rank(env: Mapping[str, str], rank: str, world: str, local: str) -> Rank:
    found = Rank(_number(env, rank), _number(env, world), _number(env, local) if local in env else 0)
    if not 0 <= found.rank < found.world:
        raise AdvCAMError(f"{rank}={found.rank} does not fit {world}={found.world}; start with torchrun or srun")
    return found


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise AdvCAMError(f"the environment has {name}={env.get(name, '')!r} where a number was expected") from error


def shard(items: Sequence[T], rank: Rank) -> Sequence[T]:
    """Every world-th item, from the rank-th on: all ranks' shards together are the items, each once.

    Example:
        >>> shard("abcde", Rank(1, 2))
        'bd'
    """
    return items[rank.rank :: rank.world]


def choose_device(rank: Rank, wish: str = "auto") -> torch.device:
    """The device of a rank: its own GPU where there are GPUs.

    Args:
        rank: of this process.
        wish: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        AdvCAMError: no such device, or fewer GPUs than ranks on this machine.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise AdvCAMError(f"unknown device {wish!r}; there are auto, cpu, cuda and cuda:N") from error
    if device.type != "cuda":
        return device
    index = rank.local if device.index is None else device.index
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise AdvCAMError(f"device cuda:{index} is wanted, but there are {count} GPUs; start fewer ranks, or use cpu")
    return torch.device("cuda", index)


@contextlib.contextmanager
def process_group(rank: Rank, device: torch.device, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A block in which ranks that train together can talk to each other; nothing is set up for one rank alone.

    The ranks meet under the run's id and the number of its restarts, so that after a restart none can read addresses
    that an earlier attempt left behind.

    Args:
        rank: from `training_rank`.
        device: GPUs talk by NCCL, CPUs by Gloo.
        env: the environment; None is the process's own.

    Raises:
        AdvCAMError: the environment does not say where to meet.
    """
    if rank.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_meeting_place(rank, os.environ if env is None else env),
        rank=rank.rank,
        world_size=rank.world,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _meeting_place(rank: Rank, env: Mapping[str, str]) -> dist.Store:
    if "MASTER_ADDR" not in env:
        raise AdvCAMError("MASTER_ADDR is not set; start with torchrun, or set MASTER_ADDR and MASTER_PORT before srun")
    hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent holds the store
    store = dist.TCPStore(
        env["MASTER_ADDR"],
        _number(env, "MASTER_PORT"),
        rank.world,
        is_master=rank.rank == 0 and not hosted,
        timeout=timedelta(minutes=10),
    )
    return dist.PrefixStore(attempt(env), store)


def attempt(env: Mapping[str, str]) -> str:
    """What tells one attempt of a run from all others.

    Example:
        >>> attempt({"TORCHELASTIC_RUN_ID": "voc", "TORCHELASTIC_RESTART_COUNT": "2"})
        'advcam/voc/2'
    """
    run = env.get("TORCHELASTIC_RUN_ID") or env.get("SLURM_JOB_ID") or "run"
    restart = env.get("TORCHELASTIC_RESTART_COUNT") or env.get("SLURM_RESTART_COUNT") or "0"
    return f"advcam/{run}/{restart}"


def mean_over_ranks(value: Tensor) -> float:
    """The mean of a scalar over all ranks; its value where there is one rank."""
    if dist.is_initialized():
        value = value.detach().clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return float(value)


def gather(content: Any) -> list[Any]:
    """What each rank has, by rank, on every rank; content that can be pickled."""
    if not dist.is_initialized():
        return [content]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, content)
    return found
