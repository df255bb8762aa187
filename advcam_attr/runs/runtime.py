"""Execution settings shared by all stages of a run: device, workers, precision, seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    import torch

#: The precisions of autocast; None stands for float32 everywhere.
Autocast = Literal["bfloat16", "float16"]

#: Further logs of trainings.
Logger = Literal["tensorboard", "wandb", "csv"]


@dataclass(frozen=True)
class Runtime:
    """How the stages of a run are executed. Results depend on ``autocast`` and ``seed`` alone.

    Attributes:
        device: auto, cpu, cuda, cuda:N or other; ``"auto"`` takes a GPU if there is one.
        workers: processes or threads that load data; 0 loads in the main thread. Training uses processes, the other
            stages threads.
        autocast: precision of forward passes; None is float32. Training in float16 needs a GPU.
        channels_last: memory format of images and net in climbs.
        seed: of weights, order, augmentation and dropout.
        overwrite: recompute existing results; replace those of other settings.
        logger: log trainings there, too; besides ``log.jsonl``.
    """

    device: str = "auto"
    workers: int = 2
    autocast: Autocast | None = None
    channels_last: bool = False
    seed: int = 0
    overwrite: bool = False
    logger: Logger | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "seed"):
            if getattr(self, name) < 0:
                raise AdvCAMError(f"runtime.{name} must not be negative, got {getattr(self, name)}")
        if self.autocast not in (None, *get_args(Autocast)):
            raise AdvCAMError(f"runtime.autocast must be bfloat16, float16 or null, got {self.autocast!r}")
        if self.logger not in (None, *get_args(Logger)):
            raise AdvCAMError(f"runtime.logger must be tensorboard, wandb, csv or null, got {self.logger!r}")

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        import torch

        return None if self.autocast is None else getattr(torch, self.autocast)

    def torch_device(self, shard: Shard = ALONE) -> torch.device:
        """Return the device of a process."""
        return choose_device(self.device, shard.local)


def choose_device(name: str = "auto", local: int = 0) -> torch.device:
    """Return a usable device.

    Args:
        name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or another of torch.
        local: number of this process on its machine, which selects the GPU of ``"auto"`` and ``"cuda"``.
    """
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AdvCAMError(f"device {name!r} cannot be used here; cpu always can") from error
    return torch.device(name)
