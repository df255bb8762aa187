"""The configuration of a run of weakly supervised localization and its paths, out of YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from advcam_attr.data.cutmix import CutMix
from advcam_attr.data.samples import LocalizationData
from advcam_attr.data.shards import ShardData
from advcam_attr.metrics.localization import Contours
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.wsol import wsol_net
from advcam_attr.networks.wsol_parts import Norms, WSOLNet
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.wsol.evaluate import Search
from advcam_attr.runs.provenance import weights_digest
from advcam_attr.runs.runtime import Autocast
from advcam_attr.types import AdvCAMError

T = TypeVar("T")


#: What is trained on: images in folders, or in shards.
WSOLData = LocalizationData | ShardData


@dataclass(frozen=True)
class WSOLClassifierSettings:
    """How a classifier for localization is trained. The defaults are those of ResNet-50 and CAM on CUB; see `SETTINGS`.

    Attributes:
        backbone, model_args, checkpoint, random_weights, stride, train_from, norms, mean, std: of the net; see
            `advcam_attr.networks.wsol.wsol_net`.
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
        autocast: precision of the forward pass; None for float32.
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
    autocast: Autocast | None = None
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
        backbone = Backbone(
            self.backbone,
            self.model_args,
            self.checkpoint,
            self.random_weights,
            self.stride,
            train_from=self.train_from,
            mean=self.mean,
            std=self.std,
        )
        return wsol_net(backbone, num_classes, norms=self.norms, seed=self.seed)


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


#: ``climb`` is AdvCAM without its regularization: the target's logit alone is climbed (Table X).
Method = Literal["cam", "climb", "advcam"]


@dataclass(frozen=True)
class WSOLDataConfig:
    """Which data set, and which of its splits serve for what. Paths may hold ``~`` and ``$VARIABLES``.

    Attributes:
        root: its folder; with ``kind: metadata``, the folder that the lists' paths start from.
        kind: ``"cub"``, ``"imagenet"``, or ``"metadata"``: the lists of Choe et al.
        metadata: the folder of the lists, e.g. ``metadata/CUB``. It is needed for ``kind: metadata``; with others, it
            serves the split ``val`` alone (CUBV2, ImageNetV2).
        train: the images and labels that the classifier learns from.
        val: what the classifier is validated on; None leaves that out.
        score: the images that maps are made of, and whose boxes they are scored on.
        shards: WebDataset's tar files in place of ``train``, e.g. ``shards/imagenet-train-*.tar``.
        per_class: make and score maps of the first images of each class only.
    """

    root: str
    kind: Literal["cub", "imagenet", "metadata"] = "cub"
    metadata: str | None = None
    train: str = "train"
    val: str | None = None
    score: str = "test"
    shards: str | None = None
    per_class: int | None = None

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: lists are asked for, and not given."""
        if self.kind == "metadata" and self.metadata is None:
            raise AdvCAMError("data.kind metadata needs the folder of the lists: give data.metadata, e.g. metadata/CUB")


@dataclass(frozen=True)
class ReadyNet:
    """A net that comes trained.

    Attributes:
        model: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``; None: ``checkpoint`` is a classifier
            for localization, trained here or by Choe et al. or CutMix.
        model_args: keyword arguments of the model as its weights need them.
        checkpoint: its weights; None takes the model's published ones.
        random_weights: leave the model as it is initialised, for trials.
        labels: a file with the names of the net's classes, one a line. The data's classes are matched by name, and
            images of others are left out. None: the net's classes are the data's.
        stride: of a classifier of Choe et al. or CutMix: 16 or 8, which their files do not tell.
        mean, std: another normalisation than the model's own.
        layer: the module whose output is mapped; None finds it.
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
    """How maps are made; see `advcam_attr.pipelines.wsol_maps.WSOLMapSettings`.

    Attributes:
        methods: plain CAM, AdvCAM without regularization, AdvCAM; or some of them.
        recipe: AdvCAM's.
        overrides: parts of the recipe by name.
        base: AdvCAM's base attribution.
        size: of the square that images are resized to.
        batch: how many images are climbed at once.
        workers: threads that read pictures ahead.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        autocast: the precision to compute in; None for float32.
        channels_last: lay images and net out so.
    """

    methods: tuple[Method, ...] = ("cam", "climb", "advcam")
    recipe: str = "wsol"
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str = "cam"
    size: int = 224
    batch: int = 8
    workers: int = 2
    device: str = "auto"
    autocast: Literal["bfloat16", "float16"] | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: no method or one twice, or a number that means nothing."""
        if not self.methods:
            raise AdvCAMError("maps.methods names no method: give cam, climb, advcam, or some of them")
        if twice := _twice(self.methods):
            raise AdvCAMError(f"maps.methods names {twice[0]} twice: name each method once")
        for name, least in (("size", 1), ("batch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise AdvCAMError(f"maps.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class BoxConfig:
    """How maps are scored.

    Attributes:
        contours: ``"all"`` for MaxBoxAccV2, which the paper's tables show; ``"largest"``, too, for MaxBoxAcc.
        search: how best boxes are found; the result is the same.
        processes: how many work at once.
    """

    contours: tuple[Contours, ...] = ("all",)
    search: Search = "auto"
    processes: int = 1

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: the tables' contours are not among them, or no process is."""
        if "all" not in self.contours:
            raise AdvCAMError("score.contours must have all, which the paper's tables show")
        if self.processes < 1:
            raise AdvCAMError(f"score.processes must be at least 1, got {self.processes}")


