"""Training of the seed classifier, a CAM net, on image labels.

In the output folder: ``training.json`` (what the training depends on), ``checkpoint.pt``, ``log.jsonl`` (a record a
step), ``validation.jsonl`` (a record an epoch), ``classifier.safetensors`` (the net), ``classifier.json`` (its scores).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.datasets import ClassificationDataset
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import classifier_train, classifier_val
from advcam_attr.files import write_json
from advcam_attr.metrics.classification import AveragePrecision
from advcam_attr.networks.cam_net import CAMNet, cam_net
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.generators import load_generator
from advcam_attr.networks.net_file import save_net
from advcam_attr.pipelines.training_report import VALIDATION, last_epoch, shard_logits, training_config
from advcam_attr.pipelines.wsss.config import ClassifierConfig, NetConfig
from advcam_attr.reading import read_json
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard, shard_of_launch
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Group
from advcam_attr.training.loading import Items
from advcam_attr.training.log import json_log
from advcam_attr.training.losses.classification import LOSSES, Loss
from advcam_attr.training.train import TrainingTask, check_batch, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: The net's file in its folder.
WEIGHTS = "classifier.safetensors"


@dataclass(frozen=True)
class ClassifierResult:
    """A trained classifier.

    Attributes:
        weights: the net's file.
        train_loss: mean over the last epoch.
        val_loss: None without validation images, as ``val_map``.
        val_map: mean average precision in [0, 1].
        val_ap: by class, None for classes without validation images; empty without validation.
    """

    weights: Path
    steps: int
    train_loss: float
    val_loss: float | None = None
    val_map: float | None = None
    val_ap: tuple[float | None, ...] = ()


def train_classifier(
    config: ClassifierConfig,
    net: CAMNet,
    train_data: SegmentationData,
    val_data: SegmentationData | None,
    out: Path,
    runtime: Runtime = Runtime(),
) -> ClassifierResult:
    """Train a CAM net on image labels, or resume its training.

    Under ``torchrun`` or ``srun``, all ranks share each batch; they need to see the same folder. A training on the CPU
    that is interrupted and resumed ends with the same bits.

    Args:
        net: trained in place; its mode and device are restored.
        val_data: images on which loss and average precision are measured after each epoch; None for none.

    Raises:
        AdvCAMError: The folder holds another training, there are fewer images than a batch, an image cannot be read,
            or the loss is not finite.
    """
    check_training(config, net, train_data, val_data)
    shard, val = shard_of_launch(), None if val_data is None else _labels_fingerprint(val_data)
    depends_on = training_config(config, net, runtime, train=_labels_fingerprint(train_data), val=val)
    loss, items = LOSSES[config.loss], training_items(train_data, config, net)
    per_epoch = len(items) // config.batch

    def validate(epoch: int) -> bool:
        if val_data is not None:
            measured = _validate(config, net, val_data, loss, shard, runtime.workers)
            if shard.rank == 0:
                step = epoch * per_epoch - 1
                with json_log(out / VALIDATION, step, runtime.logger) as log:
                    log.write({"step": step, "epoch": epoch, **measured})
            mean = "" if measured["val_map"] is None else f", mAP {100 * measured['val_map']:.1f}"
            logger.info(f"epoch {epoch}: validation loss {measured['val_loss']:.4f}{mean}")
        return False

    rest = [weights for name, weights in net.named_parameters() if not name.startswith("classifier.")]
    optimizer = config.optimizer
    task = TrainingTask(
        name="classifier",
        net=net,
        items=items,
        loss=anchored(loss, net, config.anchor) if config.anchor else loss,
        groups=[
            Group("backbone", rest, optimizer.lr, optimizer.weight_decay),
            Group("classifier", net.classifier.parameters(), optimizer.head_rate, optimizer.weight_decay),
        ],
        optimizer=optimizer,
        epochs=config.epochs,
        batch=config.batch,
        runtime=runtime,
        checkpoint_every=config.checkpoint_every,
        depends_on=depends_on,
        save=lambda file: save_net(file, net, train_data.classes),
        file=WEIGHTS,
        grad_accum=config.grad_accum,
        after_epoch=validate,
    )
    weights = train(task, out)
    load_weights(net, read_checkpoint(weights), net.spec.backbone.name)
    train_loss, last = last_epoch(out, task.all_steps - per_epoch, None if val_data is None else task.all_steps - 1)
    measures = last.get("val_loss"), last.get("val_map"), tuple(last.get("val_ap", ()))
    result = ClassifierResult(weights, task.all_steps, train_loss, *measures)
    if shard.rank == 0:
        _write_report(out / "classifier.json", result, depends_on, train_data.classes)
    return result


def training_items(data: SegmentationData, config: ClassifierConfig, net: CAMNet) -> Items:
    transform = classifier_train(config.crop, config.long_side, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def validation_items(data: SegmentationData, config: ClassifierConfig, net: CAMNet) -> Items:
    """Return the top left squares of images, and their labels."""
    transform = classifier_val(config.crop, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def anchored(loss: Loss, net: CAMNet, weight: float) -> Loss:
    """Add the squared distance of the classifier's weights from their present values, times ``weight``, to a loss."""
    start = net.classifier.weight.detach().clone()

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        now = net.classifier.weight
        return loss(logits, labels) + weight * (now - start.to(now.device)).square().sum()

    return total


