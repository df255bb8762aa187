"""The configuration of a run of semi-supervised segmentation by CCT out of YAML; checked settings out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from advcam_attr.networks.backbone import Backbone, StrideMode
from advcam_attr.networks.cct import CCT, DEEP_BASE, Norms, cct_net
from advcam_attr.networks.cct_perturbations import AUXILIARY
from advcam_attr.pipelines.config import path_of
from advcam_attr.refine.crf import CRF_RECIPES
from advcam_attr.registry import lookup
from advcam_attr.runs.runtime import Autocast
from advcam_attr.training.losses.cct import Supervision
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class SemiDataConfig:
    """Which images have true masks, and which pseudo masks or none. Paths may hold ``~`` and ``$VARIABLES``.

    By default they are Table VI's: VOC's 1464 training images, and the 9118 others of train_aug.

    Attributes:
        kind: ``"voc"`` or ``"coco"``.
        root: its folder.
        labelled: the images whose true masks are learned; a split or a list's path.
        labelled_count: only the first so many of them count as labelled; None takes all.
        unlabelled: a split or a list's path; images that are labelled are left out of it.
        pseudo: a folder with a mask ``<id>.png`` of each unlabelled image, e.g. AdvCAM's; None learns without.
        val: what the net is validated and scored on; None leaves that out.
        labels: a ``cls_labels.npy`` in place of the annotations.
        masks: COCO's true masks: ``"auto"``, ``"draw"``, or a folder of ready ones.
    """

    root: str
    kind: Literal["voc", "coco"] = "voc"
    labelled: str = "train"
    labelled_count: int | None = None
    unlabelled: str = "train_aug"
    pseudo: str | None = None
    val: str | None = "val"
    labels: str | None = None
    masks: str = "auto"

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: a count below 1."""
        if self.labelled_count is not None and self.labelled_count < 1:
            raise AdvCAMError(f"data.labelled_count must be at least 1, got {self.labelled_count}; null takes all")


@dataclass(frozen=True)
class SemiNetConfig:
    """The net; see `advcam_attr.networks.cct.cct_net`.

    Attributes:
        backbone: ``deepbase_resnet50``, CCT's, or ``timm/NAME``.
        model_args: keyword arguments of the backbone as its weights need them.
        checkpoint: the backbone's weights. ``deepbase_resnet50`` needs ``3x3resnet50-imagenet.pth``.
        random_weights: start from a backbone as it is initialised.
        stride: the encoder's output stride, a power of two.
        stride_mode: how the stride is reached.
        channels: of the pooling pyramid's result; None is a quarter of the backbone's.
        auxiliary: how many decoders of each perturbation; without any, only what is labelled is learned.
        norms: the backbone's batch norms: ``"trained"`` as in CCT, or ``"frozen"``.
        mean, std: another normalisation than the backbone's own.
        seed: of the new weights.
    """

    backbone: str = DEEP_BASE
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    random_weights: bool = False
    stride: int = 8
    stride_mode: StrideMode = "dilation"
    channels: int | None = None
    auxiliary: dict[str, int] = field(default_factory=lambda: dict(AUXILIARY))
    norms: Norms = "trained"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0

    def make(self, classes: int) -> CCT:
        """The net of so many classes, the background included.

        Raises:
            AdvCAMError: as `advcam_attr.networks.cct.cct_net`.
        """
        backbone = Backbone(
            self.backbone,
            self.model_args,
            None if self.checkpoint is None else path_of(self.checkpoint),
            self.random_weights,
            self.stride,
            self.stride_mode,
            mean=self.mean,
            std=self.std,
        )
        return cct_net(
            backbone, classes, channels=self.channels, auxiliary=self.auxiliary, norms=self.norms, seed=self.seed
        )


