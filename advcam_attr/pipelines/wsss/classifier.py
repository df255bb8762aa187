"""A data set's images and class labels in; a trained CAM net, with its log and its validation, out.

In the output folder: ``training.json`` (what the training depends on), ``checkpoint.pt`` (the training as it stands),
``log.jsonl`` (one record a step), ``validation.jsonl`` (one an epoch), and when all is done ``classifier.safetensors``
(the net) and ``classifier.json`` (settings and measures).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcam_attr.data.datasets import ClassificationDataset
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import classifier_train, classifier_val
from advcam_attr.files import write_json
from advcam_attr.metrics.classification import AveragePrecision
from advcam_attr.networks.cam_net import CAMNet
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.net_file import save_net
from advcam_attr.registry import lookup
from advcam_attr.runs.provenance import require_same, weights_digest
from advcam_attr.runs.runtime import Autocast, Runtime
from advcam_attr.runs.sharding import Shard, shard_of_launch
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import RELEASED_MOMENTUM, Group, Optimizer
from advcam_attr.training.loading import Items, load_batches
from advcam_attr.training.log import json_log, read_log
from advcam_attr.training.losses.classification import LOSSES, Loss
from advcam_attr.training.train import TrainingTask
from advcam_attr.training.train import train as train_net
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


#: The net's file in its folder.
WEIGHTS = "classifier.safetensors"

_VALIDATION = "validation.jsonl"


@dataclass(frozen=True)
class ClassifierResult:
    """A trained classifier.

    Attributes:
        weights: the net's file; `advcam_attr.networks.net_file.load_net` reads it.
        steps: updates, in all.
        train_loss: the mean over the last epoch.
        val_loss: None without validation images.
        val_map: mean average precision in [0, 1]; None without validation images.
        val_ap: by class, None for classes that no validation image shows; empty without validation images.
    """

    weights: Path
    steps: int
    train_loss: float
    val_loss: float | None = None
    val_map: float | None = None
    val_ap: tuple[float | None, ...] = ()


def train_classifier(
    settings: ClassifierSettings,
    net: CAMNet,
    train: SegmentationData,
    val: SegmentationData | None,
    out: Path,
) -> ClassifierResult:
    """Train a CAM net on image labels, or go on with a training that was interrupted.

    Under ``torchrun`` or ``srun``, all ranks share each batch; they need to see the same folder. What the folder holds
    of the same training is not done again. Killed at any moment, a training on the CPU ends with the same bits.

    Args:
        settings: how.
        net: trained in place; its mode and device are as before afterwards.
        train: the images and labels; masks are not read.
        val: the images that loss and average precision are measured on after each epoch.
        out: the folder.

    Raises:
        AdvCAMError: the folder holds another training (the difference is told), there are fewer images than one
            batch, an image cannot be read, the loss is not finite, or a file cannot be written.

    Example:
        >>> net = cam_net("torchvision/resnet50", 20)  # doctest: +SKIP
        >>> train_classifier(ClassifierSettings(), net, train, val, Path("run/classifier"))  # doctest: +SKIP
    """
    check_training(settings, net, train, val)
    report, config = out / "classifier.json", described(settings, net, train, val)
    if not settings.overwrite:
        _reported(report, config)  # one of other settings is refused before anything is written
    shard = shard_of_launch()
    loss, items = LOSSES[settings.loss], training_items(train, settings, net)
    per_epoch = len(items) // settings.batch

    def validate(epoch: int) -> bool:
        if val is not None:
            measured = _validated(settings, net, val, loss, shard)
            if shard.rank == 0:
                step, board = epoch * per_epoch - 1, out / "tensorboard" / "validation"
                with json_log(out / _VALIDATION, step, board if settings.tensorboard else None) as log:
                    log.write({"step": step, "epoch": epoch, **measured})
            mean = "" if measured["val_map"] is None else f", mAP {100 * measured['val_map']:.1f}"
            logger.info(f"epoch {epoch}: validation loss {measured['val_loss']:.4f}{mean}")
        return False

    def save(file: Path) -> None:
        report.unlink(missing_ok=True)  # it tells of other weights
        save_net(file, net, train.classes)

    rest = [weights for name, weights in net.named_parameters() if not name.startswith("classifier.")]
    task = TrainingTask(
        name="classifier",
        net=net,
        items=items,
        loss=anchored(loss, net, settings.anchor) if settings.anchor else loss,
        groups=[
            Group("backbone", rest, settings.backbone_lr, settings.weight_decay),
            Group("classifier", net.classifier.parameters(), settings.classifier_lr, settings.weight_decay),
        ],
        optimizer=settings.optimizer,
        epochs=settings.epochs,
        batch=settings.batch,
        runtime=settings.runtime,
        checkpoint_every=settings.checkpoint_every,
        depends_on=config,
        save=save,
        file=WEIGHTS,
        grad_accum=settings.grad_accum,
        after_epoch=validate,
        tensorboard=settings.tensorboard,
    )
    weights = train_net(task, out)
    load_weights(net, read_checkpoint(weights), net.spec.backbone.name)
    result = _reported(report, config)
    if result is None:
        result = _measured(task, weights, validated=val is not None)
        if shard.rank == 0:
            told = {key: value for key, value in dataclasses.asdict(result).items() if key != "weights"}
            write_json(report, {"config": config, "classes": list(train.classes), "result": told})
            logger.info(f"wrote {report}")
    return result


def training_items(data: SegmentationData, settings: ClassifierSettings, net: CAMNet) -> Items:
    """Augmented images and their labels."""
    transform = classifier_train(settings.crop, settings.long_side, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def validation_items(data: SegmentationData, settings: ClassifierSettings, net: CAMNet) -> Items:
    """Images, their top left squares, and their labels."""
    transform = classifier_val(settings.crop, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def anchored(loss: Loss, net: CAMNet, weight: float) -> Loss:
    """A loss, and how far the classifier's weights are from those that they are now, squared, times a weight."""
    start = net.classifier.weight.detach().clone()

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        now = net.classifier.weight
        return loss(logits, labels) + weight * (now - start.to(now.device)).square().sum()

    return total


