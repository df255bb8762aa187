"""Stages of a localization run: classifiers, maps, scores.

A stage reads what the one before it wrote, and skips what exists. The folder of each classifier, ``NAME`` or
``NAME/seedN``, holds

- ``classifier/``: the trained net and its log (`advcam_attr.pipelines.wsol.classifier`);
- ``maps/cam/``, ``maps/climb/``, ``maps/advcam/``: maps, predictions, and their scores
  (`advcam_attr.pipelines.maps`, `advcam_attr.pipelines.wsol.evaluate`).

``report.json`` and ``tables.md`` in the run folder cover all classifiers.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from torch import nn

from advcam_attr.attr.advcam import BASES
from advcam_attr.data.class_names import in_classes_of
from advcam_attr.data.images import read_stored_rgb
from advcam_attr.data.labels import few
from advcam_attr.data.samples import LocalizationData
from advcam_attr.heads import view
from advcam_attr.networks.load import load_configured, read_labels
from advcam_attr.networks.wsol import load_wsol_net
from advcam_attr.pipelines.config import path_of, recorded_config, require_unchanged
from advcam_attr.pipelines.maps import MapSettings, MapSummary, make_wsol_maps
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.wsol.classifier import (
    WEIGHTS,
    WSOLClassifierResult,
    WSOLData,
    size_of,
    train_wsol_classifier,
)
from advcam_attr.pipelines.wsol.config import ReadyNet, TrainedNet, WSOLConfig, WSOLMethod
from advcam_attr.pipelines.wsol.evaluate import evaluate_wsol
from advcam_attr.pipelines.wsol.plan import maps_folder, progress
from advcam_attr.pipelines.wsol.score import Measured, write_wsol_report
from advcam_attr.registry import lookup
from advcam_attr.runs.run_log import run_log
from advcam_attr.runs.sharding import shard_of, shard_of_launch
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: A net that maps are made with, its mean, and its std.
_Normalized = tuple[nn.Module, tuple[float, ...], tuple[float, ...]]


class WSOLRun:
    """A localization run; its stages share the images that they read.

    Raises:
        AdvCAMError: by all stages, if data, nets, or earlier results are missing or do not fit.
    """

    def __init__(self, config: WSOLConfig) -> None:
        self.config, self.folder = config, path_of(config.run)

    def run(self) -> list[MapSummary]:
        """Run all stages; nothing is scored if maps failed, or in one of several processes."""
        stages = progress(self)
        if shard_of_launch().rank == 0:
            logger.info("\n".join(map(str, stages)))
        if self.config.net is None:
            self.train()
        summaries = self.make_maps()
        if any(one.failed for one in summaries):
            return summaries
        if shard_of().world > 1:
            logger.info("one of several processes: when all are done, run advcam wsol evaluate")
        else:
            self.evaluate()
        return summaries

    def train(self) -> dict[TrainedNet, WSOLClassifierResult]:
        """Run the stage ``classifier``: all trainings of the configuration."""
        config, results = self.config, {}
        if config.net is not None:
            raise AdvCAMError("the net comes trained: go on with the maps")
        data, val = self.train_data, self.val_data
        logger.info(f"training on {_size(data)}" + ("" if val is None else f", validating on {_size(val)}"))
        with recorded_config(self.folder, config):
            for net in config.nets():
                settings, seed, out = config.training(net.name), net.seed or 0, net.folder / "classifier"
                logger.info(f"training {net.name} with seed {net.seed} in {out}")
                untrained = settings.make_net(len(data.classes), seed)
                runtime = replace(config.runtime, seed=seed)
                results[net] = train_wsol_classifier(settings, untrained, data, val, out, runtime)
        return results

    def make_maps(self) -> list[MapSummary]:
        """Run the stage ``maps``: the maps of every classifier by every method."""
        logger.info(f"making maps of {_size(self.scored)}")
        settings, summaries = self.map_settings(), []
        for trained in self.config.nets():
            net, mean, std = self.map_net(trained)
            if self.config.runtime.channels_last:
                net.to(memory_format=torch.channels_last)
            with recorded_config(self.folder, self.config):
                for method, chosen in settings.items():
                    out = maps_folder(trained, method)
                    logger.info(f"making maps of {trained.name} by {method} in {out}")
                    chosen = replace(chosen, mean=mean, std=std)
                    summaries.append(make_wsol_maps(net, self.mapped, out, chosen))
        return summaries

    def evaluate(self) -> list[Measured]:
        """Run the stage ``evaluate``: the measures of all maps, ``report.json``, and the paper's tables."""
        config, data, found = self.config, self.mapped, []
        require_unchanged(self.folder, config, "data.kind", "net", "classifier", "maps")
        with run_log(self.folder):
            for net, method in product(config.nets(), config.maps.methods):
                folder = maps_folder(net, method)
                logger.info(f"scoring the boxes of {folder}")
                scores = evaluate_wsol(folder, data, **vars(config.score))
                found.append(Measured(net, method, folder, scores))
            write_wsol_report(config, self.scored.name, found)
        return found

    @cached_property
    def train_data(self) -> WSOLData:
        return self.config.data.read_train()

    @cached_property
    def val_data(self) -> LocalizationData | None:
        return None if self.config.data.val is None else self.config.data.read(self.config.data.val)

    @cached_property
    def scored(self) -> LocalizationData:
        data = self.config.data.read(self.config.data.score)
        if data.masks:
            raise AdvCAMError(
                f"{data.name} {data.split} has masks and no boxes, and MaxBoxAcc needs boxes: in Python, make maps by "
                "advcam_attr.pipelines.maps.make_wsol_maps and score them (PxAP) by "
                "advcam_attr.metrics.localization.PixelAP"
            )
        return data

    @cached_property
    def mapped(self) -> LocalizationData:
        """The images to score whose classes the net has, labelled by its classes."""
        data = self.scored
        if self.config.net is None or self.config.net.labels is None:
            return data
        path = path_of(self.config.net.labels)
        found, unknown = in_classes_of(data, read_labels(path))
        logger.info(
            f"{path} has {len(data.classes) - len(unknown)} of {len(data.classes)} classes: {len(found.samples)} "
            f"images; {len(data.samples) - len(found.samples)} of the others are left out ({few(unknown)})"
            if unknown
            else f"{path} has all {len(data.classes)} classes of {data.name}"
        )
        return found

    def map_settings(self) -> dict[WSOLMethod, MapSettings]:
        """Return the settings of the maps by method, with their recipes checked."""
        c = self.config.maps
        lookup(c.base, BASES, "base")
        found: dict[WSOLMethod, MapSettings] = {}
        for method in c.methods:
            bare = {"objective": "target", "regularizers": ()} if method == "climb" else {}
            found[method] = MapSettings(
                method="cam" if method == "cam" else "advcam",
                recipe=c.recipe,
                overrides={**c.overrides, **bare},
                base=c.base,
                layer=None if self.config.net is None else self.config.net.layer,
                size=(c.size, c.size),
                batch=c.batch,
                read=read_stored_rgb,
                runtime=self.config.runtime,
            )
            found[method].whole_recipe()
        return found

    def map_net(self, trained: TrainedNet) -> _Normalized:
        """Return the net that maps are made with, its mean, and its std."""
        ready = self.config.net
        if ready is None:
            return self._localization_net(trained.folder / "classifier" / WEIGHTS, ReadyNet())
        if ready.model is None:
            return self._localization_net(path_of(str(ready.checkpoint)), ready)
        return self._classifier(ready)

    def _localization_net(self, path: Path, ready: ReadyNet) -> _Normalized:
        data = self.scored
        if self.config.net is None and not path.is_file():
            raise AdvCAMError(f"there is no classifier {path}: train it first (advcam wsol classifier)")
        net, classes = load_wsol_net(path, stride=ready.stride, mean=ready.mean, std=ready.std)
        if net.spec.num_classes != len(data.classes) or (classes and classes != data.classes):
            raise AdvCAMError(f"{path} is of {net.spec.num_classes} other classes than the {len(data.classes)} of data")
        logger.info(f"reading {path}")
        return net, net.mean, net.std

    def _classifier(self, ready: ReadyNet) -> _Normalized:
        labels = None if ready.labels is None else path_of(ready.labels)
        loaded = load_configured(
            str(ready.model),
            model_args=ready.model_args,
            checkpoint=None if ready.checkpoint is None else path_of(ready.checkpoint),
            random_weights=ready.random_weights,
            labels=labels,
            mean=ready.mean,
            std=ready.std,
        )
        logger.info(f"reading {ready.model}: {loaded.weights}")
        mean, std, names = loaded.preprocessing.mean, loaded.preprocessing.std, loaded.class_names
        if mean is None or std is None:
            raise AdvCAMError(f"the normalization of {ready.model} is unknown: give net.mean and net.std")
        if labels is not None and names is not None:
            x = torch.zeros(3, self.config.maps.size, self.config.maps.size)
            classes = head_at(view(loaded.model), x, str(ready.model), remedy="choose another maps.size").classes
            if classes != len(names):
                raise AdvCAMError(
                    f"label file {labels} has {len(names)} names, but {ready.model} has {classes} classes"
                )
        return loaded.model, mean, std


def _size(data: WSOLData) -> str:
    if isinstance(data, LocalizationData):
        return f"{len(data.samples)} images of {data.name} {data.split} in {data.root}"
    return f"{size_of(data)} images of {data.name} {data.split} in {len(data.files)} shards of {data.files[0].parent}"
