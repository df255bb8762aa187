"""A configuration in; the stages of weakly supervised segmentation over one run folder, from classifier to masks, out.

Every stage reads what the one before it has written, tells what it reads and writes, and does nothing again that is
there. The folder of a run:

- ``classifier/``: the trained net, its log and its measures (`advcam_attr.pipelines.wsss.classifier`);
- ``seeds/cam/``, ``seeds/advcam/``: localization maps (`advcam_attr.pipelines.maps`), and their ``evaluation.json``;
- ``refined/cam/``, ``refined/advcam/``: pseudo ground truth, a folder a step (`advcam_attr.pipelines.wsss.refine`);
- ``segmentation/cam/``, ``segmentation/advcam/``: a net that has learnt from that, and its label maps
  (`advcam_attr.pipelines.wsss.segment`);
- ``tables.md``, ``report.json``: the paper's tables with this run's rows (`advcam_attr.pipelines.wsss.score`);
- ``run.log``: what the stages logged, with times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advcam_attr.attr.adapters import base_of
from advcam_attr.attr.advcam import as_base
from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.masks import SaliencyFolder
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.files import files_digest
from advcam_attr.heads import view
from advcam_attr.metrics.evaluation import MaskEvaluation
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAM_NET, CAMNet, cam_net
from advcam_attr.networks.generators import load_generator
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.config import path_of, recorded_config, with_paths
from advcam_attr.pipelines.evaluate import evaluate_masks, left_out, write_mask_evaluation
from advcam_attr.pipelines.maps import MapSettings, MapSummary, make_seeds, seed_store
from advcam_attr.pipelines.wsss.classifier import WEIGHTS, ClassifierResult, train_classifier
from advcam_attr.pipelines.wsss.config import DataConfig, WSSSConfig, folder_of
from advcam_attr.pipelines.wsss.refine import RefineSummary, check_refined, final_step, refine
from advcam_attr.pipelines.wsss.segment import SegmentationSettings, predict, recipes_of, trained_net
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.npy_maps import export_maps, import_maps, npy_files
from advcam_attr.runs.provenance import check_settings, read_record
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of_launch
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


def train(
    config: WSSSConfig,
) -> ClassifierResult:
    """The stage ``classifier``.

    Raises:
        AdvCAMError: the net is a published generator; or as `advcam_attr.pipelines.wsss.classifier.train_classifier`.
    """
    if config.net.generator is not None:
        raise AdvCAMError(f"the net is {config.net.generator}'s, which comes trained: go on with the seeds")
    data = read_split(config.data, config.data.train)
    val = None if config.data.val is None else read_split(config.data, config.data.val)
    logger.info(
        f"reading {data.root}: {_told(data)}" + ("" if val is None else f" to train on, {_told(val)} to validate on")
    )
    net = config.net
    class_map = None
    if net.class_map is not None:
        class_map = read_class_map(path_of(net.class_map), data.classes, net.class_offset)
    backbone = Backbone(
        net.backbone,
        net.model_args,
        None if net.checkpoint is None else path_of(net.checkpoint),
        net.random_weights,
        net.stride,
        net.stride_mode,
        net.train_from,
        net.mean,
        net.std,
    )
    model = cam_net(backbone, len(data.classes), seed=net.seed, class_map=class_map)
    with recorded_config(folder_of(config), config):
        return train_classifier(config.classifier, model, data, val, folder_of(config, "classifier"))


def seeds(config: WSSSConfig, *, overwrite: bool = False) -> list[MapSummary]:
    """The stage ``seeds``: the maps of every method.

    Raises:
        AdvCAMError: there is no classifier yet; or as `advcam_attr.pipelines.maps.make_seeds`.
    """
    data = read_split(config.data, config.data.seeds or config.data.train)
    data, missing = without_missing(data)
    logger.info(
        f"reading {data.root}: {_told(data)}" + _named_missing(len(missing), missing[0].image if missing else None)
    )
    net, mean, std = seed_net(config, data)
    c = config.seeds
    settings = MapSettings(
        recipe=c.recipe, overrides=c.overrides, base=base_of(net) if config.net.generator else c.base, scales=c.scales,
        mean=mean, std=std, batch=c.batch_rows,
        runtime=Runtime(c.device, c.workers, c.autocast, c.channels_last, overwrite=overwrite),
    )  # fmt: skip
    methods = {method: replace(settings, method=method) for method in c.methods}
    for chosen in methods.values():
        chosen.whole_recipe()
    as_base(settings.base, view(net))
    detector = None if c.saliency is None else SaliencyFolder(path_of(c.saliency))
    summaries = []
    with recorded_config(folder_of(config), config):
        for method, chosen in methods.items():
            chosen = replace(chosen, saliency=detector if method == "advcam" else None)
            out = folder_of(config, "seeds", method)
            logger.info(f"making {method} seeds in {out}")
            summaries.append(make_seeds(net, data, out, chosen))
    return summaries


def require_all(summaries: Sequence[MapSummary]) -> None:
    """That maps of all images were made.

    Raises:
        AdvCAMError: some were not; the first are named.
    """
    failed = [f"{id}: {reason}" for one in summaries for id, reason in one.failed]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise AdvCAMError(f"{len(failed)} maps could not be made: {'; '.join(failed[:5])}{more}")


def seed_net(
    config: WSSSConfig,
    data: SegmentationData,
) -> tuple[nn.Module, Any, Any]:
    """The net that seeds are made with, and its normalisation.

    Raises:
        AdvCAMError: it is not trained yet, or of other classes than the data's.
    """
    if config.net.generator is not None:
        if config.net.checkpoint is None:
            raise AdvCAMError(f"net.generator {config.net.generator!r} needs its authors' file: give net.checkpoint")
        path = path_of(config.net.checkpoint)
        generator = load_generator(config.net.generator, path)
        logger.info(f"reading {config.net.generator}'s net from {path}")
        return _laid_out(generator, config), generator.mean, generator.std
    path = folder_of(config, "classifier") / WEIGHTS
    if not path.is_file():
        raise AdvCAMError(f"there is no classifier {path}: train it first (advcam wsss classifier)")
    net, classes = load_net(path, CAM_NET)
    if classes != data.classes:
        raise AdvCAMError(f"{path} is of {len(classes)} other classes than {data.name}'s {len(data.classes)}")
    logger.info(f"reading {path}")
    return _laid_out(net, config), net.mean, net.std


def _laid_out(net: CAMNet | nn.Module, config: WSSSConfig) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if config.seeds.channels_last else net


def refine_seeds(
    config: WSSSConfig,
) -> dict[str, RefineSummary]:
    """The stage ``refine``: pseudo ground truth of every method's seeds.

    Raises:
        AdvCAMError: no seeds; or as `advcam_attr.pipelines.wsss.refine.refine`.
    """
    data = seeded_images(config)
    settings = replace(
        with_paths(config.refine, "saliency"),
        irn=with_paths(config.refine.irn, "checkpoint", "trained"),
        psa=with_paths(config.refine.psa, "checkpoint", "trained"),
    )
    stores = {method: seed_store(folder_of(config, "seeds", method)) for method in config.seeds.methods}
    summaries: dict[str, RefineSummary] = {}
    with recorded_config(folder_of(config), config):
        for method, store in stores.items():
            out = folder_of(config, "refined", method)
            logger.info(f"refining {method} seeds by {settings.method} in {out}")
            summaries[method] = refine(settings, store, data, out)
            logger.info(str(summaries[method]))
    return summaries


def segment_masks(
    config: WSSSConfig,
) -> dict[str, dict[str, MaskEvaluation]]:
    """The stage ``segment``: a net for every method, trained on its pseudo ground truth, and what it predicts.

    Predictions of ``data.val`` are scored, and ``evaluation.json`` is written beside them.

    Returns:
        For each method the scores of its predictions by their folder's name, ``val`` and, after the CRF, ``val_crf``;
        on the first process of a launch.

    Raises:
        AdvCAMError: there is no pseudo ground truth yet, or other than the configuration names; no split to label; or
            as `advcam_attr.pipelines.wsss.segment.train_segmentation` and `predict`.
    """
    data, step = seeded_images(config), final_step(config.refine)
    tests = labelled_images(config)
    settings = with_paths(config.segmentation, "checkpoint", "trained", "class_map")
    for method in config.seeds.methods:
        check_refined(config.refine, folder_of(config, "refined", method))
        if not folder_of(config, "refined", method, step).is_dir():
            missing = folder_of(config, "refined", method, step)
            raise AdvCAMError(f"no pseudo ground truth in {missing}: make it first (advcam wsss refine)")
    with recorded_config(folder_of(config), config):
        return {method: _segmented(config, method, settings, data, tests) for method in config.seeds.methods}


def _segmented(
    config: WSSSConfig,
    method: str,
    settings: SegmentationSettings,
    data: SegmentationData,
    tests: Mapping[str, SegmentationData],
) -> dict[str, MaskEvaluation]:
    """The net of one method's masks: trained, its predictions made, and those of ``val`` scored."""
    out = folder_of(config, "segmentation", method)
    masks = folder_of(config, "refined", method, final_step(config.refine))
    logger.info(f"segmenting in {out} by what a net learns from {masks}")
    net = trained_net(settings, data, masks, out)
    found: dict[str, MaskEvaluation] = {}
    for (name, test), recipe in product(tests.items(), recipes_of(settings)):
        folder = predict(replace(settings, crf=recipe), net, test, out)
        if name == "val" and shard_of_launch().rank == 0:
            evaluation = found[folder.name] = evaluate_masks(folder, test)
            for line in left_out(evaluation.scope):
                logger.info(line)
            report = write_mask_evaluation(evaluation, folder)
            logger.info(f"{folder}: mIoU {100 * evaluation.scores().mean_iou:.2f} ({report})")
    return found


