"""Training of a CCT net with validation, early stopping, and the best net as its result."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.files import write_bytes
from advcam_attr.networks.cct import CCT
from advcam_attr.networks.cct_perturbations import require_opencv
from advcam_attr.networks.net_file import read_notes, save_net
from advcam_attr.pipelines.semi.config import SemiSettings
from advcam_attr.pipelines.semi.data import Pairs, SemiData
from advcam_attr.pipelines.semi.predict import validation_iou
from advcam_attr.pipelines.training_report import VALIDATION, training_config
from advcam_attr.runs.provenance import read_record
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of_launch
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Group
from advcam_attr.training.log import json_log, read_log
from advcam_attr.training.losses.cct import CCTLoss
from advcam_attr.training.train import TrainingTask, check_batch, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: Files of the trained net and of the best net so far.
WEIGHTS, BEST = "cct.safetensors", "best.safetensors"


def train_semi(settings: SemiSettings, net: CCT, data: SemiData, out: Path, runtime: Runtime) -> Path:
    """Train a net on labelled and unlabelled images; an interrupted training resumes, on the CPU with the same bits.

    Under ``torchrun`` or ``srun``, all ranks share each batch; norms see their own rank's part of it, and the first
    rank validates. The net is trained in place; its mode and device are restored.

    Returns:
        The file of the net that was best on ``data.val``, or of the last one without ``val``.

    Raises:
        AdvCAMError: the folder holds another training, or masks, batch and net do not fit.
    """
    s = settings
    check_training(s, net, data)
    depends_on = training_config(s, net, runtime, **data.fingerprints(runtime.workers))
    per_epoch = len(data.unlabelled.samples) // s.batch
    loss = CCTLoss(
        steps=s.epochs * per_epoch,
        ramp_steps=round(s.ramp_up * s.epochs * per_epoch),
        supervised=s.supervised,
        unsupervised_weight=s.unsupervised_weight,
        weak_weight=s.weak_weight if data.pseudo is not None and net.auxiliary else 0.0,
        confidence=s.confidence,
        pairwise_weight=s.pairwise_weight,
    )
    backbone = {id(p) for p in net.backbone.parameters()}
    decoders = [p for p in net.parameters() if id(p) not in backbone]
    validation = None if data.val is None else Validation(s, net, data.val, out, per_epoch, runtime)

    def save(path: Path) -> None:
        if validation is not None and validation.best() is not None:
            write_bytes(path, (out / BEST).read_bytes())
        else:
            save_net(path, net, data.labelled.classes)

    task = TrainingTask(
        name="CCT net",
        net=net,
        items=Pairs(data, PairedAugmentation(s.crop, s.long_side, net.mean, net.std)),
        loss=loss,
        groups=(
            Group("decoders", decoders, s.optimizer.head_rate, s.optimizer.weight_decay),
            Group("backbone", net.backbone.parameters(), s.optimizer.lr, s.optimizer.weight_decay),
        ),
        optimizer=s.optimizer,
        epochs=s.epochs,
        batch=s.batch,
        runtime=runtime,
        checkpoint_every=s.checkpoint_every,
        depends_on=depends_on,
        save=save,
        file=WEIGHTS,
        after_epoch=None if validation is None else validation.after_epoch,
    )
    return train(task, out)


class Validation:
    """Validation of a training in ``out``: measures, saves the best net, and stops without improvement.

    Its state is in its folder, so that an interrupted training resumes as it would have continued.
    """

    def __init__(
        self, settings: SemiSettings, net: CCT, data: SegmentationData, out: Path, per_epoch: int, runtime: Runtime
    ) -> None:
        self.settings, self.net, self.data, self.out = settings, net, data, out
        self.per_epoch, self.runtime = per_epoch, runtime

    def after_epoch(self, epoch: int) -> bool:
        """Validate on the first rank; return whether more than ``patience`` validations in a row were no better."""
        if epoch % self.settings.validate_every and epoch != self.settings.epochs:
            return False
        return bool(gather(self._measure(epoch) if shard_of_launch().rank == 0 else None)[0])

    def _measure(self, epoch: int) -> bool:
        step, training = epoch * self.per_epoch - 1, _training_in(self.out)
        measured = validation_iou(self.net, self.data, self.runtime.workers)
        if not math.isfinite(measured):
            raise AdvCAMError(f"no pixel of {self.data.name} {self.data.split} has a label; validate on other images")
        best = self.best()
        if best is None or measured > best:
            notes = {"val_miou": repr(measured), "step": str(step), "training": training}
            save_net(self.out / BEST, self.net, self.data.classes, notes)
        with json_log(self.out / VALIDATION, step, self.runtime.logger) as log:
            log.write({"step": step, "epoch": epoch, "val_miou": measured, "training": training})
        logger.info(f"epoch {epoch}: validation mIoU {100 * measured:.2f}")
        found = [record["val_miou"] for record in validations(self.out)]
        waited = len(found) - 1 - found.index(max(found))
        if waited > self.settings.patience:
            logger.info(f"no better net in {waited} validations: the training ends")
            return True
        return False

    def best(self) -> float | None:
        notes = read_notes(self.out / BEST)
        return float(notes["val_miou"]) if notes.get("training") == _training_in(self.out) else None


def validations(folder: Path) -> list[dict[str, Any]]:
    """Return the validation records of the training in a folder: ``step``, ``epoch`` and ``val_miou``."""
    training = _training_in(folder)
    return [record for record in read_log(folder / VALIDATION) if record.get("training") == training]


def _training_in(folder: Path) -> str:
    return str((read_record(folder / "training.json") or {}).get("digest", ""))


def check_training(settings: SemiSettings, net: CCT, data: SemiData) -> None:
    """Raise if a net cannot be trained on these images with these settings."""
    if net.spec.auxiliary.get("cutout"):
        require_opencv()
    if not data.labelled.samples or not data.unlabelled.samples:
        raise AdvCAMError("there are no labelled images, or no unlabelled ones; CCT learns from both")
    check_batch(f"{data.unlabelled.name} {data.unlabelled.split}", len(data.unlabelled.samples), settings.batch)
    if settings.crop % net.stride:
        raise AdvCAMError(f"training.crop must be a multiple of the net's stride {net.stride}, got {settings.crop}")
    world = shard_of_launch().world
    if settings.batch // world < 2:
        raise AdvCAMError(f"a batch of {settings.batch} leaves one image to each of {world} ranks; norms need two")
    if net.spec.num_classes != len(data.labelled.classes) + 1:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, the data {len(data.labelled.classes)} and 0")
