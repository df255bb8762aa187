"""The configuration of a run of weakly supervised segmentation, its paths, and the file that keeps it, out of YAML."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from advcam_attr.pipelines.wsss.classifier import ClassifierSettings
from advcam_attr.pipelines.wsss.refine import RefineSettings
from advcam_attr.pipelines.wsss.segment import SegmentationSettings
from advcam_attr.runs.provenance import CONFIG
from advcam_attr.types import AdvCAMError

Method = Literal["cam", "advcam"]

Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and which of its splits serve for what. Paths may hold ``~`` and ``$VARIABLES``.

    Attributes:
        kind: ``"voc"`` or ``"coco"``.
        root: its folder.
        train: the images and labels that the classifier learns from; a split or a list's path.
        val: what the classifier is validated on, and segmentation nets label and are scored on; None leaves that out.
        test: what segmentation nets label besides: images without masks, e.g. VOC's ``test``; None leaves that out.
        seeds: the images that maps are made of; None takes ``train``.
        score: the images whose masks the seeds are scored on; a part of ``seeds``.
        labels: a ``cls_labels.npy`` in place of the annotations.
        masks: COCO's masks: ``"auto"``, ``"draw"``, or a folder of ready ones.
    """

    root: str
    kind: Literal["voc", "coco"] = "voc"
    train: str = "train_aug"
    val: str | None = "val"
    test: str | None = None
    seeds: str | None = None
    score: str = "train"
    labels: str | None = None
    masks: str = "auto"


@dataclass(frozen=True)
class NetConfig:
    """The classifier: one that is trained here, or a published seed generator.

    Attributes:
        backbone: of a net that is trained here; see `advcam_attr.networks.cam_net.cam_net`, as for the next ones.
        model_args: keyword arguments of the backbone as its weights need them.
        checkpoint: the backbone's weights; or the generator's file. None takes the backbone's pretrained ones.
        random_weights: start from a backbone as it is initialised.
        stride: the output stride.
        lowered_by: how the stride is reached.
        train_from: the module from which on weights are trained; None trains all but the stem.
        mean, std: another normalisation than the backbone's own.
        seed: of the new classifier's weights.
        known: a JSON file that says which classes of the backbone's own classifier depict the data's; the new
            classifier starts from their weights (`advcam_attr.data.class_names`). None starts from random ones.
        known_offset: is added to the file's classes; 1 for backbones whose class 0 is the background.
        generator: ``"irn"``, ``"seam"`` or ``"sc_cam"``: the authors' net, from ``checkpoint``, without training.
    """

    backbone: str = "torchvision/resnet50"
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    random_weights: bool = False
    stride: int | None = 16
    lowered_by: Literal["removal", "dilation"] = "removal"
    train_from: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    known: str | None = None
    known_offset: int = 0
    generator: str | None = None


@dataclass(frozen=True)
class SeedConfig:
    """How seeds are made; see `advcam_attr.pipelines.seeds.SeedSettings`.

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


def with_paths(settings: Settings, *names: str) -> Settings:
    """Settings whose paths have their variables filled in.

    Args:
        settings: a dataclass.
        names: the attributes that are paths, or None.
    """
    given = {name: getattr(settings, name) for name in names}
    paths = {name: None if value is None else path_of(str(value)) for name, value in given.items()}
    return dataclasses.replace(settings, **paths)


def folder_of(config: WSSSConfig, *parts: str) -> Path:
    """A place in the run folder."""
    return path_of(config.run).joinpath(*parts)


def path_of(text: str) -> Path:
    """A path with ``~`` and ``$VARIABLES`` filled in.

    Example:
        >>> path_of("data/voc").as_posix()
        'data/voc'

    Raises:
        AdvCAMError: a variable is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "$" in expanded:
        raise AdvCAMError(f"{text}: set the environment variable {expanded[expanded.index('$') :].split('/')[0]}")
    return Path(expanded)


def config_of(run: Path) -> Path:
    """The file of a run folder that holds its configuration.

    Raises:
        AdvCAMError: there is none.
    """
    if not (run / CONFIG).is_file():
        raise AdvCAMError(f"{run} is no run folder: it has no {CONFIG}; make seeds with advcam wsss first")
    return run / CONFIG
