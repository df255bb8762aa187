"""The stages of weakly supervised semantic segmentation, from images with labels to scored masks in a run folder.

Each stage reads what the one before wrote, and resumes where it was interrupted; existing results are not recomputed.
Under ``torchrun`` or ``srun``, all processes work at each stage together.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advcam_attr.attr.adapters import base_of
from advcam_attr.attr.advcam import as_base
from advcam_attr.data.masks import SaliencyFolder
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import files_digest
from advcam_attr.heads import view
from advcam_attr.metrics.evaluation import MaskEvaluation
from advcam_attr.networks.cam_net import CAM_NET
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.evaluate import write_mask_evaluation
from advcam_attr.pipelines.maps import MapSettings, MapSummary, make_seeds, seed_store
from advcam_attr.pipelines.wsss import classifier, instances, segment
from advcam_attr.pipelines.wsss.classifier import ClassifierResult, train_classifier
from advcam_attr.pipelines.wsss.plan import check_config, progress
from advcam_attr.pipelines.wsss.refine import check_refined, refine
from advcam_attr.pipelines.wsss.run import Run
from advcam_attr.pipelines.wsss.score import Scores, evaluate, score_masks
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.npy_maps import export_maps, import_maps, npy_files
from advcam_attr.runs.provenance import check_settings, read_record
from advcam_attr.runs.sharding import shard_of, shard_of_launch, wait_for
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


def train(run: Run) -> ClassifierResult:
    """Train the classifier."""
    net, splits = run.config.net, run.config.data
    if net.generator is not None:
        raise AdvCAMError(f"{net.generator}'s net is trained already: go on with the seeds")
    data = run.split(splits.train)
    val = None if splits.val is None else run.split(splits.val)
    logger.info(f"training on {_about(data)}" + ("" if val is None else f", validating on {_about(val)}"))
    model = classifier.new_net(net, data.classes, run.runtime.seed)
    with run.recorded():
        return train_classifier(run.config.classifier, model, data, val, run.folder("classifier"), run.runtime)


def seeds(run: Run) -> list[MapSummary]:
    """Make the localization maps of every method.

    Raises:
        AdvCAMError: There is no classifier yet, or some images failed; all others are done then.
    """
    check_config(run)
    data, config = run.seeds_data, run.config.seeds
    logger.info(f"making maps of {_about(data)}")
    net, mean, std = seed_net(run, data)
    net = net.to(memory_format=torch.channels_last) if run.runtime.channels_last else net
    settings = MapSettings(
        recipe=config.recipe,
        overrides=config.overrides,
        base=base_of(net) if run.config.net.generator else config.base,
        scales=config.scales,
        cells=config.cells,
        normalization=config.normalization,
        mean=mean,
        std=std,
        batch=config.batch,
        runtime=run.runtime,
    )
    as_base(settings.base, view(net))
    methods = {method: replace(settings, method=method) for method in config.methods}
    if "advcam" in methods and config.saliency is not None:
        methods["advcam"] = replace(methods["advcam"], saliency=SaliencyFolder(config.saliency))
    for chosen in methods.values():
        chosen.whole_recipe()
    summaries = []
    with run.recorded():
        for method, chosen in methods.items():
            out = run.folder("seeds", method)
            logger.info(f"making {method} seeds in {out}")
            summaries.append(make_seeds(net, data, out, chosen))
    failed = [f"{id}: {reason}" for one in summaries for id, reason in one.failed]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise AdvCAMError(f"{len(failed)} maps could not be made: {'; '.join(failed[:5])}{more}")
    return summaries


def seed_net(run: Run, data: SegmentationData) -> tuple[nn.Module, Any, Any]:
    """Return the net that maps are made with, its mean and its std."""
    net = run.config.net
    if net.generator is not None:
        generator = classifier.new_generator(net)
        return generator, generator.mean, generator.std
    path = run.folder("classifier", classifier.WEIGHTS)
    if not path.is_file():
        raise AdvCAMError(f"there is no classifier {path}: train it first (advcam wsss classifier)")
    trained, classes = load_net(path, CAM_NET)
    if classes != data.classes:
        raise AdvCAMError(f"{path} has {len(classes)} other classes than {data.name}'s {len(data.classes)}")
    logger.info(f"loading {path}")
    return trained, trained.mean, trained.std


def refine_seeds(run: Run) -> dict[str, dict[str, Path]]:
    """Refine every method's seeds into pseudo ground truth; return the folder of each step by method."""
    data, config = run.seeds_data, run.config
    stores = {method: seed_store(run.folder("seeds", method)) for method in config.seeds.methods}
    folders: dict[str, dict[str, Path]] = {}
    with run.recorded():
        for method, store in stores.items():
            out = run.folder("refined", method)
            logger.info(f"refining {method} seeds by {config.refine.method} in {out}")
            folders[method] = refine(config.refine, store, data, out, run.runtime)
    return folders


