"""A configuration in; the stages of localization over one run folder, from classifiers to the paper's tables, out.

Every stage reads what the one before it has written, tells what it reads and writes, and does nothing again that is
there. In the folder of a run, each classifier has one of its own, ``NAME`` or ``NAME/seedN``, with

- ``classifier/``: the trained net and its log (`advcam_attr.pipelines.wsol.classifier`);
- ``maps/cam/``, ``maps/climb/``, ``maps/advcam/``: maps, predictions, and their scores
  (`advcam_attr.pipelines.wsol_maps`, `advcam_attr.pipelines.wsol.evaluate`).

``report.json`` and ``tables.md`` are of all classifiers.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from advcam_attr.attr.advcam import BASES
from advcam_attr.data.class_names import in_classes_of
from advcam_attr.data.cub import read_cub
from advcam_attr.data.imagenet import read_imagenet
from advcam_attr.data.images import read_stored_rgb
from advcam_attr.data.labels import few
from advcam_attr.data.samples import LocalizationData, per_class
from advcam_attr.data.shards import read_shards
from advcam_attr.data.wsol_metadata import read_wsol_metadata
from advcam_attr.heads import view
from advcam_attr.networks.load import load_model, read_labels
from advcam_attr.networks.wsol import load_wsol_net
from advcam_attr.pipelines.config import recorded_config
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.seeds import SeedSummary
from advcam_attr.pipelines.wsol.classifier import WEIGHTS, WSOLClassifierResult, train_wsol_classifier
from advcam_attr.pipelines.wsol.config import (
    Method,
    ReadyNet,
    Subject,
    WSOLConfig,
    WSOLData,
    WSOLDataConfig,
    path_of,
    subjects_of,
)
from advcam_attr.pipelines.wsol.evaluate import evaluate_wsol
from advcam_attr.pipelines.wsol.score import Measured, write_wsol_report
from advcam_attr.pipelines.wsol_maps import WSOLMapSettings, make_wsol_maps
from advcam_attr.registry import lookup
from advcam_attr.runs.sharding import shard_of
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Net:
    """A net, the images in its classes, and how images are normalised for it."""

    net: nn.Module
    data: LocalizationData
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layer: str | None = None


def train(
    config: WSOLConfig,
) -> dict[Subject, WSOLClassifierResult]:
    """The stage ``classifier``: every training of the configuration.

    Raises:
        AdvCAMError: the net comes trained; or as `advcam_attr.pipelines.wsol.classifier.train_wsol_classifier`.
    """
    if config.net is not None:
        raise AdvCAMError("the net comes trained: go on with the maps")
    data = read_train(config.data)
    val = None if config.data.val is None else read_split(config.data, config.data.val)
    logger.info(f"reading {_told(data)} to train on" + ("" if val is None else f", {_told(val)} to validate on"))
    found = {}
    with recorded_config(path_of(config.run), config):
        for subject in subjects_of(config):
            settings = config.training(subject.name, subject.seed or 0)
            if settings.checkpoint is not None:
                settings = dataclasses.replace(settings, checkpoint=path_of(str(settings.checkpoint)))
            logger.info(f"training {subject.name} with seed {subject.seed} in {subject.folder / 'classifier'}")
            net = settings.make_net(len(data.classes))
            found[subject] = train_wsol_classifier(settings, net, data, val, subject.folder / "classifier")
            logger.info(f"wrote {found[subject].weights}")
    return found


def make_maps(config: WSOLConfig, *, overwrite: bool = False, show_progress: bool = False) -> list[SeedSummary]:
    """The stage ``maps``: the maps of every classifier by every method.

    Raises:
        AdvCAMError: images have masks in place of boxes, or a classifier is not trained yet; or as
            `advcam_attr.pipelines.wsol_maps.make_wsol_maps`.
    """
    data = _read_scored(config.data)
    logger.info(f"reading {_told(data)}")
    settings = _checked_settings(config)
    summaries = []
    for subject in subjects_of(config):
        net = _net_of(config, subject, data)
        if config.maps.channels_last:
            net.net.to(memory_format=torch.channels_last)
        with recorded_config(path_of(config.run), config):
            for method, chosen in settings.items():
                out = maps_folder(subject, method)
                logger.info(f"making maps of {subject.name} by {method} in {out}")
                chosen = dataclasses.replace(chosen, mean=net.mean, std=net.std, layer=net.layer, overwrite=overwrite)
                summaries.append(make_wsol_maps(net.net, net.data, out, chosen, show_progress=show_progress))
    return summaries


def _checked_settings(config: WSOLConfig) -> dict[Method, WSOLMapSettings]:
    """How maps are made by each method.

    Raises:
        AdvCAMError: an unknown recipe, part of one, or base.
    """
    lookup(config.maps.base, BASES, "base")
    settings = {method: map_settings(config, method) for method in config.maps.methods}
    for chosen in settings.values():
        chosen.whole_recipe()
    return settings


def map_settings(config: WSOLConfig, method: Method) -> WSOLMapSettings:
    """How maps are made by a method, but for what the net says."""
    c = config.maps
    bare = {"objective": "target", "regularizers": ()} if method == "climb" else {}
    return WSOLMapSettings(
        method="cam" if method == "cam" else "advcam", recipe=c.recipe, overrides={**c.overrides, **bare}, base=c.base,
        size=(c.size, c.size), batch=c.batch, read=read_stored_rgb, workers=c.workers, device=c.device,
        autocast=None if c.autocast is None else getattr(torch, c.autocast), channels_last=c.channels_last,
    )  # fmt: skip


def evaluate(
    config: WSOLConfig,
) -> list[Measured]:
    """The stage ``evaluate``: the measures of all maps, ``report.json``, and the paper's tables with this run's rows.

    Raises:
        AdvCAMError: maps are missing, or as `advcam_attr.pipelines.wsol.evaluate.evaluate_wsol`.
    """
    data = _read_scored(config.data)
    logger.info(f"reading {_told(data)}")
    known = _known_part(config, data)
    found = []
    for subject in subjects_of(config):
        for method in config.maps.methods:
            folder = maps_folder(subject, method)
            logger.info(f"scoring the boxes of {folder}")
            scores = evaluate_wsol(
                folder, known, contours=config.score.contours, search=config.score.search,
                processes=config.score.processes,
            )  # fmt: skip
            found.append(Measured(subject, method, folder, scores))
    write_wsol_report(config, data.name, found)
    return found


def run(config: WSOLConfig, *, show_progress: bool = False) -> list[SeedSummary]:
    """All stages; those that are done are passed over. One of several processes leaves the evaluation to be asked for.

    Returns:
        What the maps' stage did; where it could not make maps of all images, nothing is evaluated.

    Raises:
        AdvCAMError: as the stages; settings of the maps, and images to score that are not there, before any training.
    """
    if config.net is None:
        _checked_settings(config)
        _read_scored(config.data)
        train(config)
    summaries = make_maps(config, show_progress=show_progress)
    if any(one.failed for one in summaries):
        return summaries
    if shard_of().world > 1:
        logger.info("one of several processes: when all are done, run advcam wsol evaluate")
    else:
        evaluate(config)
    return summaries


def maps_folder(subject: Subject, method: Method) -> Path:
    """Where the maps of a classifier by one method are."""
    return subject.folder / "maps" / method


def read_train(config: WSOLDataConfig) -> WSOLData:
    """The images and labels that classifiers learn from.

    Raises:
        AdvCAMError: they cannot be read; see the data set's reader.
    """
    if config.shards is None:
        return read_split(config, config.train)
    path = path_of(config.shards)
    classes = read_split(config, config.score).classes
    return read_shards(path.parent, path.name, classes=classes, name=config.kind, split=config.train)


def read_split(config: WSOLDataConfig, split: str) -> LocalizationData:
    """One split of the configured data set.

    Raises:
        AdvCAMError: it cannot be read; see the data set's reader.
    """
    root = path_of(config.root)
    if config.kind == "metadata" or (split == "val" and config.metadata is not None):
        data = read_wsol_metadata(path_of(str(config.metadata)), root, split)
    else:
        data = (read_cub if config.kind == "cub" else read_imagenet)(root, split)
    return per_class(data, config.per_class) if config.per_class is not None and split == config.score else data


def _read_scored(config: WSOLDataConfig) -> LocalizationData:
    """The images that maps are made of, and whose boxes they are scored on.

    Raises:
        AdvCAMError: they have masks in place of boxes; or as `read_split`.
    """
    data = read_split(config, config.score)
    if data.masks:
        raise AdvCAMError(
            f"{data.name} {data.split} has masks and no boxes, and MaxBoxAcc needs boxes: in Python, make maps by "
            "advcam_attr.pipelines.wsol_maps.make_wsol_maps and score them (PxAP) by "
            "advcam_attr.metrics.localization.PixelAP"
        )
    return data


def _net_of(
    config: WSOLConfig,
    subject: Subject,
    data: LocalizationData,
) -> _Net:
    """The net that maps are made with, and the images that it knows."""
    if config.net is None or config.net.model is None:
        return _localization_net(config, subject, data)
    n = config.net
    labels = None if n.labels is None else path_of(n.labels)
    loaded = load_model(
        str(n.model), model_args=n.model_args, checkpoint=_optional(n.checkpoint), random_weights=n.random_weights,
        labels=labels, mean=n.mean, std=n.std,
    )  # fmt: skip
    logger.info(f"reading {n.model}: {loaded.weights}")
    if loaded.preprocessing.mean is None or loaded.preprocessing.std is None:
        raise AdvCAMError(f"the normalisation of {n.model} is not known: give net.mean and net.std")
    if labels is not None and loaded.class_names is not None:
        x = torch.zeros(3, config.maps.size, config.maps.size)
        head = head_at(view(loaded.model), x, str(n.model), remedy="choose another maps.size")
        if head.classes != len(loaded.class_names):
            raise AdvCAMError(
                f"label file {labels} has {len(loaded.class_names)} names, but {n.model} has {head.classes} classes"
            )
    known = _known_part(config, data)
    return _Net(loaded.model, known, loaded.preprocessing.mean, loaded.preprocessing.std, n.layer)


def _localization_net(
    config: WSOLConfig,
    subject: Subject,
    data: LocalizationData,
) -> _Net:
    """A classifier that was trained here, or by Choe et al., or CutMix."""
    n = config.net or ReadyNet(checkpoint="")
    path = subject.folder / "classifier" / WEIGHTS if config.net is None else path_of(str(n.checkpoint))
    if config.net is None and not path.is_file():
        raise AdvCAMError(f"there is no classifier {path}: train it first (advcam wsol classifier)")
    net, classes = load_wsol_net(path, stride=n.stride, mean=n.mean, std=n.std)
    if net.spec.num_classes != len(data.classes) or classes not in ((), data.classes):
        raise AdvCAMError(f"{path} is of {net.spec.num_classes} other classes than {data.name}'s {len(data.classes)}")
    logger.info(f"reading {path}")
    return _Net(net, data, net.mean, net.std, n.layer)


def _known_part(
    config: WSOLConfig,
    data: LocalizationData,
) -> LocalizationData:
    """The images of the classes that the net knows, labelled by its classes."""
    if config.net is None or config.net.labels is None:
        return data
    path = path_of(config.net.labels)
    known, unknown = in_classes_of(data, read_labels(path))
    logger.info(
        f"{path} has {len(data.classes) - len(unknown)} of {len(data.classes)} classes: {len(known.samples)} images; "
        f"{len(data.samples) - len(known.samples)} of the others are left out ({few(unknown)})"
        if unknown
        else f"{path} has all {len(data.classes)} classes of {data.name}"
    )
    return known


def _optional(text: str | None) -> Path | None:
    return None if text is None else path_of(text)


def _told(data: WSOLData) -> str:
    if isinstance(data, LocalizationData):
        return f"{data.root}: {len(data.samples)} images of {data.name} {data.split}"
    return f"{data.files[0].parent}: {len(data)} images of {data.name} {data.split}, in {len(data.files)} shards"
