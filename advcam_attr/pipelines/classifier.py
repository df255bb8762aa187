"""A data set's images and class labels in; a trained CAM net, with its log and its validation, out.

In the output folder: ``checkpoint.pt`` (the training as it stands), ``log.jsonl`` (one record a step, and one an
epoch), and when all is done ``classifier.safetensors`` (the net) and ``classifier.json`` (settings and measures).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from advcam_attr.data.classification import ClassificationDataset
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.transforms import classifier_train, classifier_val
from advcam_attr.engine.checkpoints import own_randomness, read_training, restore, save_checkpoint
from advcam_attr.engine.devices import choose_device
from advcam_attr.engine.distributed import gather, process_group
from advcam_attr.engine.fit import Training, fit, loss_scaler
from advcam_attr.engine.loading import Items, TrainingBatches, load_batches, mixed_seed
from advcam_attr.engine.log import Log, json_log, read_log, tensorboard_log
from advcam_attr.engine.losses import LOSSES
from advcam_attr.engine.optimiser import Group, sgd
from advcam_attr.engine.schedules import poly
from advcam_attr.engine.sharding import Shard, shard_of_launch
from advcam_attr.files import make_folder, remove_leftovers, write_json
from advcam_attr.metrics.classification import AveragePrecision
from advcam_attr.networks.cam_file import save_cam_net
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.resnet_cam import CAMNet
from advcam_attr.pipelines.classifier_settings import ClassifierSettings, check_training, described
from advcam_attr.pipelines.folder import require_same
from advcam_attr.types import AdvCAMError

__all__ = ["ClassifierResult", "ClassifierSettings", "train_classifier"]


@dataclass(frozen=True)
class ClassifierResult:
    """A trained classifier.

    Attributes:
        weights: the net's file; `advcam_attr.networks.cam_file.load_cam_net` reads it.
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
    tell: Callable[[str], None] = lambda line: None,
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
        tell: is told what is going on, line by line, on the first rank.

    Raises:
        AdvCAMError: the folder holds another training (the difference is told), there are fewer images than one
            batch, an image cannot be read, the loss is not finite, or a file cannot be written.

    Example:
        >>> net = cam_net("torchvision/resnet50", 20)  # doctest: +SKIP
        >>> train_classifier(ClassifierSettings(), net, train, val, Path("run/classifier"), print)  # doctest: +SKIP
    """
    shard = shard_of_launch()
    device = choose_device(settings.device, shard.local)
    check_training(settings, net, train, val, shard)
    modes = [(module, module.training) for module in net.modules()]
    home = next(net.parameters()).device
    with own_randomness(device), process_group(shard, device):
        try:
            return _Run(settings, net, train, val, out, shard, device, tell if shard.rank == 0 else _silent).result()
        finally:
            net.to(home)
            for module, training in modes:
                module.training = training


def _silent(line: str) -> None:
    pass


class _Run:
    """One call of `train_classifier` on one rank."""

    def __init__(
        self,
        settings: ClassifierSettings,
        net: CAMNet,
        train: SegmentationData,
        val: SegmentationData | None,
        out: Path,
        shard: Shard,
        device: torch.device,
        tell: Callable[[str], None],
    ) -> None:
        self.settings, self.net, self.train, self.val, self.out = settings, net, train, val, out
        self.shard, self.device, self.tell = shard, device, tell
        self.config = described(settings, net, train, val)
        self.per_epoch = len(train.samples) // settings.batch
        self.steps = self.per_epoch * settings.epochs
        self.loss = LOSSES[settings.loss]
        self.start = net.classifier.weight.detach().clone()
        self.weights, self.report = out / "classifier.safetensors", out / "classifier.json"
        self.checkpoint = out / "checkpoint.pt"

    def result(self) -> ClassifierResult:
        """What is there already, or the training."""
        make_folder(self.out)
        done = self._done()
        stored = read_training(self.checkpoint) if done is None and self.checkpoint.is_file() else None
        if stored is not None:
            require_same(self.checkpoint, stored["config"], self.config, "remove it")
        seen = gather((done is not None, stored["step"] if stored else 0))
        if len(set(seen)) > 1:
            raise AdvCAMError(
                f"the ranks see different files in {self.out}; it must be a folder that all of them share"
            )
        if done is not None:
            self.tell(f"{self.report} is there: nothing to do")
            load_weights(self.net, read_checkpoint(self.weights), self.net.spec.backbone)
            return done
        if self.shard.rank == 0:
            remove_leftovers(self.out)
        training = self._start(stored)
        with self._logs(training.step) as logs:
            measured = self._train(training, logs)
        return self._finish(measured)

    def _done(self) -> ClassifierResult | None:
        if not (self.report.is_file() and self.weights.is_file()):
            return None
        try:
            record = json.loads(self.report.read_text(encoding="utf-8"))
            config, result = record["config"], record["result"]
            result = ClassifierResult(self.weights, **{**result, "val_ap": tuple(result["val_ap"])})
        except (ValueError, KeyError, TypeError) as error:
            raise AdvCAMError(f"{self.report} is damaged; remove it to train anew") from error
        require_same(self.report, config, self.config, "remove it")
        return result

    def _start(self, stored: Mapping[str, Any] | None) -> Training:
        s = self.settings
        torch.manual_seed(mixed_seed(s.seed, self.shard.rank))
        self.net.to(self.device).train()
        head = self.net.classifier
        rest = [p for name, p in self.net.named_parameters() if not name.startswith("classifier.")]
        optimiser = sgd(
            [
                Group("backbone", rest, s.backbone_lr, s.weight_decay),
                Group("classifier", head.parameters(), s.classifier_lr, s.weight_decay),
            ],
            s.momentum,
        )
        training = Training(self.net, optimiser, loss_scaler(s.precision, self.device.type))
        self.tell(
            f"training on {len(self.train.samples)} images of {self.train.name} {self.train.split}: {s.epochs} epochs, "
            f"{self.steps} steps of {s.batch} images, on {self.shard.world} x {self.device.type}"
        )
        if stored is not None:
            restore(training, stored, self.shard)
            self.tell(f"going on from step {training.step} of {self.checkpoint}")
        return training

    @contextmanager
    def _logs(self, step: int) -> Iterator[list[Log]]:
        with ExitStack() as stack:
            logs: list[Log] = []
            if self.shard.rank == 0:
                logs.append(stack.enter_context(json_log(self.out / "log.jsonl", step)))
                if self.settings.tensorboard:
                    logs.append(stack.enter_context(tensorboard_log(self.out / "tensorboard", step)))
            yield logs

    def _train(self, training: Training, logs: list[Log]) -> dict[str, Any]:
        s = self.settings
        steps = (training.step, self.steps)
        order = TrainingBatches(len(self.train.samples), s.batch, seed=s.seed, steps=steps, shard=self.shard)
        batches = self._read(training_items(self.train, s, self.net), order)
        records = fit(
            training,
            batches,
            self._anchored if s.anchor else self.loss,
            poly(self.steps, s.power),
            precision=s.precision,
            accumulate=s.accumulate,
            replica=self._replica(),
        )
        measured = self._measured(training.step)
        clock, begun = time.monotonic(), training.step
        for record in records:
            for log in logs:
                log.write({"step": record.step, "loss": record.loss, "lr": list(record.lr)})
            epoch, rest = divmod(training.step, self.per_epoch)
            if rest == 0:
                measured = self._epoch(epoch)
                for log in logs:
                    log.write({"step": record.step, "epoch": epoch, **measured})
                speed = (training.step - begun) * s.batch / max(time.monotonic() - clock, 1e-9)
                self.tell(f"epoch {epoch} of {s.epochs}: {_shown(measured)}, {speed:.1f} images/s")
            if rest == 0 or training.step % s.checkpoint_every == 0:
                save_checkpoint(self.checkpoint, training, self.config, self.shard)
        return measured

    def _anchored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, and how far the classifier's weights are from their start."""
        weights = self.net.classifier.weight
        away: Tensor = (weights - self.start.to(weights.device)).square().sum()
        return self.loss(logits, labels) + self.settings.anchor * away

    def _replica(self) -> nn.Module | None:
        if self.shard.world == 1:
            return None
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.net, device_ids=ids, broadcast_buffers=False)

    def _read(self, items: Items, order: Any) -> Iterator[tuple[Tensor, Tensor]]:
        s = self.settings
        return load_batches(items, order, seed=s.seed, workers=s.workers, pin=self.device.type == "cuda")

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """Measures after an epoch, on every rank; the training loss is read from the log, on the first."""
        first = (epoch - 1) * self.per_epoch
        losses = [r["loss"] for r in read_log(self.out / "log.jsonl") if r["step"] >= first and "loss" in r]
        measured: dict[str, Any] = {"train_loss": math.fsum(losses) / max(len(losses), 1)}
        return measured | (self._validate(self.val) if self.val is not None else {})

    @torch.no_grad()
    def _validate(self, val: SegmentationData) -> dict[str, Any]:
        s = self.settings
        self.net.eval()
        metric, total = AveragePrecision(len(val.classes)), torch.zeros((), dtype=torch.float64)
        mine = self.shard.take(range(len(val.samples)))
        order = [[(0, index) for index in mine[i : i + s.batch]] for i in range(0, len(mine), s.batch)]
        for images, labels in self._read(validation_items(val, s, self.net), order):
            logits = self.net(images.to(self.device)).float().cpu()
            total += self.loss(logits, labels).double() * len(images)
            metric.update(logits, labels)
        self.net.train()
        whole = AveragePrecision(len(val.classes))
        losses = 0.0
        for scores, labels, loss in gather((metric.scores, metric.labels, float(total))):
            whole.update(scores, labels)
            losses += loss
        ap = [None if math.isnan(value) else value for value in whole.per_class().tolist()]
        mean = whole.mean()
        return {
            "val_loss": losses / len(val.samples),
            "val_map": None if math.isnan(mean) else mean,
            "val_ap": ap,
        }

    def _measured(self, step: int) -> dict[str, Any]:
        """The measures of the epoch that ended last."""
        epochs = [r for r in read_log(self.out / "log.jsonl") if "epoch" in r and r["step"] < step]
        return {k: v for k, v in epochs[-1].items() if k not in ("step", "epoch")} if epochs else {}

    def _finish(self, measured: Mapping[str, Any]) -> ClassifierResult:
        result = {"steps": self.steps, "val_loss": None, "val_map": None, "val_ap": [], **measured}
        if self.shard.rank == 0:
            save_cam_net(self.net, self.weights, self.train.classes)
            write_json(self.report, {"config": self.config, "classes": list(self.train.classes), "result": result})
            self.tell(f"wrote {self.weights} and {self.report}")
        result = gather(result)[0]
        return ClassifierResult(self.weights, **{**result, "val_ap": tuple(result["val_ap"])})


def training_items(data: SegmentationData, settings: ClassifierSettings, net: CAMNet) -> Items:
    """Augmented images and their labels."""
    transform = classifier_train(settings.crop, settings.long_side, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def validation_items(data: SegmentationData, settings: ClassifierSettings, net: CAMNet) -> Items:
    """Images, their top left squares, and their labels."""
    transform = classifier_val(settings.crop, net.mean, net.std)
    return ClassificationDataset(data.samples, len(data.classes), transform)


def _shown(measured: Mapping[str, Any]) -> str:
    shown = [f"loss {measured['train_loss']:.4f}"]
    if measured.get("val_loss") is not None:
        shown.append(f"validation loss {measured['val_loss']:.4f}")
    if measured.get("val_map") is not None:
        shown.append(f"mAP {100 * measured['val_map']:.1f}")
    return ", ".join(shown)
