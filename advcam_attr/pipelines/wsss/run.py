"""A configuration in; the plan of its whole run, or the run, from images with labels to the paper's tables, out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import product

from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.work import Work, duration, plan
from advcam_attr.pipelines.wsss.config import WSSSConfig, folder_of
from advcam_attr.pipelines.wsss.refine import check_refined
from advcam_attr.pipelines.wsss.score import evaluate
from advcam_attr.pipelines.wsss.segment import recipes_of
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
from advcam_attr.pipelines.wsss.work import (
    classifier_work,
    prediction_work,
    refine_work,
    seeds_work,
    training_work,
)
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.sharding import shard_of, shard_of_launch
from advcam_attr.runs.stage import PATIENCE
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


def works(config: WSSSConfig) -> list[Work]:
    """The parts of a run in their order; the evaluation, which takes seconds and is done anew each time, is none.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    data, tests, methods = seeded_images(config), labelled_images(config), config.seeds.methods
    found = []
    if config.net.generator is None:
        found.append(classifier_work(config, read_split(config.data, config.data.train)))
    found += [seeds_work(config, method, data) for method in methods]
    found += [refine_work(config, method, data) for method in methods]
    for method in methods:
        found += [] if config.segmentation.trained else [training_work(config, method)]
        both = product(tests.values(), recipes_of(config.segmentation))
        found += [prediction_work(config, method, test, recipe) for test, recipe in both]
    return found


def plan_run(config: WSSSConfig) -> str:
    """What of a run is done and what is left; nothing is written. See `advcam_attr.pipelines.work.plan`.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    return plan(works(config), folder_of(config))


def run(config: WSSSConfig, *, show_progress: bool = False) -> None:
    """All stages: classifier, unless the net is a published generator; seeds, refine, segment, evaluate.

    Each goes on where it stopped, and what is there is not made again: a run that was interrupted at any moment ends
    with the same files as one that was not. Under ``torchrun`` or ``srun`` all processes work at each stage together.

    Args:
        config: the run's.
        show_progress: a progress bar of the seeds.

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
    require_all(seeds(config, show_progress=show_progress))
    if launch.world > 1:
        wait_for_seeds(config, seeded_images(config))
    refine_seeds(config)
    segment_masks(config)
    if launch.rank == 0:
        evaluate(config)
        logger.info(f"this took {duration(time.monotonic() - begin)}")


def wait_for_seeds(config: WSSSConfig, data: SegmentationData) -> None:
    """Wait until the maps of all images are there, which other processes make.

    Raises:
        AdvCAMError: nothing new came for half an hour.
    """
    stores = [MapStore(folder_of(config, "seeds", method, "maps")) for method in config.seeds.methods]
    missing, since = _missing(stores, data), time.monotonic()
    while missing:
        time.sleep(0.2)
        left = _missing(stores, data)
        if left < missing:
            since = time.monotonic()
        missing = left
        if time.monotonic() - since > PATIENCE:
            raise AdvCAMError(f"another process has stopped: {missing} maps did not come; start the run again")


def _missing(stores: Sequence[MapStore], data: SegmentationData) -> int:
    ids = [sample.id for sample in data.samples]
    return sum(len(store.missing(ids)) for store in stores)