def new_net(config: NetConfig, classes: Sequence[str], seed: int) -> CAMNet:
    """Return the net of a configuration, to train on these classes."""
    file, class_map = config.class_map, None
    if file is not None:
        class_map = read_class_map(Path(file), classes, config.class_offset)
    return cam_net(config.backbone, len(classes), seed=seed, class_map=class_map)


def new_generator(config: NetConfig) -> Any:
    """Return the authors' net that a configuration names."""
    if config.generator is None or config.backbone.checkpoint is None:
        raise AdvCAMError(f"net.generator {config.generator!r} needs its authors' file: give net.backbone.checkpoint")
    logger.info(f"loading {config.generator}'s net from {config.backbone.checkpoint}")
    return load_generator(config.generator, config.backbone.checkpoint)


def check_training(
    config: ClassifierConfig, net: CAMNet, train_data: SegmentationData, val_data: SegmentationData | None
) -> None:
    """Raise if a net cannot be trained on these images with this configuration."""
    check_batch(f"{train_data.name} {train_data.split}", len(train_data.samples), config.batch, config.grad_accum)
    for data in (train_data, val_data):
        if data is not None and len(data.classes) != net.spec.num_classes:
            raise AdvCAMError(
                f"the net has {net.spec.num_classes} classes, but {data.name} {data.split} has {len(data.classes)}"
            )
    if val_data is not None and not val_data.samples:
        raise AdvCAMError(f"{val_data.name} {val_data.split} has no images to validate on; leave it out")


def _labels_fingerprint(data: SegmentationData) -> str:
    lines = "".join(f"{sample.id} {sample.labels}\n" for sample in data.samples)
    digest = hashlib.sha256(lines.encode()).hexdigest()[:8]
    return f"{data.name} {data.split}, {len(data.samples)} images, {digest}"


@torch.no_grad()
def _validate(
    config: ClassifierConfig, net: CAMNet, data: SegmentationData, loss: Loss, shard: Shard, workers: int
) -> dict[str, Any]:
    """Return measures over all images, on every rank; the net is in training mode before and afterwards."""
    net.eval()
    mine, total = AveragePrecision(len(data.classes)), torch.zeros((), dtype=torch.float64)
    items = validation_items(data, config, net)
    for logits, labels in shard_logits(net, items, batch=config.batch, workers=workers, shard=shard):
        total += loss(logits, labels).double() * len(labels)
        mine.update(logits, labels)
    net.train()
    whole, losses = AveragePrecision(len(data.classes)), 0.0
    for scores, labels, part in gather((mine.scores, mine.labels, float(total))):
        whole.update(scores, labels)
        losses += part
    return {
        "val_loss": losses / len(data.samples),
        "val_map": _number(whole.mean()),
        "val_ap": [_number(value) for value in whole.per_class().tolist()],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_report(path: Path, result: ClassifierResult, config: dict[str, Any], classes: Sequence[str]) -> None:
    measures = {name: value for name, value in dataclasses.asdict(result).items() if name != "weights"}
    report = {"config": config, "classes": list(classes), "result": measures}
    try:
        if read_json(path) == json.loads(json.dumps(report)):
            return
    except (OSError, ValueError):
        pass
    write_json(path, report)
    logger.info(f"wrote {path}")
