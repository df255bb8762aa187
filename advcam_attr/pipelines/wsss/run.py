"""A configuration in; the plan of its whole run, or the run, from images with labels to the paper's tables, out."""

from __future__ import annotations

import logging
import time
from functools import partial
from itertools import product

from advcam_attr.pipelines.wsss.classifier import WEIGHTS as CLASSIFIER_WEIGHTS
from advcam_attr.pipelines.wsss.config import WSSSConfig, folder_of
from advcam_attr.pipelines.wsss.refine import check_refined, final_step
from advcam_attr.pipelines.wsss.score import evaluate
from advcam_attr.pipelines.wsss.segment import FOLDER, WEIGHTS, predictions_folder, recipes_of
from advcam_attr.pipelines.wsss.stages import (
    labelled_images,
    read_split,
    refine_seeds,
    require_all,
    seeded_images,
    seeds,
    segment_masks,
    train,
)
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.progress import Progress, maps_progress, masks_progress, progress_table, training_progress
from advcam_attr.runs.progress_bar import duration
from advcam_attr.runs.sharding import shard_of, shard_of_launch, wait_for
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


def planned_stages(config: WSSSConfig) -> list[Progress]:
    """Return the progress of a run's stages in order, but for the evaluation, which takes seconds.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    samples, tests, methods = seeded_images(config).samples, labelled_images(config), config.seeds.methods
    stages = []
    if config.net.generator is None:
        images = len(read_split(config.data, config.data.train).samples)
        steps = images // config.classifier.batch * config.classifier.epochs
        stages.append(training_progress("classifier", folder_of(config, "classifier"), CLASSIFIER_WEIGHTS, steps))
    for method in methods:
        stages.append(maps_progress(f"seeds {method}", folder_of(config, "seeds", method, "maps"), samples))
    for method in methods:
        folder = folder_of(config, "refined", method, final_step(config.refine))
        stages.append(masks_progress(f"refine {method}", folder, samples))
    for method in methods:
        out, name = folder_of(config, "segmentation", method), f"segment {method}: "
        if not config.segmentation.trained:
            stages.append(training_progress(name + "training", out / FOLDER, WEIGHTS, config.segmentation.steps))
        for test, crf in product(tests.values(), recipes_of(config.segmentation)):
            folder = predictions_folder(out, test.split, crf)
            stages.append(masks_progress(name + folder.name, folder, test.samples))
    return stages


def plan_run(config: WSSSConfig) -> str:
    """What of a run is done and what is left; nothing is written.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    return progress_table(planned_stages(config))


def run(config: WSSSConfig) -> None:
    """All stages: classifier, unless the net is a published generator; seeds, refine, segment, evaluate.

    Each goes on where it stopped, and what is there is not made again: a run that was interrupted at any moment ends
    with the same files as one that was not. Under ``torchrun`` or ``srun`` all processes work at each stage together.

    Args:
        config: the run's.

    Raises:
        AdvCAMError: a stage cannot be done, with the reason; or this is a share of a SLURM array, which trains nothing.
    """
    launch, begin = shard_of_launch(), time.monotonic()
    if shard_of().world > launch.world:
        raise AdvCAMError("a run is one job's, not an array's: start it outside of the array, or its seeds alone in it")
    if launch.rank == 0:
        logger.info(plan_run(config))
    for method in config.seeds.methods:
        check_refined(config.refine, folder_of(config, "refined", method))
    if config.net.generator is None:
        train(config)
    require_all(seeds(config))
    wait_for(partial(_missing_maps, config))
    refine_seeds(config)
    segment_masks(config)
    if launch.rank == 0:
        evaluate(config)
        logger.info(f"this took {duration(time.monotonic() - begin)}")


def _missing_maps(config: WSSSConfig) -> list[str]:
    ids = [sample.id for sample in seeded_images(config).samples]
    stores = [MapStore(folder_of(config, "seeds", method, "maps")) for method in config.seeds.methods]
    return [f"maps of {id}" for store in stores for id in store.missing(ids)]
