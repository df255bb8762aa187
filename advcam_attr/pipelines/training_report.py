"""Shared parts of trainings: their configuration, sharded scoring, and the measures of the last epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import to_json
from advcam_attr.runs.provenance import fingerprint, net_config
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard
from advcam_attr.training.loading import Items, load_batches
from advcam_attr.training.log import read_log

#: The log of the validations beside a net.
VALIDATION = "validation.jsonl"

#: Settings that do not change the result, or that the net's own description has.
_IGNORED = {"backbone", "checkpoint_every"}


def training_config(settings: Any, net: nn.Module, runtime: Runtime, **data: Any) -> dict[str, Any]:
    """Return all that the result of a training depends on, as JSON; ``data`` are fingerprints of the data sets."""
    chosen = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _IGNORED}
    about = net_config(net, net.spec)
    about["initial_weights"] = about.pop("weights")
    return to_json({**chosen, **about, "seed": runtime.seed, "autocast": runtime.autocast, **data})


def mask_training_config(
    settings: Any, names: Iterable[str], net: nn.Module, runtime: Runtime, data: SegmentationData, **digests: str
) -> dict[str, Any]:
    """Return all that a training on label maps depends on: the settings of these names, net, images and label maps."""
    chosen = dataclasses.asdict(settings)
    about: dict[str, Any] = {"seed": runtime.seed, "autocast": runtime.autocast}
    about |= {"data": f"{data.name} {data.split}", "images": fingerprint(data), **digests}
    return to_json({**{name: chosen[name] for name in names}, **net_config(net, net.spec), **about})


@torch.no_grad()
def shard_logits(
    net: nn.Module, items: Items, *, batch: int, workers: int, shard: Shard
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float32 logits and labels, on the CPU, of a rank's share of items; the net must be in eval mode."""
    mine = shard.take(range(len(items)))
    order = [[(0, index) for index in mine[i : i + batch]] for i in range(0, len(mine), batch)]
    device = next(net.parameters()).device
    for images, labels in load_batches(items, order, seed=0, workers=workers, pin=device.type == "cuda"):
        yield net(images.to(device)).float().cpu(), labels


def last_epoch(folder: Path, first_step: int, step: int | None) -> tuple[float, dict[str, Any]]:
    """Return the mean training loss since ``first_step``, and the validation record of ``step``, if any."""
    losses = [record["loss"] for record in read_log(folder / "log.jsonl") if record["step"] >= first_step]
    records = [] if step is None else read_log(folder / VALIDATION)
    last = next((record for record in records if record["step"] == step), {})
    return math.fsum(losses) / len(losses) if losses else math.nan, last
