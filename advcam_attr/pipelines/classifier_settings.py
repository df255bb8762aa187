"""How a seed classifier is trained: what a user chooses in; all that the training depends on in words, out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.engine.fit import Precision
from advcam_attr.engine.losses import LOSSES
from advcam_attr.engine.optimiser import RELEASED_MOMENTUM
from advcam_attr.networks.resnet_cam import CAMNet
from advcam_attr.pipelines.run_folder import weights_digest
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError


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
        precision: ``float32``; ``bfloat16`` and ``float16`` (GPU only) are autocast, and not in IRN.
        accumulate: in how many parts a batch goes through the net, to save memory.
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
    precision: Precision = "float32"
    accumulate: int = 1
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
        for name in ("epochs", "batch", "crop", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("backbone_lr", "classifier_lr", "weight_decay", "anchor", "momentum", "power", "workers", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        lookup(self.loss, LOSSES, "loss")


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
