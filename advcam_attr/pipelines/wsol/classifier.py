"""Images of one class each in; a trained classifier for localization, with its validation after every epoch, out.

In the output folder: ``training.json`` (what the training depends on), ``checkpoint.pt`` (the training as it stands),
``log.jsonl`` (one record a step), ``validation.jsonl`` (one an epoch), and when all is done ``classifier.safetensors``,
the last weights: Choe et al. recommend them over those that localize best on the validation split.
"""

from __future__ import annotations

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
from advcam_attr.data.shards import ShardData
from advcam_attr.data.transforms import wsol_eval, wsol_train
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.net_file import save_net
from advcam_attr.networks.wsol_parts import WSOLNet, parameter_groups
from advcam_attr.pipelines.wsol.config import SETTINGS, WSOLClassifierSettings, WSOLData, described
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import ALONE, Shard, choose_device, shard_of_launch
from advcam_attr.training.distributed import gather, share_buffers
from advcam_attr.training.fit import Group, Optimizer, step_decay
from advcam_attr.training.loading import Items, load_batches, mixed_seed
from advcam_attr.training.log import json_log, read_log
from advcam_attr.training.train import Batch, TrainingTask, as_found, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


__all__ = ["SETTINGS", "WSOLClassifierResult", "WSOLClassifierSettings", "predicted_labels", "train_wsol_classifier"]

#: The net's file in its folder.
WEIGHTS = "classifier.safetensors"

_VALIDATION = "validation.jsonl"


