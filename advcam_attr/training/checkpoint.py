"""Checkpoints from which a training resumes bit by bit.

They hold tensors, numbers, strings, lists and dicts only, so that reading one never runs code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advcam_attr.files import replacing
from advcam_attr.networks.torch_file import read_torch_file
from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Training
from advcam_attr.types import AdvCAMError

_KEYS = {"config", "step", "model", "optimizer", "scaler", "random"}


def save_checkpoint(path: Path, training: Training, config: Mapping[str, Any], shard: Shard = ALONE) -> None:
    """Write the state of a training between two steps; called by every rank, written by the first."""
    states = gather(random_states(next(training.model.parameters()).device))
    if shard.rank:
        return
    content = {
        "config": dict(config),
        "step": training.step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "random": states,
    }
    if training.ema is not None:
        content["ema"] = training.ema.state_dict()
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch's writer does not name a full disk
            raise AdvCAMError(f"cannot write the checkpoint {path}; is the disk full?") from error


def read_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU."""
    try:
        content = read_torch_file(path)
    except AdvCAMError as error:
        raise AdvCAMError(f"cannot read the checkpoint {path}: damaged? remove it to start over") from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise AdvCAMError(f"{path} is not a checkpoint of a training; remove it to start over")
    return content


def restore(training: Training, content: Mapping[str, Any], shard: Shard = ALONE) -> None:
    """Restore a training and the random states of this process; additional ranks keep theirs."""
    try:
        training.model.load_state_dict(content["model"])
        training.optimizer.load_state_dict(content["optimizer"])
        if training.ema is not None:
            training.ema.load_state_dict(content["ema"])
        training.scaler.load_state_dict(content["scaler"])
        training.step = int(content["step"])
        if shard.rank < len(content["random"]):
            set_random_states(content["random"][shard.rank], next(training.model.parameters()).device)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise AdvCAMError(
            "the checkpoint is of another net, or damaged; choose another folder to start over"
        ) from error


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the random states of torch (and of a GPU), NumPy and Python as tensors and numbers."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, numbers, following = random.getstate()
    return {
        "torch": torch.random.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss],
        "python": [version, list(numbers), following],
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the states returned by `random_states` for a device of the same kind."""
    torch.random.set_rng_state(states["torch"])
    for state in states["cuda"] if device.type == "cuda" else []:
        torch.cuda.set_rng_state(state, device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, following = states["python"]
    random.setstate((version, tuple(numbers), following))


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Restore the global random states after a block."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)