@dataclass(frozen=True)
class SemiSettings:
    """How the net is trained. The defaults are those of CCT's released code.

    Attributes:
        epochs: 80 passes over the unlabelled images, the labelled ones cycled; what fills no batch is dropped.
        batch: 10 labelled and 10 unlabelled images an update, whatever the number of ranks.
        crop: 320 pixels, the side of the square that is cut; a multiple of the encoder's stride.
        long_side: 200 to 800 pixels, the range of the random size before that.
        lr: 0.01, of the decoders and the pooling pyramid.
        encoder_lr: 0.001, of the backbone.
        weight_decay: 1e-4, of all weights.
        momentum: 0.9.
        power: 0.9, of the poly schedule.
        supervised: ``"ce"``, or ``"abce"``: only pixels below a probability that rises over the first 40 %.
        unsupervised_weight: 30, of the consistency.
        weak_weight: 0.4, of the pseudo masks, where there are some.
        ramp_up: 0.1 of the epochs, over which both weights rise.
        confidence: only pixels of which the main decoder is that sure are to be consistent (0.5 in the released code's
            option); None takes all.
        pairwise_weight: of the auxiliary decoders' disagreement; 0 leaves it out.
        validate_every: 5 epochs; the last epoch is validated too.
        patience: 10; after more validations in a row without a better one, the training ends.
        autocast: precision of the forward pass; None for float32.
        seed: 42, of order, augmentation and perturbations.
        workers: processes that read images; the result does not depend on it.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: a training of other settings in the run folder makes way.
    """

    epochs: int = 80
    batch: int = 10
    crop: int = 320
    long_side: tuple[int, int] = (200, 800)
    lr: float = 0.01
    encoder_lr: float = 0.001
    weight_decay: float = 1e-4
    momentum: float = 0.9
    power: float = 0.9
    supervised: Supervision = "ce"
    unsupervised_weight: float = 30.0
    weak_weight: float = 0.4
    ramp_up: float = 0.1
    confidence: float | None = None
    pairwise_weight: float = 0.0
    validate_every: int = 5
    patience: int = 10
    autocast: Autocast | None = None
    seed: int = 42
    workers: int = 4
    checkpoint_every: int = 200
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            AdvCAMError: with what would do.
        """
        for name, least in (("epochs", 1), ("batch", 2), ("crop", 1), ("checkpoint_every", 1), ("validate_every", 1)):
            if getattr(self, name) < least:
                raise AdvCAMError(f"training.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "encoder_lr", "weight_decay", "momentum", "power", "unsupervised_weight", "weak_weight",
                     "ramp_up", "pairwise_weight", "patience", "seed", "workers"):  # fmt: skip
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"training.{name} must be a number that is not negative, got {getattr(self, name)}")
        if self.confidence is not None and not 0 <= self.confidence < 1:
            raise AdvCAMError(f"training.confidence must lie in 0 to 1, or be null, got {self.confidence}")
        if not 1 <= self.long_side[0] <= self.long_side[1]:
            raise AdvCAMError(f"training.long_side: the smaller length comes first, got {list(self.long_side)}")


@dataclass(frozen=True)
class SemiPredictConfig:
    """How label maps are predicted.

    Attributes:
        split: of which images; None takes ``data.val``.
        scales: factors of the image's size, whose scores are averaged: CCT's five.
        flip: whether each scale sees the mirror image too.
        crf: the recipe of a dense CRF behind the net, e.g. ``"deeplab"`` as for Table VI; None leaves it out.
        workers: threads that read images ahead.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: predict anew, whatever is there.
    """

    split: str | None = None
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    flip: bool = True
    crf: str | None = None
    workers: int = 2
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: no scale, one that does not lie between 0 and 16, or an unknown recipe."""
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise AdvCAMError(f"predict.scales must lie between 0 and 16, and be at least one, got {list(self.scales)}")
        if self.crf is not None:
            lookup(self.crf, CRF_RECIPES, "CRF recipe")


@dataclass(frozen=True)
class SemiConfig:
    """A run of semi-supervised segmentation by CCT.

    Attributes:
        run: the folder of all its results.
        data: what it works on.
        net: the net.
        training: how it is trained.
        predict: how label maps are predicted.
    """

    run: str
    data: SemiDataConfig
    net: SemiNetConfig = field(default_factory=SemiNetConfig)
    training: SemiSettings = field(default_factory=SemiSettings)
    predict: SemiPredictConfig = field(default_factory=SemiPredictConfig)
