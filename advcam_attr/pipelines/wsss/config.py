"""Configuration of weakly supervised semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.defaults import IRN_BACKBONE
from advcam_attr.pipelines.config import MaskedData
from advcam_attr.pipelines.wsss.mask_config import RefineConfig, SegmentationConfig
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError

Method = Literal["cam", "advcam"]


@dataclass(frozen=True)
class DataConfig(MaskedData):
    """The data set and its splits.

    Attributes:
        train: split that the classifier is trained on; a name or the path of a list.
        val: split that the classifier is validated on and segmentation nets are scored on; None for none.
        test: split of images without masks that segmentation nets label; None for none.
        seeds: split that maps are made of; None for ``train``.
        score: split on whose masks the seeds are scored; part of ``seeds``.
    """

    train: str = "train_aug"
    val: str | None = "val"
    test: str | None = None
    seeds: str | None = None
    score: str = "train"

    @property
    def seeds_split(self) -> str:
        """The split that maps are made of."""
        return self.seeds or self.train


@dataclass(frozen=True)
class NetConfig:
    """The classifier: a CAM net to train, or a published seed generator.

    Attributes:
        backbone: of the CAM net; stride 16. Its ``checkpoint`` is the generator's file, if one is given.
        class_map: JSON file that maps the data's classes to those of the backbone's own classifier, whose weights the
            new classifier starts from (`advcam_attr.data.class_names`); None starts from random weights.
        class_offset: added to the file's classes; 1 for backbones whose class 0 is the background.
        generator: ``"irn"``, ``"seam"`` or ``"sc_cam"``: the authors' trained net in place of one to train.
    """

    backbone: Backbone = Backbone(IRN_BACKBONE)
    class_map: str | None = None
    class_offset: int = 0
    generator: str | None = None


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the classifier's training. The defaults are IRN's for VOC and COCO, which AdvCAM follows.

    Attributes:
        epochs: passes over the images; the rest that fills no batch is dropped.
        batch: images an update, of all ranks together.
        crop: side of the training square, in pixels.
        long_side: range of the longer side after the random rescaling before the crop, in pixels.
        optimizer: ``head_lr`` is the 1 × 1 convolution's. The released optimizer passes the weight decay in place of
            the momentum, and its learning rates fit that.
        anchor: weight of the squared distance of the convolution's weights from their start, added to the loss (L2-SP,
            Li et al., 2018). For few images and a start from mapped classes.
        loss: of logits and labels.
        grad_accum: parts in which a batch passes the net.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        tensorboard: whether to write TensorBoard files, too, to the folder ``tensorboard``.
    """

    epochs: PositiveInt = 5
    batch: PositiveInt = 16
    crop: PositiveInt = 512
    long_side: tuple[int, int] = (320, 640)
    optimizer: Optimizer = Optimizer(0.1, 1.0, momentum=RELEASED_MOMENTUM)
    anchor: NonNegativeFloat = 0.0
    loss: Literal["multilabel_soft_margin"] = "multilabel_soft_margin"
    grad_accum: PositiveInt = 1
    checkpoint_every: PositiveInt = 200
    tensorboard: bool = False


@dataclass(frozen=True)
class SeedConfig:
    """Settings of the localization maps; see `advcam_attr.pipelines.maps.MapSettings`.

    Attributes:
        methods: CAM, AdvCAM, or both.
        recipe: AdvCAM's.
        overrides: parts of the recipe by name.
        base: AdvCAM's base attribution; generators have their own.
        scales: factors of the images' size.
        saliency: folder of saliency maps that restrict AdvCAM (section 4.4); None for none.
        batch: image-class pairs climbed at once at scale 1.
    """

    methods: tuple[Method, ...] = ("cam", "advcam")
    recipe: str = "official"
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str = "cam"
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    saliency: str | None = None
    batch: PositiveInt = 4

    def __post_init__(self) -> None:
        if not self.methods:
            raise AdvCAMError("seeds.methods is empty: give cam, advcam, or both")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of the seeds' evaluation.

    Attributes:
        thresholds: background thresholds, by the released script that has them.
        allow_missing: score the other images where maps are missing.
    """

    thresholds: Literal["voc", "coco", "seam"] = "voc"
    allow_missing: bool = False


@dataclass(frozen=True)
class WSSSConfig:
    """Configuration of a run.

    Attributes:
        run: folder of all results. Paths may hold ``~`` and ``$VARIABLES``.
        data: the data set.
        net: the classifier.
        classifier: its training.
        seeds: the localization maps.
        score: their evaluation.
        refine: the pseudo ground truth.
        segmentation: the segmentation net that is trained on it.
        runtime: device, workers, precision and seed of all stages.
    """

    run: str
    data: DataConfig
    net: NetConfig = NetConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    seeds: SeedConfig = field(default_factory=SeedConfig)
    score: ScoreConfig = ScoreConfig()
    refine: RefineConfig = RefineConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    runtime: Runtime = Runtime()