@torch.no_grad()
def _validated(
    settings: ClassifierSettings, net: CAMNet, data: SegmentationData, loss: Loss, shard: Shard
) -> dict[str, Any]:
    """Measures over all images, on every rank; the net is in training mode before and afterwards."""
    net.eval()
    device = next(net.parameters()).device
    mine, total = AveragePrecision(len(data.classes)), torch.zeros((), dtype=torch.float64)
    share = shard.take(range(len(data.samples)))
    order = [[(0, index) for index in share[i : i + settings.batch]] for i in range(0, len(share), settings.batch)]
    items, pin = validation_items(data, settings, net), device.type == "cuda"
    for images, labels in load_batches(items, order, seed=settings.seed, workers=settings.workers, pin=pin):
        logits = net(images.to(device)).float().cpu()
        total += loss(logits, labels).double() * len(images)
        mine.update(logits, labels)
    net.train()
    whole, losses = AveragePrecision(len(data.classes)), 0.0
    for scores, labels, lost in gather((mine.scores, mine.labels, float(total))):
        whole.update(scores, labels)
        losses += lost
    return {
        "val_loss": losses / len(data.samples),
        "val_map": _number(whole.mean()),
        "val_ap": [_number(value) for value in whole.per_class().tolist()],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _reported(report: Path, config: Mapping[str, Any]) -> ClassifierResult | None:
    """What the report of a finished training says of it; None where there is no report.

    Raises:
        AdvCAMError: it is damaged, or of another training.
    """
    if not report.is_file():
        return None
    try:
        record = json.loads(report.read_text(encoding="utf-8"))
        made_with, result = record["config"], record["result"]
        found = ClassifierResult(report.parent / WEIGHTS, **{**result, "val_ap": tuple(result["val_ap"])})
    except (ValueError, KeyError, TypeError) as error:
        raise AdvCAMError(f"{report} is damaged; remove it, and it is made anew from the logs") from error
    require_same(report, made_with, config, "overwrite")
    return found


def _measured(task: TrainingTask, weights: Path, *, validated: bool) -> ClassifierResult:
    """What the logs beside the weights say of the last epoch."""
    first = task.all_steps - task.per_epoch
    losses = [record["loss"] for record in read_log(weights.parent / "log.jsonl") if record["step"] >= first]
    train_loss = math.fsum(losses) / len(losses) if losses else math.nan
    epochs = read_log(weights.parent / _VALIDATION) if validated else []
    last = next((record for record in epochs if record["epoch"] == task.epochs), {})
    return ClassifierResult(
        weights, task.all_steps, train_loss, last.get("val_loss"), last.get("val_map"), tuple(last.get("val_ap", ()))
    )


@dataclass(frozen=True)
class ClassifierSettings:
    """How a seed classifier is trained. The defaults are IRN's for VOC and COCO, which AdvCAM follows.

    Attributes:
        epochs: 5; the rest of an epoch that fills no batch is dropped.
        batch: 16 images an update, whatever the number of ranks and parts.
        crop: 512 pixels, the side of the square that is cut or padded.
        long_side: 320 to 640 pixels, the range of the random size before that.
        backbone_lr: 0.1, of all weights but the classifier's.
        classifier_lr: 1.0, of the new 1 × 1 convolution.
        weight_decay: 1e-4, of all weights.
        anchor: the weight of the squared distance of the classifier's weights from those that they start with, which
            is added to the loss (L2-SP of Li et al., 2018). 0 in IRN; for few images, and a start from known classes.
        momentum: 1e-4. The released optimiser passes the weight decay in the place of the momentum, and the learning
            rates fit that; with 0.9 they would be about ten times too high.
        power: 0.9, of the poly schedule.
        loss: sigmoid cross-entropy, the mean over classes and images.
        autocast: precision of the forward pass; None for float32 as in IRN.
        grad_accum: in how many parts a batch goes through the net, to save memory.
        seed: of order, augmentation and dropout.
        workers: processes that read images; the result does not depend on it.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tensorboard: whether TensorBoard's files are written too, to the folder ``tensorboard``.
        overwrite: train anew where the folder holds a training of other settings.
    """

    epochs: int = 5
    batch: int = 16
    crop: int = 512
    long_side: tuple[int, int] = (320, 640)
    backbone_lr: float = 0.1
    classifier_lr: float = 1.0
    weight_decay: float = 1e-4
    anchor: float = 0.0
    momentum: float = RELEASED_MOMENTUM
    power: float = 0.9
    loss: str = "multilabel_soft_margin"
    autocast: Autocast | None = None
    grad_accum: int = 1
    seed: int = 0
    workers: int = 4
    checkpoint_every: int = 200
    device: str = "auto"
    tensorboard: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            AdvCAMError: with what would do.
        """
        for name in ("epochs", "batch", "crop", "grad_accum", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("backbone_lr", "classifier_lr", "weight_decay", "anchor", "momentum", "power", "workers", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        lookup(self.loss, LOSSES, "loss")

    @property
    def optimizer(self) -> Optimizer:
        """The settings of SGD."""
        return Optimizer(self.backbone_lr, self.classifier_lr, self.weight_decay, self.momentum, self.power)

    @property
    def runtime(self) -> Runtime:
        """The settings of execution."""
        return Runtime(self.device, self.workers, self.autocast, seed=self.seed, overwrite=self.overwrite)


#: Settings that change nothing about the result, so a training may go on with others.
_FREE = ("workers", "checkpoint_every", "device", "tensorboard", "overwrite")


def check_training(
    settings: ClassifierSettings, net: CAMNet, train: SegmentationData, val: SegmentationData | None
) -> None:
    """That a training can be begun with these settings, net and data.

    Raises:
        AdvCAMError: it cannot, and why.
    """
    count = len(train.samples)
    if count < settings.batch:
        raise AdvCAMError(
            f"{train.name} {train.split} has {count} images, fewer than one batch of {settings.batch}; "
            "choose a smaller batch"
        )
    for data in (train, val):
        if data is not None and len(data.classes) != net.spec.num_classes:
            raise AdvCAMError(
                f"the net has {net.spec.num_classes} classes, but {data.name} {data.split} has {len(data.classes)}"
            )
    if val is not None and not val.samples:
        raise AdvCAMError(f"{val.name} {val.split} has no images to validate on; leave it out")


def described(
    settings: ClassifierSettings, net: CAMNet, train: SegmentationData, val: SegmentationData | None
) -> dict[str, Any]:
    """All that a training depends on, as JSON gives it back."""
    config = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _FREE}
    config |= dataclasses.asdict(net.spec) | {"mean": net.mean, "std": net.std, "initial_weights": weights_digest(net)}
    for name, data in (("train", train), ("val", val)):
        config[name] = (
            None if data is None else f"{data.name} {data.split}, {len(data.samples)} images, {_labels(data)}"
        )
    loaded: dict[str, Any] = json.loads(json.dumps(config))
    return loaded


def _labels(data: SegmentationData) -> str:
    """What tells a list of images and labels from others."""
    lines = "".join(f"{sample.id} {sample.labels}\n" for sample in data.samples)
    return hashlib.sha256(lines.encode()).hexdigest()[:8]
