"""Configuration of a localization run: data, classifiers, maps and scores."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from jsonargparse.typing import PositiveInt

from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.config import check_keys, path_of, with_paths
from advcam_attr.pipelines.option_types import parsed
from advcam_attr.registry import nearest
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.data.cutmix import CutMix
    from advcam_attr.data.samples import LocalizationData
    from advcam_attr.data.shards import ShardData
    from advcam_attr.networks.wsol_parts import WSOLNet

T = TypeVar("T")

#: How maps are made; ``climb`` is AdvCAM without its regularization, on the target's logit alone (Table X).
WSOLMethod = Literal["cam", "climb", "advcam"]


@dataclass(frozen=True)
class WSOLClassifierSettings:
    """Training of a localization classifier. Defaults: ResNet-50 with CAM on CUB; see `WSOL_SETTINGS`.

    Attributes:
        backbone: see `advcam_attr.networks.wsol.wsol_net`.
        norms: statistics of batch norms.
        optimizer: ``head_lr``, ten times ``lr`` (Choe et al.), is that of layer4 and the classifier of ResNet-50, and
            of the head of other nets. Rates follow ``decay_every``, not ``power``.
        epochs: passes over the images; incomplete batches are dropped (Choe et al. keep them).
        batch: images an update, of all ranks together.
        resize: side of a resized training image.
        crop: side of its random crop, and of validation images.
        decay_every: epochs between divisions of the rates by ten; the first is before the epoch of this number.
        cutmix_probability: share of mixed batches.
        cutmix_beta: of the Beta distribution of the mixed area.
        checkpoint_every: steps between checkpoints; each epoch has one, too.
    """

    backbone: Backbone = Backbone("torchvision/resnet50", stride=8)
    norms: Literal["batch", "running"] = "batch"
    optimizer: Optimizer = Optimizer(2.3222617e-4, nesterov=True)
    epochs: PositiveInt = 50
    batch: PositiveInt = 32
    resize: PositiveInt = 256
    crop: PositiveInt = 224
    decay_every: PositiveInt = 15
    cutmix_probability: float = 0.0
    cutmix_beta: float = 1.0
    checkpoint_every: PositiveInt = 1000

    def __post_init__(self) -> None:
        if self.resize < self.crop:
            raise AdvCAMError(f"classifier.crop must be at most resize, got {self.crop} and {self.resize}")
        if not (0 < self.cutmix_beta < math.inf and 0 <= self.cutmix_probability <= 1):
            got = f"{self.cutmix_beta} and {self.cutmix_probability}"
            raise AdvCAMError(f"classifier.cutmix_beta must be positive and cutmix_probability in 0 to 1, got {got}")

    @property
    def cutmix(self) -> CutMix | None:
        from advcam_attr.data.cutmix import CutMix

        return CutMix(self.cutmix_beta, self.cutmix_probability) if self.cutmix_probability else None

    def make_net(self, num_classes: int, seed: int = 0) -> WSOLNet:
        from advcam_attr.networks.wsol import wsol_net

        return wsol_net(with_paths(self.backbone, "checkpoint"), num_classes, norms=self.norms, seed=seed)


def _settings(name: str, lr: float, weight_decay: float = 1e-4, **changes: Any) -> WSOLClassifierSettings:
    optimizer = Optimizer(lr, weight_decay=weight_decay, nesterov=True)
    return WSOLClassifierSettings(Backbone(f"torchvision/{name}", stride=8), optimizer=optimizer, **changes)


_IMAGENET = {"epochs": 10, "decay_every": 3}

#: By data set, net and method. AdvCAM's paper does not say how its classifiers were trained, and the table of Choe et
#: al. is not public: learning rates, decays and CutMix's numbers are those of public scripts that quote it; batch,
#: epochs and rate decay are Choe et al.'s. Unquoted: CAM's learning rate and CutMix's own numbers (1, 1) for CutMix on
#: ImageNet, CAM's grid for CutMix. Check them on the validation split (CUBV2, ImageNetV2).
WSOL_SETTINGS: dict[str, WSOLClassifierSettings] = {
    "cub_resnet50_cam": WSOLClassifierSettings(),
    "cub_resnet50_cutmix": _settings("resnet50", 3.333722e-4, cutmix_beta=1.35, cutmix_probability=0.24),
    "cub_inception_v3_cam": _settings("inception_v3", 2.24844746e-3, 5e-4),
    "cub_inception_v3_cutmix": _settings("inception_v3", 2.25171726e-3, 5e-4, cutmix_beta=0.04, cutmix_probability=0.3),
    "imagenet_resnet50_cam": _settings("resnet50", 3.108411e-5, **_IMAGENET),
    "imagenet_resnet50_cutmix": _settings("resnet50", 3.108411e-5, cutmix_probability=1.0, **_IMAGENET),
    "imagenet_inception_v3_cam": _settings("inception_v3", 3.606503e-4, 5e-4, **_IMAGENET),
    "imagenet_inception_v3_cutmix": _settings("inception_v3", 3.606503e-4, 5e-4, cutmix_probability=1.0, **_IMAGENET),
}


@dataclass(frozen=True)
class WSOLDataConfig:
    """The data set and its splits. Paths may hold ``~`` and ``$VARIABLES``.

    Attributes:
        root: folder of the data set, or of the paths in the lists.
        kind: kind of data set; ``"metadata"`` is the lists of Choe et al.
        metadata: folder of the lists, such as metadata/CUB; for other kinds, of the split ``val`` (CUBV2, ImageNetV2).
        train: split that classifiers train on.
        val: split that they are validated on; None for none.
        score: split to map and score.
        shards: WebDataset tar files in place of ``train``; a pattern such as ``shards/imagenet-train-*.tar``.
        per_class: images of each class to score; None for all.
    """

    root: str
    kind: Literal["cub", "imagenet", "metadata"] = "cub"
    metadata: str | None = None
    train: str = "train"
    val: str | None = None
    score: str = "test"
    shards: str | None = None
    per_class: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.kind == "metadata" and self.metadata is None:
            raise AdvCAMError("data.kind metadata needs the folder of the lists: give data.metadata, e.g. metadata/CUB")

    def read(self, split: str) -> LocalizationData:
        from advcam_attr.data.cub import read_cub
        from advcam_attr.data.imagenet import read_imagenet
        from advcam_attr.data.samples import per_class
        from advcam_attr.data.wsol_metadata import read_wsol_metadata

        root = path_of(self.root)
        if self.kind == "metadata" or (split == "val" and self.metadata is not None):
            data = read_wsol_metadata(path_of(str(self.metadata)), root, split)
        else:
            data = (read_cub if self.kind == "cub" else read_imagenet)(root, split)
        return per_class(data, self.per_class) if self.per_class is not None and split == self.score else data

    def read_train(self) -> LocalizationData | ShardData:
        if self.shards is None:
            return self.read(self.train)
        from advcam_attr.data.shards import read_shards

        path, classes = path_of(self.shards), self.read(self.score).classes
        return read_shards(path.parent, path.name, classes=classes, name=self.kind, split=self.train)


@dataclass(frozen=True)
class ReadyNet:
    """A trained net.

    Attributes:
        model: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``; None if ``checkpoint`` is a
            localization classifier, trained here or by Choe et al. or CutMix.
        model_args: keyword arguments of the model as its weights need them.
        checkpoint: weights; None takes the model's published ones.
        random_weights: leave the weights as initialized, for tests.
        labels: file of the net's class names, one per line, to match with the data's; images of other classes are left
            out. None if the net's classes are the data's.
        stride: 16 or 8, of a classifier of Choe et al. or CutMix.
        mean: of the normalization; None is the net's own.
        std: of the normalization; None is the net's own.
        layer: module whose output is mapped; None finds it.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    random_weights: bool = False
    labels: str | None = None
    stride: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layer: str | None = None


