"""Configuration of weakly supervised semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.defaults import IRN_BACKBONE
from advcam_attr.pipelines.config import MaskedData
from advcam_attr.pipelines.wsss.mask_config import RefineConfig, SegmentationConfig
from advcam_attr.refine.recipes import InstanceRecipe
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError

Method = Literal["cam", "advcam"]


@dataclass(frozen=True)
class DataConfig(MaskedData):
    """The data set and its splits, each a name or the path of a list.

    Attributes:
        train: training split; of the classifier.
        val: validation split; of the classifier; segmentation nets are scored on it. None for none.
        test: split to predict, without true masks; None for none.
        seeds: split that maps are made of; None for ``train``.
        score: split to score seeds; part of ``seeds``.
    """

    train: str = "train_aug"
    val: str | None = "val"
    test: str | None = None
    seeds: str | None = None
    score: str = "train"

    @property
    def seeds_split(self) -> str:
        return self.seeds or self.train


@dataclass(frozen=True)
class NetConfig:
    """The classifier: a CAM net to train, or a published seed generator.

    Attributes:
        backbone: of the CAM net; stride 16. Its ``checkpoint`` is the generator's file, if one is given.
        class_map: JSON map to the backbone's classes; the classifier starts from the weights of its own classifier
            (`advcam_attr.data.class_names`); None starts from random weights.
        class_offset: added to the file's classes; 1 for backbones whose class 0 is the background.
        generator: authors' net, in place of training; ``"irn"``, ``"seam"`` or ``"sc_cam"``.
    """

    backbone: Backbone = Backbone(IRN_BACKBONE)
    class_map: str | None = None
    class_offset: int = 0
    generator: str | None = None


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the classifier's training. The defaults are IRN's for VOC and COCO, which AdvCAM follows.

    Attributes:
        epochs: passes over the images; an incomplete last batch is dropped.
        batch: images per update; of all ranks together.
        crop: training crop in pixels.
        long_side: longer side; range of the random rescaling before the crop, in pixels.
        optimizer: ``head_lr`` is the 1 × 1 convolution's; for the momentum see
            `advcam_attr.training.optimizer.RELEASED_MOMENTUM`.
        anchor: weight of the L2-SP penalty; the squared distance of the convolution's weights from their start (Li
            et al., 2018), for few images and a start from mapped classes.
        loss: training loss.
        grad_accum: forward passes per batch; their gradients are averaged.
        checkpoint_every: steps per checkpoint; also one after each epoch.
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


@dataclass(frozen=True)
class SeedConfig:
    """Settings of the localization maps; see `advcam_attr.pipelines.maps.MapSettings`.

    Attributes:
        methods: CAM, AdvCAM, or both.
        recipe: AdvCAM's.
        overrides: parts of the recipe by name.
        base: AdvCAM's base attribution; generators have their own.
        scales: factors of the images' size.
        cells: where maps lie over the image; as blocks of pixels of the net's stride; at the centres of receptive
            fields; irn: stretched as the released code, for stride 16; auto: irn for IRN's ResNet-50, centres for
            SEAM and SC-CAM, else blocks.
        normalization: of the maps; peak, or seam for SEAM's, which also subtracts the minimum.
        saliency: folder of saliency maps that restrict AdvCAM (section 4.4); None for none.
        batch: image-class pairs climbed at once at scale 1.
    """

    methods: tuple[Method, ...] = ("cam", "advcam")
    recipe: str = "official"
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str = "cam"
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    cells: Literal["auto", "blocks", "centres", "irn"] = "auto"
    normalization: Literal["peak", "seam"] = "peak"
    saliency: str | None = None
    batch: PositiveInt = 4

    def __post_init__(self) -> None:
        if not self.methods:
            raise AdvCAMError("seeds.methods is empty: give cam, advcam, or both")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of the seeds' evaluation.

    Attributes:
        thresholds: background thresholds; those of the released script for VOC or COCO, or of SEAM's.
        allow_missing: score without the missing maps.
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
        instances: instance masks by IRN's net.
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
    instances: InstanceRecipe = InstanceRecipe()
    segmentation: SegmentationConfig = SegmentationConfig()
    runtime: Runtime = Runtime()
