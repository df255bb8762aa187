"""How a classifier for localization is trained: what a user chooses in, checked, out; the published choices by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advcam_attr.data.cutmix import CutMix
from advcam_attr.data.localization import LocalizationData
from advcam_attr.data.shards import ShardData
from advcam_attr.engine.fit import Precision
from advcam_attr.networks.wsol_net import wsol_net
from advcam_attr.networks.wsol_parts import Norms, WSOLNet
from advcam_attr.pipelines.run_folder import weights_digest
from advcam_attr.types import AdvCAMError

#: What is trained on: images in folders, or in shards.
WSOLData = LocalizationData | ShardData


@dataclass(frozen=True)
class WSOLClassifierSettings:
    """How a classifier for localization is trained. The defaults are those of ResNet-50 and CAM on CUB; see `SETTINGS`.

    Attributes:
        backbone, model_args, checkpoint, random_weights, stride, train_from, norms, mean, std: of the net; see
            `advcam_attr.networks.wsol_net.wsol_net`.
        epochs: 50; the rest of an epoch that fills no batch is dropped (Choe et al. keep it).
        batch: 32 images an update, whatever the number of ranks.
        resize: 256 pixels, the side of the square that a training image is resized to.
        crop: 224 pixels, the side of what is cut from it, and of the square that is validated on.
        lr: the learning rate of most weights.
        fast_ratio: 10; how much higher it is for layer4 and the classifier of ResNet-50, and for the head of other
            nets.
        weight_decay: of all weights.
        momentum: 0.9, Nesterov's.
        decay_every: 15; the rates fall to a tenth before each epoch whose number, from 1, it divides.
        cutmix_probability: of a batch to be mixed; 0 is training without CutMix.
        cutmix_beta: of the Beta distribution of shares.
        precision: ``float32``; ``bfloat16`` and ``float16`` (GPU only) are autocast.
        seed: of new weights, order, augmentation, mixing and dropout.
        workers: processes that read images; the result does not depend on it.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: train anew where the folder holds a training of other settings.
    """

    backbone: str = "torchvision/resnet50"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    stride: int | None = 8
    train_from: str | None = None
    norms: Norms = "batch"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    epochs: int = 50
    batch: int = 32
    resize: int = 256
    crop: int = 224
    lr: float = 2.3222617e-4
    fast_ratio: float = 10.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    decay_every: int = 15
    cutmix_probability: float = 0.0
    cutmix_beta: float = 1.0
    precision: Precision = "float32"
    seed: int = 0
    workers: int = 4
    checkpoint_every: int = 1000
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            AdvCAMError: with what would do.
        """
        for name in ("epochs", "batch", "crop", "decay_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "fast_ratio", "weight_decay", "workers", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        if not 0 < self.momentum < 1:
            raise AdvCAMError(f"Nesterov's momentum lies between 0 and 1, got {self.momentum}")
        if self.resize < self.crop:
            raise AdvCAMError(f"a crop of {self.crop} pixels cannot be cut from a square of {self.resize}")
        CutMix(self.cutmix_beta, self.cutmix_probability)

    @property
    def cutmix(self) -> CutMix | None:
        """How batches are mixed, if they are."""
        return CutMix(self.cutmix_beta, self.cutmix_probability) if self.cutmix_probability else None

    def make_net(self, num_classes: int) -> WSOLNet:
        """The net, to be trained.

        Raises:
            AdvCAMError: it cannot be made; see `wsol_net`.
        """
        return wsol_net(
            self.backbone,
            num_classes,
            model_args=self.model_args,
            checkpoint=self.checkpoint,
            random_weights=self.random_weights,
            stride=self.stride,
            train_from=self.train_from,
            norms=self.norms,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
        )


#: Settings that a training does not depend on, or that the net's description says.
_FREE = ("workers", "checkpoint_every", "device", "overwrite", "checkpoint", "random_weights", "mean", "std")


def described(settings: WSOLClassifierSettings, net: WSOLNet, train: WSOLData, val: WSOLData | None) -> dict[str, Any]:
    """All that a training depends on, as JSON gives it back."""
    config = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _FREE}
    config |= dataclasses.asdict(net.spec) | {"mean": net.mean, "std": net.std, "initial_weights": weights_digest(net)}
    config |= {"train": data_digest(train), "val": None if val is None else data_digest(val)}
    loaded: dict[str, Any] = json.loads(json.dumps(config))
    return loaded


def data_digest(data: WSOLData) -> str:
    """What tells a list of images and labels from others, in words."""
    content = hashlib.sha256()
    if isinstance(data, ShardData):
        for part in (data.shard, data.span, data.labels):
            content.update(part.tobytes())
        count = len(data)
    else:
        for sample in data.samples:
            content.update(f"{sample.id} {sample.labels}\n".encode())
        count = len(data.samples)
    return f"{data.name} {data.split}, {count} images, {content.hexdigest()[:8]}"


_CUB = WSOLClassifierSettings()
_CUB_INCEPTION = replace(_CUB, backbone="torchvision/inception_v3", lr=2.24844746e-3, weight_decay=5e-4)
_IMAGENET = replace(_CUB, epochs=10, decay_every=3, lr=3.108411e-5)
_IMAGENET_INCEPTION = replace(_CUB_INCEPTION, epochs=10, decay_every=3, lr=3.606503e-4)

#: By data set, net and method. AdvCAM's paper does not say how its classifiers were trained, and Choe et al. keep their
#: values in a table that is not public. Learning rates, decays and CutMix's numbers are those of public scripts that
#: quote that table; batch, epochs and the decay of rates are Choe et al.'s. Where nobody quotes a value another stands
#: in: CAM's learning rate and CutMix's own numbers (1 and 1) for CutMix on ImageNet, and CAM's grid for CutMix. Check
#: them on the validation split (CUBV2, ImageNetV2).
SETTINGS: dict[str, WSOLClassifierSettings] = {
    "cub_resnet50_cam": _CUB,
    "cub_resnet50_cutmix": replace(_CUB, lr=3.333722e-4, cutmix_beta=1.35, cutmix_probability=0.24),
    "cub_inception_v3_cam": _CUB_INCEPTION,
    "cub_inception_v3_cutmix": replace(_CUB_INCEPTION, lr=2.25171726e-3, cutmix_beta=0.04, cutmix_probability=0.30),
    "imagenet_resnet50_cam": _IMAGENET,
    "imagenet_resnet50_cutmix": replace(_IMAGENET, cutmix_probability=1.0),
    "imagenet_inception_v3_cam": _IMAGENET_INCEPTION,
    "imagenet_inception_v3_cutmix": replace(_IMAGENET_INCEPTION, cutmix_probability=1.0),
}
