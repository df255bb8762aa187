"""A configuration in; a net trained by cross-consistency, its predictions and their scores, out.

Table VI of the paper: CCT on VOC's 1464 labelled images and the 9118 others of train_aug with AdvCAM's masks. The
folder of a run:

- ``config.json``: the configuration;
- ``cct/``: the training; ``cct.safetensors`` is the net that was best on the validation images, ``log.jsonl`` has the
  terms of the loss step by step, ``validation.jsonl`` the mean IoU;
- ``predictions/SPLIT/``, ``predictions_crf/SPLIT/``: label maps, and their ``evaluation.json``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.files import write_bytes
from advcam_attr.metrics.evaluation import MaskEvaluation
from advcam_attr.networks.cct import CCT, CCT_NET
from advcam_attr.networks.cct_perturbations import require_opencv
from advcam_attr.networks.net_file import load_net, read_notes, save_net
from advcam_attr.pipelines.config import path_of, recorded_config
from advcam_attr.pipelines.evaluate import evaluate_masks, left_out, write_mask_evaluation
from advcam_attr.pipelines.semi.config import SemiConfig, SemiSettings
from advcam_attr.pipelines.semi.data import Pairs, SemiData, masks_digest, read_part, read_semi
from advcam_attr.pipelines.semi.predict import validation_iou, write_predictions
from advcam_attr.runs.provenance import read_record, weights_digest
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of_launch
from advcam_attr.runs.stage import fingerprint, to_json
from advcam_attr.training.distributed import gather
from advcam_attr.training.fit import Group, Optimizer
from advcam_attr.training.log import json_log, read_log
from advcam_attr.training.losses.cct import CCTLoss
from advcam_attr.training.train import TrainingTask
from advcam_attr.training.train import train as train_net
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


#: The net's file in the folder of its training, and that of the best net so far.
WEIGHTS, BEST = "cct.safetensors", "best.safetensors"

#: Settings that change nothing about the result.
_FREE = ("workers", "checkpoint_every", "device", "overwrite")


def train(
    config: SemiConfig,
) -> Path:
    """Train the net, or go on with a training that was interrupted.

    Args:
        config: the run's.

    Returns:
        The net's file; `advcam_attr.networks.net_file.load_net` reads it.

    Raises:
        AdvCAMError: the data cannot be read, or as `train_semi`.

    Example:
        >>> config = SemiConfig("runs/semi", SemiDataConfig("VOCdevkit", pseudo="runs/voc/masks"))  # doctest: +SKIP
        >>> train(config)  # doctest: +SKIP
    """
    data = read_semi(config.data)
    pseudo = "" if data.pseudo is None else f", with pseudo masks of {config.data.pseudo}"
    logger.info(
        f"reading {config.data.root}: {len(data.labelled.samples)} labelled images ({data.labelled.split}), "
        f"{len(data.unlabelled.samples)} unlabelled ones ({data.unlabelled.split}){pseudo}"
    )
    net = config.net.make(len(data.labelled.classes) + 1)
    with recorded_config(path_of(config.run), config):
        return train_semi(config.training, net, data, path_of(config.run) / "cct")


def train_semi(
    settings: SemiSettings,
    net: CCT,
    data: SemiData,
    out: Path,
) -> Path:
    """Train a net on labelled and unlabelled images.

    Under ``torchrun`` or ``srun``, all ranks share each batch; norms see their own rank's part of it, and the first
    rank validates. Killed at any moment, a training on the CPU ends with the same bits.

    Args:
        settings: how.
        net: trained in place; its mode and device are as before afterwards.
        data: the images and masks.
        out: the folder.

    Returns:
        The file of the net that was best on ``data.val``; of the last one where there is no ``val``.

    Raises:
        AdvCAMError: a mask cannot be read or does not fit its photograph, the folder holds another training, there are
            fewer unlabelled images than one batch, a batch that its ranks cannot share, OpenCV is missing for guided
            cut-out, the loss is not finite, or a file cannot be written.
    """
    s, shard = settings, shard_of_launch()
    _check(s, net, data, shard.world)
    weak = data.pseudo is not None and bool(net.auxiliary)
    depends_on = to_json({
        **{key: value for key, value in dataclasses.asdict(s).items() if key not in _FREE},
        **dataclasses.asdict(net.spec), "mean": net.mean, "std": net.std, "initial_weights": weights_digest(net),
        "labelled": fingerprint(data.labelled), "unlabelled": fingerprint(data.unlabelled),
        "val": None if data.val is None else fingerprint(data.val),
        "masks": masks_digest(data.labelled.samples, data.labelled.mask, s.workers),
        "pseudo": masks_digest(data.unlabelled.samples, data.pseudo, s.workers) if data.pseudo else None,
    })  # fmt: skip
    per_epoch = len(data.unlabelled.samples) // s.batch
    loss = CCTLoss(
        steps=s.epochs * per_epoch, ramp_steps=round(s.ramp_up * s.epochs * per_epoch), supervised=s.supervised,
        unsupervised_weight=s.unsupervised_weight, weak_weight=s.weak_weight if weak else 0.0, confidence=s.confidence,
        pairwise_weight=s.pairwise_weight,
    )  # fmt: skip
    backbone = {id(p) for p in net.backbone.parameters()}
    groups = (
        Group("decoders", [p for p in net.parameters() if id(p) not in backbone], s.lr, s.weight_decay),
        Group("backbone", net.backbone.parameters(), s.encoder_lr, s.weight_decay),
    )
    validation = None if data.val is None else Validation(s, net, data.val, out, per_epoch)

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
        groups=groups,
        optimizer=Optimizer(s.encoder_lr, s.lr, s.weight_decay, s.momentum, s.power),
        epochs=s.epochs,
        batch=s.batch,
        checkpoint_every=s.checkpoint_every,
        runtime=Runtime(s.device, s.workers, s.autocast, seed=s.seed, overwrite=s.overwrite),
        depends_on=depends_on,
        save=save,
        file=WEIGHTS,
        after_epoch=None if validation is None else validation.after_epoch,
    )
    return train_net(task, out)


def _check(settings: SemiSettings, net: CCT, data: SemiData, world: int) -> None:
    if net.spec.auxiliary.get("cutout"):
        require_opencv()
    if not data.labelled.samples or not data.unlabelled.samples:
        raise AdvCAMError("there are no labelled images, or no unlabelled ones; CCT learns from both")
    if settings.crop % net.stride:
        raise AdvCAMError(f"training.crop must be a multiple of the net's stride {net.stride}, got {settings.crop}")
    if settings.batch // world < 2:
        raise AdvCAMError(f"a batch of {settings.batch} leaves one image to each of {world} ranks; norms need two")
    if net.spec.num_classes != len(data.labelled.classes) + 1:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, the data {len(data.labelled.classes)} and 0")


class Validation:
    """What is done after an epoch: measure, keep the best net, and say whether the training ends.

    All it knows is in its folder: ``validation.jsonl``, and the best net with its measure, so that a training that was
    interrupted goes on as it would have.

    Args:
        settings: how often, and how long without a better net.
        net: that is trained.
        data: the images and masks.
        out: the training's folder.
        per_epoch: steps.
    """

    def __init__(
        self,
        settings: SemiSettings,
        net: CCT,
        data: SegmentationData,
        out: Path,
        per_epoch: int,
    ) -> None:
        self.settings, self.net, self.data, self.out = settings, net, data, out
        self.per_epoch = per_epoch

    def after_epoch(self, epoch: int) -> bool:
        """Whether more than ``patience`` validations in a row were no better; measured on the first rank."""
        if epoch % self.settings.validate_every and epoch != self.settings.epochs:
            return False
        return bool(gather(self._measure(epoch) if shard_of_launch().rank == 0 else None)[0])

    def _measure(self, epoch: int) -> bool:
        step = epoch * self.per_epoch - 1
        measured = validation_iou(self.net, self.data, self.settings.workers)
        if not math.isfinite(measured):
            raise AdvCAMError(f"no pixel of {self.data.name} {self.data.split} has a label; validate on other images")
        best = self.best()
        if best is None or measured > best:
            notes = {"val_miou": repr(measured), "step": str(step), "training": self._training()}
            save_net(self.out / BEST, self.net, self.data.classes, notes)
        with json_log(self.out / "validation.jsonl", step) as log:
            log.write({"step": step, "epoch": epoch, "val_miou": measured, "training": self._training()})
        logger.info(f"epoch {epoch}: validation mIoU {100 * measured:.2f}")
        found = [record["val_miou"] for record in validations(self.out)]
        waited = len(found) - 1 - max(range(len(found)), key=lambda i: (found[i], -i))
        if waited > self.settings.patience:
            logger.info(f"no better net in {waited} validations: the training ends")
            return True
        return False

    def best(self) -> float | None:
        """The measure of the best net that this training has kept; None if it has kept none."""
        notes = read_notes(self.out / BEST)
        return float(notes["val_miou"]) if notes.get("training") == self._training() else None

    def _training(self) -> str:
        return _training_in(self.out)


def validations(folder: Path) -> list[dict[str, Any]]:
    """The measures of the training that a folder holds, in order: ``step``, ``epoch`` and ``val_miou`` of each."""
    training = _training_in(folder)
    return [record for record in read_log(folder / "validation.jsonl") if record.get("training") == training]


def _training_in(folder: Path) -> str:
    return str((read_record(folder / "training.json") or {}).get("digest", ""))


def predict(
    config: SemiConfig,
) -> Path:
    """Predict the label maps of a split with the trained net.

    Returns:
        Their folder.

    Raises:
        AdvCAMError: there is no net yet, no split is named, or as
            `advcam_attr.pipelines.semi.predict.write_predictions`.
    """
    file = path_of(config.run) / "cct" / WEIGHTS
    if not file.is_file():
        raise AdvCAMError(f"there is no net {file}: train it first (advcam semi train)")
    data, folder = predicted(config)
    net, classes = load_net(file, CCT_NET)
    if classes != data.classes:
        raise AdvCAMError(f"{file} is of {len(classes)} other classes than {data.name}'s {len(data.classes)}")
    logger.info(f"reading {file}; predicting {len(data.samples)} images of {data.name} {data.split} to {folder}")
    write_predictions(config.predict, net, data, folder)
    return folder


def evaluate(
    config: SemiConfig,
) -> MaskEvaluation:
    """Score the predictions on the true masks, and write ``evaluation.json`` beside them.

    Raises:
        AdvCAMError: predictions are missing or do not fit, or no image has a mask.
    """
    data, folder = predicted(config)
    evaluation = evaluate_masks(folder, data)
    report = write_mask_evaluation(evaluation, folder)
    logger.info(
        f"{folder}: mIoU {100 * evaluation.scores().mean_iou:.2f} over {len(evaluation.scope.ids)} images ({report})"
    )
    for line in left_out(evaluation.scope):
        logger.info(line)
    return evaluation


def predicted(config: SemiConfig) -> tuple[SegmentationData, Path]:
    """The images whose label maps are predicted, and the folder of these.

    Raises:
        AdvCAMError: no split is named, or it cannot be read.
    """
    split = config.predict.split or config.data.val
    if split is None:
        raise AdvCAMError("no split to predict: give predict.split or data.val")
    data = read_part(config.data, split)
    kind = "predictions" if config.predict.crf is None else "predictions_crf"
    return data, path_of(config.run) / kind / data.split
