"""Training and validation of localization classifiers.

The output folder holds ``training.json`` (what the training depends on), ``checkpoint.pt``, ``log.jsonl`` (a record per
step), ``validation.jsonl`` (one per epoch), and in the end ``classifier.safetensors``, the last weights: Choe et al.
recommend them over those that localize best on the validation split.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.cutmix import mixed_batches
from advcam_attr.data.datasets import ShardDataset, SingleLabelDataset
from advcam_attr.data.samples import LocalizationData
from advcam_attr.data.shards import ShardData
from advcam_attr.data.transforms import wsol_eval, wsol_train
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.net_file import save_net
from advcam_attr.networks.wsol_parts import WSOLNet, parameter_groups
from advcam_attr.pipelines.training_report import VALIDATION, last_epoch, shard_logits, training_config
from advcam_attr.pipelines.wsol.config import WSOLClassifierSettings
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import ALONE, shard_of_launch
from advcam_attr.training.distributed import gather, share_buffers
from advcam_attr.training.fit import Group, step_decay
from advcam_attr.training.loading import Items, mixed_seed
from advcam_attr.training.log import json_log
from advcam_attr.training.train import Batch, TrainingTask, as_found, check_batch, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: Training images, in folders or in shards.
WSOLData = LocalizationData | ShardData

#: The net's file in its folder.
WEIGHTS = "classifier.safetensors"


@dataclass(frozen=True)
class WSOLClassifierResult:
    """The file of a trained net, and the measures of its last epoch; those of validation are None without images."""

    weights: Path
    train_loss: float
    val_loss: float | None
    val_top1: float | None


def train_wsol_classifier(
    settings: WSOLClassifierSettings,
    net: WSOLNet,
    train_data: WSOLData,
    val_data: WSOLData | None,
    out: Path,
    runtime: Runtime,
) -> WSOLClassifierResult:
    """Train a classifier on image labels; an interrupted training resumes, on the CPU with the same bits.

    Cross-entropy, SGD with Nesterov momentum, step decay, and optionally CutMix. Under ``torchrun`` or ``srun``, all
    ranks share each batch; batch norms see their rank's part of it, and the first rank's running statistics are saved.

    Args:
        settings: of the training.
        net: from `WSOLClassifierSettings.make_net`; trained in place, its mode and device are restored.
        train_data: images and labels; boxes are ignored.
        val_data: for loss and top-1 accuracy after each epoch.
        out: folder.
        runtime: device, workers, precision and seed.

    Raises:
        AdvCAMError: the folder holds another training, or data, batch and net do not fit.
    """
    check_training(settings, net, train_data, val_data)
    shard = shard_of_launch()
    items = wsol_items(train_data, wsol_train(settings.resize, settings.crop, net.mean, net.std))
    per_epoch = max(len(items) // settings.batch, 1)

    def mix(batches: Iterator[Batch], first: int) -> Iterator[Batch]:
        seeds = (
            (mixed_seed(runtime.seed, 1, step), mixed_seed(runtime.seed, 2, step, shard.rank))
            for step in itertools.count(first)
        )
        return mixed_batches(batches, net.spec.num_classes, settings.cutmix, seeds)

    def validate(epoch: int) -> bool:
        if val_data is not None:
            share_buffers(net)
            loss, top1 = _validate(settings, net, val_data, runtime.workers)
            if shard.rank == 0:
                with json_log(out / VALIDATION, epoch, runtime.logger) as log:
                    log.write({"step": epoch, "val_loss": loss, "val_top1": top1})
            logger.info(f"epoch {epoch}: validation loss {loss:.4f}, top-1 {100 * top1:.1f}")
        return False

    slow, fast = parameter_groups(net)
    optimizer = settings.optimizer
    splits = {"train": train_data, "val": val_data}
    prints = {name: None if data is None else wsol_data_fingerprint(data) for name, data in splits.items()}
    task = TrainingTask(
        name="classifier",
        net=net,
        items=items,
        loss=F.cross_entropy,
        groups=[
            Group("slow", slow, optimizer.lr, optimizer.weight_decay),
            Group("fast", fast, optimizer.head_rate, optimizer.weight_decay),
        ],
        optimizer=optimizer,
        epochs=settings.epochs,
        batch=settings.batch,
        runtime=runtime,
        checkpoint_every=settings.checkpoint_every,
        depends_on=training_config(settings, net, runtime, **prints),
        save=lambda file: save_net(file, net, train_data.classes),
        file=WEIGHTS,
        after_epoch=validate,
        schedule=step_decay(per_epoch, settings.decay_every),
        prepare=mix,
    )
    weights = train(task, out)
    load_weights(net, read_checkpoint(weights), net.spec.backbone.name)
    validated = settings.epochs if val_data is not None else None
    loss, last = last_epoch(out, per_epoch * (settings.epochs - 1), validated)
    return WSOLClassifierResult(weights, loss, last.get("val_loss"), last.get("val_top1"))


def check_training(
    settings: WSOLClassifierSettings, net: WSOLNet, train_data: WSOLData, val_data: WSOLData | None
) -> None:
    """Raise if a net cannot be trained on these images with these settings."""
    for data in (train_data, val_data):
        if data is not None and len(data.classes) != net.spec.num_classes:
            raise AdvCAMError(
                f"the net has {net.spec.num_classes} classes, but {data.name} {data.split} has {len(data.classes)}"
            )
    check_batch(f"{train_data.name} {train_data.split}", size_of(train_data), settings.batch)


def size_of(data: WSOLData) -> int:
    """Return the number of images."""
    return len(data) if isinstance(data, ShardData) else len(data.samples)


def wsol_data_fingerprint(data: WSOLData) -> str:
    """Return name, split, number of images, and a digest of ids and labels."""
    if isinstance(data, ShardData):
        count, parts = len(data), [part.tobytes() for part in (data.shard, data.span, data.labels)]
    else:
        count, parts = len(data.samples), [f"{sample.id} {sample.labels}\n".encode() for sample in data.samples]
    return f"{data.name} {data.split}, {count} images, {hashlib.sha256(b''.join(parts)).hexdigest()[:8]}"


def wsol_items(data: WSOLData, transform: Callable[..., Tensor]) -> Items:
    if isinstance(data, ShardData):
        return ShardDataset(data, transform)
    return SingleLabelDataset(data.samples, len(data.classes), transform)


@torch.no_grad()
def predicted_labels(net: WSOLNet, data: WSOLData, runtime: Runtime, *, size: int = 224, batch: int = 32) -> Tensor:
    """Predict the class, ``(N,)`` int64, of each image, resized to a square of ``size`` pixels."""
    items = wsol_items(data, wsol_eval(size, net.mean, net.std))
    with as_found(net):
        net.to(runtime.torch_device()).eval()
        logits = shard_logits(net, items, batch=batch, workers=runtime.workers, shard=ALONE)
        return torch.cat([scores.argmax(1) for scores, _ in logits])


def _validate(settings: WSOLClassifierSettings, net: WSOLNet, data: WSOLData, workers: int) -> tuple[float, float]:
    """Return loss and top-1 accuracy over all images, on every rank."""
    net.eval()
    items, shard = wsol_items(data, wsol_eval(settings.crop, net.mean, net.std)), shard_of_launch()
    loss, right, count = 0.0, 0, 0
    for logits, labels in shard_logits(net, items, batch=settings.batch, workers=workers, shard=shard):
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    net.train()
    losses, rights, counts = zip(*gather((loss, right, count)), strict=True)
    return math.fsum(losses) / sum(counts), sum(rights) / sum(counts)