@dataclass(frozen=True)
class WSOLConfig:
    """A run of localization: classifiers, their maps, and the paper's tables.

    Attributes:
        run: the folder of all its results.
        data: what it works on.
        net: a net that comes trained; None trains one here for each of ``trainings``.
        name: the row of the paper's tables that a ready net stands below.
        classifier: how a classifier is made and trained.
        trainings: classifiers by the row of the paper's tables that they stand below, with what differs from
            ``classifier``: ``{CAM: {}, CutMix: {cutmix_probability: 1.0}}``.
        seeds: every classifier is trained once with each.
        maps: how maps are made.
        score: how they are scored.
    """

    run: str
    data: WSOLDataConfig
    net: ReadyNet | None = None
    name: str = "CAM"
    classifier: WSOLClassifierSettings = field(default_factory=WSOLClassifierSettings)
    trainings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"CAM": {}})
    seeds: tuple[int, ...] = (0,)
    maps: WSOLMapConfig = field(default_factory=WSOLMapConfig)
    score: BoxConfig = field(default_factory=BoxConfig)

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: no net, a training that cannot be, or two of one folder."""
        if self.net is not None and self.net.model is None:
            if self.net.checkpoint is None:
                raise AdvCAMError("net names no net: give net.model, net.checkpoint, or both; or leave net out")
            if self.net.labels is not None:
                raise AdvCAMError(
                    "net.labels goes with net.model: a classifier for localization has the data's classes"
                )
        if self.net is None and not (self.trainings and self.seeds):
            raise AdvCAMError("there is no net: give net, or at least one of trainings and one of seeds")
        if twice := _twice(self.seeds):
            raise AdvCAMError(f"seeds has {twice[0]} twice: give each seed once")
        if shared := _twice([_slug(name) for name in self.trainings]):
            names = " and ".join(repr(name) for name in self.trainings if _slug(name) == shared[0])
            raise AdvCAMError(f"trainings {names} would share the folder {shared[0]}: give them other names")
        for name in self.trainings:
            self.training(name, 0)

    def training(self, name: str, seed: int) -> WSOLClassifierSettings:
        """The settings of one training, its checkpoint's path filled in.

        Raises:
            AdvCAMError: a setting that does not exist or cannot be.
        """
        changes = dict(self.trainings[name] or {})
        known = {f.name for f in dataclasses.fields(WSOLClassifierSettings)}
        if strange := sorted(set(changes) - known):
            raise AdvCAMError(f"trainings.{name} has {strange[0]!r}, which the classifier has not: see --classifier")
        try:
            return dataclasses.replace(self.classifier, **{**changes, "seed": seed})
        except TypeError as error:
            raise AdvCAMError(f"trainings.{name}: {error}") from error


@dataclass(frozen=True)
class Subject:
    """One classifier of a run.

    Attributes:
        name: its row in the tables.
        seed: of its training; None for a net that comes trained.
        folder: where its results are.
    """

    name: str
    seed: int | None
    folder: Path


def subjects_of(config: WSOLConfig) -> tuple[Subject, ...]:
    """The classifiers of a run, in order.

    Example:
        >>> config = WSOLConfig("run", WSOLDataConfig("CUB"), trainings={"CAM": {}, "CutMix": {}}, seeds=(0, 1))
        >>> [subject.folder.as_posix() for subject in subjects_of(config)]
        ['run/cam/seed0', 'run/cam/seed1', 'run/cutmix/seed0', 'run/cutmix/seed1']
    """
    run = path_of(config.run)
    if config.net is not None:
        return (Subject(config.name, None, run / _slug(config.name)),)
    return tuple(
        Subject(name, seed, run / _slug(name) / f"seed{seed}") for name in config.trainings for seed in config.seeds
    )


def _twice(given: Iterable[T]) -> list[T]:
    """What is given more than once."""
    return [one for one, times in Counter(given).items() if times > 1]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())
