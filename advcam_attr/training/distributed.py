"""Distributed data parallel training: process group and collectives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advcam_attr.runs.sharding import Shard, number
from advcam_attr.types import AdvCAMError


@contextlib.contextmanager
def process_group(shard: Shard, device: torch.device, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Set up the process group of the ranks of a launch: NCCL for GPUs, one a process, Gloo for CPUs."""
    if shard.world == 1:
        yield
        return
    env = os.environ if env is None else env
    if device.type == "cuda":
        gpus, ranks = torch.cuda.device_count(), number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else 1
        if ranks > gpus:
            raise AdvCAMError(
                f"{ranks} ranks on this machine need a GPU each, and there are {gpus}; start fewer, or use cpu"
            )
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=_store(shard, env), rank=shard.rank, world_size=shard.world
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _store(shard: Shard, env: Mapping[str, str]) -> dist.Store:
    if "MASTER_ADDR" not in env:
        raise AdvCAMError("MASTER_ADDR is not set; start with torchrun, or set MASTER_ADDR and MASTER_PORT before srun")
    hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun's agent
    store = dist.TCPStore(
        env["MASTER_ADDR"],
        number(env, "MASTER_PORT"),
        shard.world,
        is_master=shard.rank == 0 and not hosted,
        timeout=timedelta(minutes=10),
    )
    return dist.PrefixStore(attempt(env), store)


def attempt(env: Mapping[str, str]) -> str:
    """Return the key of one attempt of a run, so that no rank reads addresses of an attempt before a restart."""
    run = env.get("TORCHELASTIC_RUN_ID") or env.get("SLURM_JOB_ID") or "run"
    restart = env.get("TORCHELASTIC_RESTART_COUNT") or env.get("SLURM_RESTART_COUNT") or "0"
    return f"advcam/{run}/{restart}"


def mean_over_ranks(value: Tensor) -> float:
    """Return the mean of a scalar over all ranks."""
    if dist.is_initialized():
        value = value.detach().clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return float(value)


def share_buffers(net: nn.Module) -> None:
    """Give all ranks the first one's buffers, e.g. running statistics of norms, which differ after training."""
    if dist.is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)


def gather(content: Any) -> list[Any]:
    """Return the picklable content of each rank, on every rank."""
    if not dist.is_initialized():
        return [content]
    contents: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(contents, content)
    return contents
