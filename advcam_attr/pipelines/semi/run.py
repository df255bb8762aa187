"""Runs of semi-supervised segmentation by CCT: stages, plan, Table VI and ``report.json``."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from advcam_attr import __version__
from advcam_attr.files import write_json, write_text
from advcam_attr.metrics.evaluation import MaskEvaluation
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.semi import stages as semi
from advcam_attr.pipelines.semi.config import SemiConfig
from advcam_attr.pipelines.semi.data import read_semi
from advcam_attr.runs.progress import Progress, masks_progress, progress_table, training_progress
from advcam_attr.runs.progress_bar import duration
from advcam_attr.runs.sharding import shard_of, shard_of_launch
from advcam_attr.runs.stage import wait_for_ranks
from advcam_attr.tables.segmentation import table_vi
from advcam_attr.training.log import read_log

logger = logging.getLogger(__name__)


def planned_stages(config: SemiConfig) -> list[Progress]:
    """Return the progress of a run's stages; a training that ended early counts as done.

    Raises:
        AdvCAMError: the data cannot be read, or no split to predict is named.
    """
    steps = len(read_semi(config.data).unlabelled.samples) // config.training.batch * config.training.epochs
    data, folder = semi.predicted(config)
    name = "predictions" if config.predict.crf is None else "predictions after the CRF"
    return [
        training_progress("training", path_of(config.run) / "cct", semi.WEIGHTS, steps),
        masks_progress(f"{name} of {data.split}", folder, data.samples),
    ]


def plan_run(config: SemiConfig) -> str:
    """What of a run is done and what is left; nothing is written.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    return progress_table(planned_stages(config))


def train(
    config: SemiConfig,
) -> Path:
    """The stage ``train``; see `advcam_attr.pipelines.semi.stages.train`.

    Raises:
        AdvCAMError: as there.
    """
    return semi.train(config)


def evaluate(
    config: SemiConfig,
) -> MaskEvaluation | None:
    """The stage ``evaluate``: label maps, those that are there are kept; their scores, Table VI and ``report.json``.

    Returns:
        The evaluation; None on all but the first process.

    Raises:
        AdvCAMError: there is no net yet, or as `advcam_attr.pipelines.semi.stages.predict` and `evaluate`.
    """
    folder = semi.predict(config)
    data, _ = semi.predicted(config)
    wait_for_ranks(folder, data)
    if shard_of().rank:
        return None
    found = semi.evaluate(config)
    kind = "CCT without pseudo masks" if config.data.pseudo is None else "CCT with AdvCAM's masks"
    if not config.net.auxiliary:
        kind = "the labelled images alone"
    share = found.scores().mean_iou
    shares = (None, share) if data.split == "test" else (share, None)
    table = table_vi({kind: shares}, f"here, {len(found.scope.ids)} images")
    run = path_of(config.run)
    write_text(run / "tables.md", table.markdown() + "\n")
    about = found.describe()
    losses = [record["loss"] for record in read_log(run / "cct" / "log.jsonl") if "loss" in record]
    report = {
        "made_by": f"advcam_attr {__version__}",
        "predictions": {"of": about["data"], "images": about["images"], **about["scores"]},
        "validation": [{"epoch": one["epoch"], "val_miou": one["val_miou"]} for one in semi.validations(run / "cct")],
        "loss": {"steps": len(losses), "first": losses[0], "last": losses[-1]} if losses else None,
        "tables": [table.describe()],
    }
    write_json(run / "report.json", report)
    logger.info(f"wrote {run / 'tables.md'} and {run / 'report.json'}")
    logger.info("\n" + table.text())
    return found


def run(
    config: SemiConfig,
) -> None:
    """Both stages; each goes on where it stopped, and what is there is not made again.

    Raises:
        AdvCAMError: as `train` and `evaluate`.
    """
    begin = time.monotonic()
    if shard_of_launch().rank == 0:
        logger.info(plan_run(config))
    train(config)
    evaluate(config)
    logger.info(f"this took {duration(time.monotonic() - begin)}")
