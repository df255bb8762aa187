"""The configuration of a run of weakly supervised segmentation, its paths, and the file that keeps it, out of YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from advcam_attr.pipelines.config import MaskedData, path_of
from advcam_attr.pipelines.wsss.classifier import ClassifierSettings
from advcam_attr.pipelines.wsss.refine import RefineSettings
from advcam_attr.pipelines.wsss.segment import SegmentationSettings
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


@dataclass(frozen=True)
class NetConfig:
    """The classifier: one that is trained here, or a published seed generator.

    Attributes:
        backbone: of a net that is trained here; see `advcam_attr.networks.cam_net.cam_net`, as for the next ones.
        model_args: keyword arguments of the backbone as its weights need them.
        checkpoint: the backbone's weights; or the generator's file. None takes the backbone's pretrained ones.
        random_weights: start from a backbone as it is initialised.
        stride: the output stride.
        stride_mode: how the stride is reached.
        train_from: the module from which on weights are trained; None trains all but the stem.
        mean, std: another normalisation than the backbone's own.
        seed: of the new classifier's weights.
        class_map: a JSON file that says which classes of the backbone's own classifier depict the data's; the new
            classifier starts from their weights (`advcam_attr.data.class_names`). None starts from random ones.
        class_offset: is added to the file's classes; 1 for backbones whose class 0 is the background.
        generator: ``"irn"``, ``"seam"`` or ``"sc_cam"``: the authors' net, from ``checkpoint``, without training.
    """

    backbone: str = "torchvision/resnet50"
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    random_weights: bool = False
    stride: int | None = 16
    stride_mode: Literal["removal", "dilation"] = "removal"
    train_from: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    class_map: str | None = None
    class_offset: int = 0
    generator: str | None = None


@dataclass(frozen=True)
class SeedConfig:
    """How seeds are made; see `advcam_attr.pipelines.maps.MapSettings`.

    Attributes:
        methods: plain CAM seeds, AdvCAM's, or both.
        recipe: AdvCAM's.
        overrides: parts of the recipe by name.
        base: AdvCAM's base attribution. SEAM brings its own.
        scales: factors of the pictures' size.
        saliency: a folder of a detector's maps, for AdvCAM (section 4.4).
        batch_rows: rows climbed at once at scale 1.
        workers: threads that read pictures ahead.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        autocast: the precision to compute in, e.g. ``"bfloat16"``; None for float32.
        channels_last: lay images and net out so.
    """

    methods: tuple[Method, ...] = ("cam", "advcam")
    recipe: str = "official"
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str = "cam"
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    saliency: str | None = None
    batch_rows: int = 4
    workers: int = 2
    device: str = "auto"
    autocast: Literal["bfloat16", "float16"] | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: no method."""
        if not self.methods:
            raise AdvCAMError("seeds.methods names no method: give cam, advcam, or both")


@dataclass(frozen=True)
class ScoreConfig:
    """How seeds are scored.

    Attributes:
        thresholds: the background thresholds that are swept: the released scripts' for ``"voc"``, ``"coco"`` or
            ``"seam"``.
        device: where pixels are counted.
        allow_missing: score the other images where maps are missing.
    """

    thresholds: str = "voc"
    device: str = "cpu"
    allow_missing: bool = False


@dataclass(frozen=True)
class WSSSConfig:
    """A run of the whole pipeline.

    Attributes:
        run: the folder of all its results.
        data: what it works on.
        net: the classifier.
        classifier: its training.
        seeds: how maps are made.
        score: how they are scored.
        refine: how pseudo ground truth is made of them.
        segmentation: the segmentation net that is trained on that.
    """

    run: str
    data: DataConfig
    net: NetConfig = field(default_factory=NetConfig)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    seeds: SeedConfig = field(default_factory=SeedConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    refine: RefineSettings = field(default_factory=RefineSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)


def folder_of(config: WSSSConfig, *parts: str) -> Path:
    """A place in the run folder."""
    return path_of(config.run).joinpath(*parts)
