"""What a localization run will do, and what it needs for that, before anything is trained or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from advcam_attr.heads import view
from advcam_attr.metrics.box_sweep import compiled_sweep
from advcam_attr.pipelines.checks import check_base, check_runtime
from advcam_attr.pipelines.config import changed_settings
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.wsol.classifier import WEIGHTS, check_training, size_of
from advcam_attr.refine.opencv import opencv
from advcam_attr.runs.progress import Progress, maps_progress, training_progress
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.wsol.config import TrainedNet, WSOLMethod
    from advcam_attr.pipelines.wsol.run import WSOLRun


def check_run(run: WSOLRun) -> None:
    """Raise for whatever a stage of a whole run could not use: settings, files, data, nets, device and packages."""
    config = run.config
    check_runtime(config.runtime, run.folder, trains=config.net is None)
    run.map_settings()
    opencv()
    if config.score.search == "union-find":
        compiled_sweep()
    scored = run.mapped
    if config.net is not None:
        (trained,) = config.nets()
        _check_maps(run, run.map_net(trained)[0])
        return
    if run.train_data.classes != scored.classes:
        raise AdvCAMError(
            f"{run.train_data.name} {config.data.train} has {len(run.train_data.classes)} other classes than the "
            f"{len(scored.classes)} of {scored.split}: check data.train and data.score"
        )
    for name in config.trainings:
        settings = config.training(name)
        net = settings.make_net(len(run.train_data.classes), config.all_seeds[0])
        check_training(settings, net, run.train_data, run.val_data)
        _check_maps(run, net)


def progress(run: WSOLRun) -> list[Progress]:
    """Return the progress of each stage of a run that has been checked; nothing is written."""
    check_run(run)
    stages = []
    for net in run.config.nets():
        if run.config.net is None:
            settings = run.config.training(net.name)
            steps = size_of(run.train_data) // settings.batch * settings.epochs
            stages.append(training_progress(f"classifier {net}", net.folder / "classifier", WEIGHTS, steps))
        for method in run.config.maps.methods:
            folder = maps_folder(net, method) / "maps"
            stages.append(maps_progress(f"maps {net}, {method}", folder, run.mapped.samples))
    changed = changed_settings(run.folder, run.config, "data.kind", "net", "classifier", "maps")
    return [replace(stage, changed=changed) for stage in stages]


def maps_folder(net: TrainedNet, method: WSOLMethod) -> Path:
    return net.folder / "maps" / method


def _check_maps(run: WSOLRun, net: nn.Module) -> None:
    maps, ready = run.config.maps, run.config.net
    layer = None if ready is None else ready.layer
    check_base(maps.base, net, layer)
    x = torch.zeros(3, maps.size, maps.size)
    head_at(view(net.eval(), layer), x, "the net", remedy="choose another maps.size")
