"""Configuration of a run of semi-supervised segmentation by CCT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.defaults import AUXILIARY, DEEP_BASE, Norms
from advcam_attr.pipelines.config import MaskedData, with_paths
from advcam_attr.refine.recipes import CRF_RECIPES
from advcam_attr.registry import lookup
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.networks.cct import CCT


@dataclass(frozen=True)
class SemiDataConfig(MaskedData):
    """The data set and its splits. Defaults: Table VI's, VOC's 1464 training images and the 9118 others of train_aug.

    Attributes:
        labelled: split with true masks; a name or the path of a list.
        labelled_count: images to use of it; None takes all.
        unlabelled: split of all images; labelled ones are left out.
        pseudo: folder of the unlabelled images' masks; ``<id>.png``, e.g. AdvCAM's; None trains without.
        val: split for validation and scores; None for none.
    """

    labelled: str = "train"
    labelled_count: PositiveInt | None = None
    unlabelled: str = "train_aug"
    pseudo: str | None = None
    val: str | None = "val"


@dataclass(frozen=True)
class SemiNetConfig:
    """The net; see `advcam_attr.networks.cct.cct_net`.

    Attributes:
        backbone: ``deepbase_resnet50``, CCT's, which needs the file ``3x3resnet50-imagenet.pth``, or ``timm/NAME``.
        channels: of the pyramid pooling's output; None is a quarter of the backbone's.
        auxiliary: decoders of each perturbation; without any, only labelled images are used.
        norms: batch norms of the backbone; ``"trained"`` as in CCT, or ``"frozen"``.
        trained: file of a trained net, in place of training; one of this package or of CCT's authors
            (``best_model.pth``). None trains one.
    """

    backbone: Backbone = Backbone(DEEP_BASE, stride=8, stride_mode="dilation")
    channels: int | None = None
    auxiliary: dict[str, int] = field(default_factory=lambda: dict(AUXILIARY))
    norms: Norms = "trained"
    trained: str | None = None

    def make(self, classes: int, seed: int) -> CCT:
        from advcam_attr.networks.cct import cct_net

        backbone = with_paths(self.backbone, "checkpoint")
        return cct_net(backbone, classes, channels=self.channels, auxiliary=self.auxiliary, norms=self.norms, seed=seed)


@dataclass(frozen=True)
class SemiSettings:
    """Settings of the training. Defaults: CCT's released code.

    Attributes:
        optimizer: SGD with the poly schedule; ``lr`` is that of the backbone, ``head_lr`` of pyramid and decoders.
        epochs: passes over the unlabelled images; labelled ones are cycled, and the last incomplete batch is dropped.
        batch: images of each kind an update; of all ranks together.
        crop: side of the random crop; a multiple of the encoder's stride.
        long_side: long side before the crop, random in this range.
        supervised: loss of labelled images; ``"abce"``: only pixels below a probability that rises over the first 40 %.
        unsupervised_weight: of the consistency.
        weak_weight: of the pseudo masks, if any.
        ramp_up: share of the training in which both weights rise.
        confidence: least probability of pixels of the consistency; by the main decoder (0.5 in the released code's
            option); None takes all pixels.
        pairwise_weight: of the decoders' disagreement; 0 for none.
        validate_every: epochs; the last epoch is validated, too.
        patience: validations without improvement before the end.
        checkpoint_every: steps between checkpoints; each epoch has one, too.
    """

    renamed_keys: ClassVar[dict[str, str]] = {"lr": ".optimizer.head_lr"}

    optimizer: Optimizer = Optimizer(0.001, head_lr=0.01)
    epochs: PositiveInt = 80
    batch: int = 10
    crop: PositiveInt = 320
    long_side: tuple[int, int] = (200, 800)
    supervised: Literal["ce", "abce"] = "ce"
    unsupervised_weight: NonNegativeFloat = 30.0
    weak_weight: NonNegativeFloat = 0.4
    ramp_up: NonNegativeFloat = 0.1
    confidence: float | None = None
    pairwise_weight: NonNegativeFloat = 0.0
    validate_every: PositiveInt = 5
    patience: NonNegativeInt = 10
    checkpoint_every: PositiveInt = 200

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise AdvCAMError(f"training.batch must be at least 2, got {self.batch}")
        if self.confidence is not None and not 0 <= self.confidence < 1:
            raise AdvCAMError(f"training.confidence must lie in 0 to 1, or be null, got {self.confidence}")
        if not 1 <= self.long_side[0] <= self.long_side[1]:
            raise AdvCAMError(f"training.long_side must ascend from 1 or more, got {list(self.long_side)}")


@dataclass(frozen=True)
class SemiPredictConfig:
    """How label maps are predicted.

    Attributes:
        split: split to label; None takes ``data.val``.
        scales: factors of the image size; scores are averaged over CCT's five.
        flip: average over mirrored images, too.
        crf: recipe of a dense CRF; e.g. ``"deeplab"`` as for Table VI; None for none.
    """

    split: str | None = None
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    flip: bool = True
    crf: str | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise AdvCAMError(f"predict.scales must lie between 0 and 16, and be at least one, got {list(self.scales)}")
        if self.crf is not None:
            lookup(self.crf, CRF_RECIPES, "CRF recipe")


@dataclass(frozen=True)
class SemiConfig:
    """A run of semi-supervised segmentation by CCT.

    Attributes:
        run: folder of all results.
        data: data set and splits.
        net: the net.
        training: its training.
        predict: how label maps are predicted.
        runtime: device, workers, precision and seed of all stages; CCT's seed is 42.
    """

    run: str
    data: SemiDataConfig
    net: SemiNetConfig = field(default_factory=SemiNetConfig)
    training: SemiSettings = SemiSettings()
    predict: SemiPredictConfig = SemiPredictConfig()
    runtime: Runtime = Runtime(seed=42)
