"""The configuration of a run of weakly supervised localization and its paths, out of YAML."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from advcam_attr.metrics.localization import Contours
from advcam_attr.pipelines.box_table import Search
from advcam_attr.pipelines.wsol_settings import WSOLClassifierSettings
from advcam_attr.pipelines.wsss_config import path_of
from advcam_attr.types import AdvCAMError

T = TypeVar("T")

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