@dataclass(frozen=True)
class WSOLMapConfig:
    """How maps are made.

    Attributes:
        methods: CAM, AdvCAM without regularization (climb), AdvCAM.
        recipe: recipe of AdvCAM.
        overrides: parts of the recipe by name.
        base: base attribution of AdvCAM.
        size: side of the resized images.
        batch: images climbed at once.
    """

    methods: tuple[WSOLMethod, ...] = ("cam", "climb", "advcam")
    recipe: str = "wsol"
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str = "cam"
    size: PositiveInt = 224
    batch: PositiveInt = 8

    def __post_init__(self) -> None:
        if not self.methods:
            raise AdvCAMError("maps.methods names no method: give cam, climb, advcam, or some of them")
        _require_unique("maps.methods", self.methods)


@dataclass(frozen=True)
class BoxConfig:
    """How maps are scored.

    Attributes:
        contours: of boxes; ``"all"`` for MaxBoxAccV2, the paper's; also ``"largest"`` for MaxBoxAcc.
        search: algorithm for the best boxes; the result is the same.
        processes: number of processes.
    """

    contours: tuple[Literal["all", "largest"], ...] = ("all",)
    search: Literal["auto", "levels", "union-find"] = "auto"
    processes: PositiveInt = 1

    def __post_init__(self) -> None:
        if "all" not in self.contours:
            raise AdvCAMError("score.contours must have all, which the paper's tables show")


