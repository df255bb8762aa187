"""Instance masks of seeds by IRN's net, and their average precision.

``refined/METHOD/instances/<id>.png`` is a palette PNG as PASCAL VOC's ``SegmentationObject``, with classes and scores
in its text (`advcam_attr.data.instances`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from advcam_attr.data.instances import read_instances, write_instances
from advcam_attr.data.masks import mask_path
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import to_json
from advcam_attr.metrics.evaluation import Scope
from advcam_attr.metrics.instances import InstanceAP, InstanceScores
from advcam_attr.networks.irnet import IRNET, IRNet
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.wsss.irn import IRN, edges_and_displacement
from advcam_attr.pipelines.wsss.mask_config import RefineConfig
from advcam_attr.refine.instances import irn_instances
from advcam_attr.refine.recipes import InstanceRecipe
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.provenance import net_config
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of
from advcam_attr.runs.stage import SeededImage, check_seeds, run_stage, seeded_stage
from advcam_attr.types import AdvCAMError, Instances, NoMaskError

#: The folder of the instance masks of a method.
FOLDER = "instances"


def net_file(config: RefineConfig, out: Path) -> Path:
    """Return the file of IRN's net: the one that the configuration names, or the one trained in ``out``."""
    if config.method != IRN.name:
        raise AdvCAMError(f"instances need IRN's net, but refine.method is {config.method}: give --refine.method irn")
    if config.irn.trained is not None:
        return Path(config.irn.trained)
    path = out / IRN.net_folder / f"{IRN.net_folder}.safetensors"
    if not path.is_file():
        raise AdvCAMError(
            f"there is no IRN net {path}: make masks first (advcam wsss refine), or give --refine.irn.trained FILE"
        )
    return path


def make_instances(
    recipe: InstanceRecipe,
    trained: Path,
    pad_to: int,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
    runtime: Runtime = Runtime(),
) -> None:
    """Write the instances of a share of the images to ``out/instances/<id>.png``; existing ones are skipped.

    Args:
        trained: file of IRN's net.
        pad_to: least side at inference, by padding, in pixels.
        seeds: localization maps by image id.

    Raises:
        AdvCAMError: Seeds are missing, the folder was made with other settings, or some images failed; all others are
            done then.
    """
    check_seeds(seeds, data)
    net: IRNet = load_net(trained, IRNET)[0]
    shard = shard_of()
    net.to(device := runtime.torch_device(shard)).eval()
    config = {**dataclasses.asdict(recipe), "pad_to": pad_to, **net_config(net, net.spec)}
    make = partial(_instances, net, recipe, pad_to, device)
    stage = seeded_stage("instances", out / FOLDER, config, seeds, data, make, write_instances)
    run_stage(stage, data, workers=runtime.workers, overwrite=runtime.overwrite, shard=shard)


def _instances(net: IRNet, recipe: InstanceRecipe, pad_to: int, device: torch.device, image: SeededImage) -> Instances:
    edge, displacement = edges_and_displacement(net, image.pixels.to(device), pad_to)
    return irn_instances(image.maps, edge, displacement, recipe)


@dataclass(frozen=True)
class InstanceEvaluation:
    """Instance masks of a data set, scored against its true ones."""

    scope: Scope
    scores: InstanceScores

    def describe(self) -> dict[str, Any]:
        """Return all measures for JSON: shares of 1, null where there is none."""
        at = {f"{threshold:.2f}": self.scores.at(threshold) for threshold in self.scores.thresholds}
        rows = zip(self.scope.classes, self.scores.classes.nanmean(0).tolist(), strict=True)
        per_class = {name: ap for name, ap in rows if not math.isnan(ap)}
        content = {**self.scope.describe(), "ap": self.scores.mean, "ap_at": at, "per_class": per_class}
        described: dict[str, Any] = to_json(content)
        return described


def evaluate_instances(folder: Path, data: SegmentationData, *, allow_missing: bool = False) -> InstanceEvaluation:
    """Score the instances ``<id>.png`` of a folder; images without true ones are left out and named in the result.

    Args:
        folder: as `make_instances` writes it.
        allow_missing: leave out images whose files are missing or damaged, and name them in the result.
    """
    metric, ids = InstanceAP(len(data.classes)), []
    missing: dict[str, str] = {}
    unmasked: dict[str, str] = {}
    for sample in data.samples:
        try:
            truth = data.instances(sample)
        except NoMaskError as error:
            unmasked[sample.id] = str(error)
            continue
        path = mask_path(folder, sample.id)
        try:
            found = read_instances(path, len(data.classes), (truth.masks.shape[1], truth.masks.shape[2]))
        except AdvCAMError as error:
            if not allow_missing:
                raise
            missing[sample.id] = str(error)
            continue
        metric.update(found, truth)
        ids.append(sample.id)
    scope = Scope(f"{data.name} {data.split}", data.classes, tuple(ids), missing, unmasked)
    return InstanceEvaluation(scope, metric.compute())