def export_seeds(
    seeds: Path,
    out: Path,
    dictionary: str,
) -> None:
    """Write the maps of ``run/seeds/METHOD`` as other projects' ``.npy`` dictionaries.

    Raises:
        AdvCAMError: no seeds there, an unknown dictionary, or a file that cannot be written.
    """
    count = export_maps(seed_store(seeds), out, dictionary)
    logger.info(f"wrote {count} files of {dictionary.upper()}'s format to {out}")


def import_seeds(
    folder: Path,
    seeds: Path,
) -> None:
    """Read other projects' ``.npy`` dictionaries into ``run/seeds/METHOD``, where `evaluate` finds them.

    The same folder may be read again with other files: then what was made of the seeds is told to be of others.

    Raises:
        AdvCAMError: a file that cannot be used, or ``seeds`` holds maps of another origin.
    """
    config = {"imported": folder.resolve().as_posix(), "content": files_digest(npy_files(folder))}
    record = read_record(seeds / "seeds.json")
    again = record is not None and record["settings"].get("imported") == config["imported"]
    digest = check_settings(seeds / "seeds.json", config, overwrite=again)
    count = import_maps(folder, MapStore(seeds / "maps", settings=digest))
    logger.info(f"read {count} files of {folder} into {seeds}")


def seeded_images(config: WSSSConfig) -> SegmentationData:
    """The images that seeds are made of, without those that are not there.

    Raises:
        AdvCAMError: as `read_split`.
    """
    return without_missing(read_split(config.data, config.data.seeds or config.data.train))[0]


def labelled_images(config: WSSSConfig) -> dict[str, SegmentationData]:
    """The images that segmentation nets label, ``val`` and ``test``, without those that are not there.

    Raises:
        AdvCAMError: there are none; or as `read_split`.
    """
    splits = {"val": config.data.val, "test": config.data.test}
    found = {name: without_missing(read_split(config.data, split))[0] for name, split in splits.items() if split}
    if not found:
        raise AdvCAMError("segmentation nets have no images to label: give data.val, or data.test")
    return found


def read_split(config: DataConfig, split: str) -> SegmentationData:
    """Return one split of the configured data set."""
    return config.read(split)


def _told(data: SegmentationData) -> str:
    return f"{len(data.samples)} images of {data.name} {data.split}"


def _named_missing(count: int, first: Path | None) -> str:
    return "" if not count else f"; {count} of the list are not there and are left out, e.g. {first}"