@dataclass(frozen=True)
class TrainedNet:
    """A classifier of a run: its row in the tables, the seed of its training (None for a ready net), its folder."""

    name: str
    seed: int | None
    folder: Path

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class WSOLConfig:
    """A localization run: classifiers, their maps, and the paper's tables.

    Attributes:
        run: folder of all results.
        net: a trained net; None trains one for each of ``trainings`` and ``seeds``.
        name: the trained net's row in the tables.
        classifier: training of a classifier.
        trainings: classifiers by row of the tables; each with its differences from ``classifier``:
            ``{CAM: {}, CutMix: {cutmix_probability: 1.0, optimizer: {lr: 3.0e-4}}}``.
        seeds: of the trainings; None for ``runtime.seed`` alone.
    """

    run: str
    data: WSOLDataConfig
    net: ReadyNet | None = None
    name: str = "CAM"
    classifier: WSOLClassifierSettings = WSOLClassifierSettings()
    trainings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"CAM": {}})
    seeds: tuple[int, ...] | None = None
    maps: WSOLMapConfig = field(default_factory=WSOLMapConfig)
    score: BoxConfig = BoxConfig()
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        if self.net is not None and self.net.model is None:
            if self.net.checkpoint is None:
                raise AdvCAMError("net names no net: give net.model, net.checkpoint, or both; or leave net out")
            if self.net.labels is not None:
                raise AdvCAMError("net.labels goes with net.model: a localization classifier has the data's classes")
        if self.net is None and not (self.trainings and self.all_seeds):
            raise AdvCAMError("there is no net: give net, or at least one of trainings and one of seeds")
        _require_unique("seeds", self.all_seeds)
        if min(self.all_seeds, default=0) < 0:
            raise AdvCAMError(f"seeds must not be negative, got {min(self.all_seeds)}")
        _require_unique("folders of trainings", [_slug(name) for name in self.trainings])
        for name in self.trainings:
            self.training(name)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return (self.runtime.seed,) if self.seeds is None else self.seeds

    def training(self, name: str) -> WSOLClassifierSettings:
        changes = self.trainings[name] or {}
        check_keys(WSOLClassifierSettings, changes, f"trainings.{name}")
        return _merged(self.classifier, changes, f"trainings.{name}")

    def nets(self) -> tuple[TrainedNet, ...]:
        """Return the classifiers of the run, in order."""
        run = path_of(self.run)
        if self.net is not None:
            return (TrainedNet(self.name, None, run / _slug(self.name)),)
        pairs = [(name, seed) for name in self.trainings for seed in self.all_seeds]
        return tuple(TrainedNet(name, seed, run / _slug(name) / f"seed{seed}") for name, seed in pairs)


def _merged(settings: T, changes: Mapping[str, Any], section: str) -> T:
    values, hints = dict[str, Any](), get_type_hints(type(settings))
    for name, value in changes.items():
        if name not in hints:
            raise AdvCAMError(f"{section} has no {name!r}{nearest(name, hints)}")
        old, key = getattr(settings, name), f"{section}.{name}"
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        values[name] = _merged(old, value, key) if nested else parsed(hints[name], value, key)
    return replace(settings, **values)  # type: ignore[type-var]


def _require_unique(what: str, values: Iterable[Any]) -> None:
    if twice := [value for value, times in Counter(values).items() if times > 1]:
        raise AdvCAMError(f"{what} must differ, got {twice[0]} twice")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())