@dataclass(frozen=True)
class WSOLClassifierResult:
    """A trained classifier.

    Attributes:
        weights: the net's file; `advcam_attr.networks.wsol.load_wsol_net` reads it.
        train_loss: the mean over the last epoch.
        val_loss: after the last epoch; None without validation images.
        val_top1: how many validation images are classified rightly, in [0, 1]; None without validation images.
    """

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
) -> WSOLClassifierResult:
    """Train a classifier on image labels, or go on with a training that was interrupted.

    Cross-entropy, SGD with Nesterov's momentum, and rates that fall in steps; with CutMix where the settings say so.
    Under ``torchrun`` or ``srun``, all ranks share each batch; norms that use the batch then see their rank's part of
    it, and the first rank's running statistics are kept. Killed at any moment, a training on the CPU ends with the same
    bits.

    Args:
        settings: how.
        net: from `WSOLClassifierSettings.make_net`; trained in place, its mode and device are as before afterwards.
        train_data: images and labels; boxes are not read.
        val_data: the images that loss and top-1 accuracy are measured on after each epoch.
        out: the folder.

    Raises:
        AdvCAMError: the folder holds another training (the difference is told), there are fewer images than one
            batch, an image cannot be read, the loss is not finite, or a file cannot be written.

    Example:
        >>> settings = SETTINGS["cub_resnet50_cam"]  # doctest: +SKIP
        >>> net = settings.make_net(200)  # doctest: +SKIP
        >>> train_wsol_classifier(settings, net, train, None, Path("run/classifier"))  # doctest: +SKIP
    """
    for data in (train_data, val_data):
        if data is not None and len(data.classes) != net.spec.num_classes:
            raise AdvCAMError(
                f"the net has {net.spec.num_classes} classes, but {data.name} {data.split} has {len(data.classes)}"
            )
    shard = shard_of_launch()
    items = wsol_items(train_data, wsol_train(settings.resize, settings.crop, net.mean, net.std))
    per_epoch = max(len(items) // settings.batch, 1)

    def mix(batches: Iterator[Batch], first: int) -> Iterator[Batch]:
        seeds = (
            (mixed_seed(settings.seed, 1, step), mixed_seed(settings.seed, 2, step, shard.rank))
            for step in itertools.count(first)
        )
        return mixed_batches(batches, net.spec.num_classes, settings.cutmix, seeds)

    def validate(epoch: int) -> bool:
        if val_data is not None:
            share_buffers(net)
            found = _validated(settings, net, val_data, shard)
            if shard.rank == 0:
                with json_log(out / _VALIDATION, epoch) as log:
                    log.write({"step": epoch, "val_loss": found[0], "val_top1": found[1]})
            logger.info(f"epoch {epoch}: validation loss {found[0]:.4f}, top-1 {100 * found[1]:.1f}")
        return False

    slow, fast = parameter_groups(net)
    task = TrainingTask(
        name="classifier",
        net=net,
        items=items,
        loss=F.cross_entropy,
        groups=[
            Group("slow", slow, settings.lr, settings.weight_decay),
            Group("fast", fast, settings.lr * settings.fast_ratio, settings.weight_decay),
        ],
        optimizer=Optimizer(
            settings.lr, settings.lr * settings.fast_ratio, settings.weight_decay, settings.momentum, nesterov=True
        ),
        epochs=settings.epochs,
        batch=settings.batch,
        runtime=Runtime(
            settings.device, settings.workers, settings.autocast, seed=settings.seed, overwrite=settings.overwrite
        ),
        checkpoint_every=settings.checkpoint_every,
        depends_on=described(settings, net, train_data, val_data),
        save=lambda file: save_net(file, net, train_data.classes),
        file=WEIGHTS,
        after_epoch=validate,
        schedule=step_decay(per_epoch, settings.decay_every),
        prepare=mix,
    )
    weights = train(task, out)
    load_weights(net, read_checkpoint(weights), net.spec.backbone.name)
    return _result(weights, per_epoch * (settings.epochs - 1), settings.epochs if val_data is not None else None)


def wsol_items(data: WSOLData, transform: Callable[..., Tensor]) -> Items:
    """The inputs and labels of a data set, wherever its images are."""
    if isinstance(data, ShardData):
        return ShardDataset(data, transform)
    return SingleLabelDataset(data.samples, len(data.classes), transform)


@torch.no_grad()
def predicted_labels(
    net: WSOLNet, data: WSOLData, *, size: int = 224, batch: int = 32, workers: int = 0, device: str = "auto"
) -> Tensor:
    """The class that a net gives the highest score, for the whole image as it is.

    Args:
        net: its mode and device are as before afterwards.
        data: the images.
        size: of the square that they are resized to.
        batch: images at a time.
        workers: processes that read images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        ``(N,)`` int64, in the order of the data.

    Raises:
        AdvCAMError: an image cannot be read.

    Example:
        >>> labels = predicted_labels(net, data)  # doctest: +SKIP
        >>> (labels == torch.tensor([s.labels[0] for s in data.samples])).float().mean()  # doctest: +SKIP
    """
    with as_found(net):
        net.to(choose_device(device)).eval()
        found = [logits.argmax(1) for logits, _ in _scored(net, data, size, batch, workers, ALONE)]
    return torch.cat(found)


def _scored(
    net: WSOLNet, data: WSOLData, size: int, batch: int, workers: int, shard: Shard
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``(N, K)`` and labels ``(N,)`` of a rank's share of images, on the CPU; the net is in eval mode."""
    items = wsol_items(data, wsol_eval(size, net.mean, net.std))
    mine = shard.take(range(len(items)))
    order = [[(0, index) for index in mine[i : i + batch]] for i in range(0, len(mine), batch)]
    device = next(net.parameters()).device
    for images, labels in load_batches(items, order, seed=0, workers=workers, pin=device.type == "cuda"):
        yield net(images.to(device)).float().cpu(), labels


@torch.no_grad()
def _validated(settings: WSOLClassifierSettings, net: WSOLNet, data: WSOLData, shard: Shard) -> tuple[float, float]:
    """Loss and top-1 accuracy over all images, on every rank; the net is in training mode before and afterwards."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    for logits, labels in _scored(net, data, settings.crop, settings.batch, settings.workers, shard):
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    net.train()
    losses, rights, counts = zip(*gather((loss, right, count)), strict=True)
    return math.fsum(losses) / sum(counts), sum(rights) / sum(counts)


def _result(weights: Path, first: int, epoch: int | None) -> WSOLClassifierResult:
    """What the logs say of the last epoch: its first step is given, and if it was validated, its number."""
    losses = [record["loss"] for record in read_log(weights.parent / "log.jsonl") if record["step"] >= first]
    measured = [record for record in read_log(weights.parent / _VALIDATION) if record["step"] == epoch]
    last = measured[-1] if measured else {}
    mean = math.fsum(losses) / len(losses) if losses else math.nan
    return WSOLClassifierResult(weights, mean, last.get("val_loss"), last.get("val_top1"))