def make_instances(run: Run) -> dict[str, Path]:
    """Make the instance masks of every method's seeds by IRN's net; return their folder by method."""
    data, config = run.seeds_data, run.config
    folders = {method: run.folder("refined", method) for method in config.seeds.methods}
    nets = {method: instances.net_file(config.refine, out) for method, out in folders.items()}
    with run.recorded():
        for method, out in folders.items():
            logger.info(f"making instances of {method} seeds in {out / instances.FOLDER}")
            store = seed_store(run.folder("seeds", method))
            pad_to = config.refine.irn.pad_to
            instances.make_instances(config.instances, nets[method], pad_to, store, data, out, run.runtime)
    return {method: out / instances.FOLDER for method, out in folders.items()}


def segment_masks(run: Run) -> dict[str, dict[str, MaskEvaluation]]:
    """Train a net on every method's pseudo ground truth, write its predictions, and score those of ``data.val``.

    Returns:
        For each method the scores by folder, ``val`` and, after the CRF, ``val_crf``; on the first process.
    """
    config, data, tests = run.config.refine, run.seeds_data, run.predicted_data
    masks_by = {method: run.folder("refined", method, config.final_step) for method in run.config.seeds.methods}
    for method, masks in masks_by.items():
        check_refined(config, run.folder("refined", method))
        if not masks.is_dir():
            raise AdvCAMError(f"no pseudo ground truth in {masks}: make it first (advcam wsss refine)")
    found: dict[str, dict[str, MaskEvaluation]] = {method: {} for method in masks_by}
    with run.recorded():
        for method, masks in masks_by.items():
            out = run.folder("segmentation", method)
            logger.info(f"segmenting in {out} by a net trained on {masks}")
            segment.segment(run.config.segmentation, data, masks, [*tests.values()], out, run.runtime)
            for crf in run.config.segmentation.crfs if "val" in tests and shard_of_launch().rank == 0 else ():
                folder = segment.predictions_folder(out, tests["val"].split, crf)
                evaluation = found[method][folder.name] = score_masks(folder, tests["val"])
                report = write_mask_evaluation(evaluation, folder)
                logger.info(f"{folder}: mIoU {100 * evaluation.scores().mean_iou:.2f} ({report})")
    return found


def run_all(run: Run) -> Scores | None:
    """Run all stages: classifier, unless the net is a published generator; seeds, refine, segment, evaluate.

    A run that was interrupted and started again ends with the same files as one that was not. The first process of a
    launch returns the scores.

    Raises:
        AdvCAMError: A stage failed, or this is a share of a SLURM array, which trains nothing.
    """
    launch, begin = shard_of_launch(), time.monotonic()
    if shard_of().world > launch.world:
        raise AdvCAMError("a run is one job's, not an array's: start it outside of the array, or its seeds alone in it")
    stages = progress(run)
    if launch.rank == 0:
        logger.info("\n".join(map(str, stages)))
    for method in run.config.seeds.methods:
        check_refined(run.config.refine, run.folder("refined", method))
    if run.config.net.generator is None:
        train(run)
    seeds(run)
    wait_for(lambda: _missing_maps(run))
    refine_seeds(run)
    segment_masks(run)
    if launch.rank > 0:
        return None
    scores = evaluate(run)
    logger.info(f"finished in {time.monotonic() - begin:.0f} s")
    return scores


def _missing_maps(run: Run) -> list[str]:
    stores = [MapStore(run.folder("seeds", method, "maps")) for method in run.config.seeds.methods]
    ids = [sample.id for sample in run.seeds_data.samples]
    return [f"maps of {id}" for store in stores for id in store.missing(ids)]


def export_seeds(folder: Path, out: Path, dictionary: str) -> None:
    """Write the maps of ``run/seeds/METHOD`` as other projects' ``.npy`` dictionaries."""
    count = export_maps(seed_store(folder), out, dictionary)
    logger.info(f"wrote {count} files of {dictionary.upper()}'s format to {out}")


def import_seeds(folder: Path, out: Path) -> None:
    """Read other projects' ``.npy`` dictionaries into ``run/seeds/METHOD``, where `evaluate` finds them.

    The same folder may be read again with other files; results that were made of the earlier ones are rejected then.
    """
    config = {"imported": folder.resolve().as_posix(), "content": files_digest(npy_files(folder))}
    record = read_record(out / "seeds.json")
    again = record is not None and record["settings"].get("imported") == config["imported"]
    digest = check_settings(out / "seeds.json", config, overwrite=again)
    count = import_maps(folder, MapStore(out / "maps", settings=digest))
    logger.info(f"read {count} files of {folder} into {out}")


def _about(data: SegmentationData) -> str:
    return f"{len(data.samples)} images of {data.name} {data.split}"
