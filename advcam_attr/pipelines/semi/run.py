"""A configuration of CCT in; the stages with their rates, the plan of a run, Table VI and ``report.json``, out."""

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
from advcam_attr.pipelines.work import Work, duration, files_done, measured, plan, steps_done
from advcam_attr.runs.sharding import shard_of, shard_of_launch
from advcam_attr.runs.stage import wait_for_ranks
from advcam_attr.tables.segmentation import table_vi
from advcam_attr.training.log import read_log

logger = logging.getLogger(__name__)


def training_work(config: SemiConfig) -> Work:
    """The training, in steps; one that ends early counts as done.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    steps = len(read_semi(config.data).unlabelled.samples) // config.training.batch * config.training.epochs
    return Work("training", "training", "steps", steps, steps_done(path_of(config.run) / "cct", semi.WEIGHTS, steps))


def prediction_work(config: SemiConfig) -> Work:
    """The label maps, an image each.

    Raises:
        AdvCAMError: no split is named, or it cannot be read.
    """
    data, folder = semi.predicted(config)
    kind = "predictions" if config.predict.crf is None else "predictions after the CRF"
    done = files_done(folder, [f"{sample.id}.png" for sample in data.samples])
    return Work(f"{kind} of {data.split}", kind, "images", len(data.samples), done)


def plan_run(config: SemiConfig) -> str:
    """What of a run is done and what is left; nothing is written. See `advcam_attr.pipelines.work.plan`.

    Raises:
        AdvCAMError: the data cannot be read.
    """
    return plan([training_work(config), prediction_work(config)], path_of(config.run))


def train(
    config: SemiConfig,
) -> Path:
    """The stage ``train``; see `advcam_attr.pipelines.semi.stages.train`.

    Raises:
        AdvCAMError: as there.
    """
    with measured(training_work(config), path_of(config.run)):
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
    with measured(prediction_work(config), path_of(config.run)):
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
