"""Scores of a run's seeds, masks and segmentation nets, and the paper's tables with its rows.

``report.json`` has the scores (shares of 1) and each of the paper's tables that they fill (percent, as printed);
``tables.md`` has the tables to read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from advcam_attr import __version__
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import write_json, write_text
from advcam_attr.metrics.evaluation import MaskEvaluation, Scope, SeedEvaluation, compare_best
from advcam_attr.metrics.seeds import SEED_THRESHOLDS
from advcam_attr.pipelines.evaluate import REPORT, evaluate_masks, evaluate_seeds, left_out, write_seed_evaluation
from advcam_attr.pipelines.maps import seed_store
from advcam_attr.pipelines.wsss.config import NetConfig, WSSSConfig
from advcam_attr.pipelines.wsss.instances import FOLDER, InstanceEvaluation, evaluate_instances
from advcam_attr.pipelines.wsss.refine import check_refined
from advcam_attr.pipelines.wsss.run import Run
from advcam_attr.pipelines.wsss.segment import predictions_folder
from advcam_attr.reading import read_json
from advcam_attr.runs.run_log import run_log
from advcam_attr.tables.segmentation import (
    table_i,
    table_ii,
    table_iii,
    table_instances,
    table_iv,
    table_ix,
    table_v,
    table_xi,
    table_xiii,
    val_and_test,
)
from advcam_attr.tables.table import Table
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

_NAMES = {"cam": "CAM", "advcam": "AdvCAM"}


@dataclass(frozen=True)
class NetScore:
    """Scores of a net's predictions, shares of 1, by `advcam_attr.metrics.evaluation.MaskEvaluation.describe`."""

    images: int
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Scores:
    """The scores of a run, by method.

    Attributes:
        seeds: evaluations of the localization maps.
        masks: mean IoU of the pseudo ground truth, by step.
        nets: scores of segmentation nets, by folder of predictions.
        instances: average precision of instance masks, where there are any.
    """

    config: WSSSConfig
    seeds: Mapping[str, SeedEvaluation]
    masks: Mapping[str, Mapping[str, float]]
    nets: Mapping[str, Mapping[str, NetScore]]
    instances: Mapping[str, InstanceEvaluation] = field(default_factory=dict)

    @cached_property
    def tables(self) -> list[Table]:
        """The paper's tables that the scores fill, and that of instances."""
        return [*seed_tables(self), *instance_tables(self), *net_tables(self)]

    @cached_property
    def gain(self) -> tuple[float, float, float] | None:
        """AdvCAM's gain in mean IoU over CAM, and its 90 % bootstrap interval over images."""
        both = "cam" in self.seeds and "advcam" in self.seeds
        return compare_best(self.seeds["advcam"], self.seeds["cam"]) if both else None

    def summary(self) -> str:
        """Return each method's best mean IoU and its threshold, AdvCAM's gain, and the nets' mean IoU."""
        scope = next(iter(self.seeds.values())).scope
        lines = [f"Seeds of {scope.data}, {len(scope.ids)} images"]
        for method, one in self.seeds.items():
            best = one.sweep.best_threshold()
            lines.append(f"{_NAMES[method]}: mIoU {100 * one.at(best).scores().mean_iou:.1f} at threshold {best:.2f}")
        if self.gain is not None:
            gain, low, high = (100 * value for value in self.gain)
            lines.append(f"AdvCAM - CAM: {gain:+.1f} (90 % interval over images {low:+.1f} to {high:+.1f})")
        for method, splits in self.nets.items():
            parts = [
                f"{split} {100 * (one.scores['mean_iou'] or 0):.1f} ({one.images} images)"
                for split, one in splits.items()
            ]
            lines += [f"Segmentation net on {_NAMES[method]}'s masks: mIoU {', '.join(parts)}"] if parts else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n\n".join([*(table.text() for table in self.tables), self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        seeds = {}
        for method, one in self.seeds.items():
            about = one.describe()
            seeds[method] = {"images": about["images"], "threshold": one.sweep.best_threshold(), **about["scores"]}
        report: dict[str, Any] = {
            "made_by": f"advcam_attr {__version__}",
            "data": {"seeds": next(iter(self.seeds.values())).scope.data, "val": self.config.data.val},
            "seeds": seeds,
            "refined_mean_iou": {method: dict(one) for method, one in self.masks.items()},
            "instances": {method: one.describe() for method, one in self.instances.items()},
            "segmentation": {
                method: {split: {"images": one.images, **one.scores} for split, one in splits.items()}
                for method, splits in self.nets.items()
            },
            "tables": [table.describe() for table in self.tables],
        }
        if self.gain is not None:
            report["seeds_gain"] = {"mean_iou": self.gain[0], "interval_90": [*self.gain[1:]]}
        return report


def evaluate(run: Run) -> Scores:
    """Score all that a run has, and write the paper's tables with its rows, and ``report.json``.

    Seeds and pseudo masks are scored each time; segmentation nets are scored when they predict.

    Raises:
        AdvCAMError: There are no seeds, other pseudo masks than the configuration names, or a damaged evaluation; or
            as `advcam_attr.pipelines.evaluate.evaluate_seeds`.
    """
    config, data = run.config, run.split(run.config.data.score)
    for method in config.seeds.methods:
        check_refined(config.refine, run.folder("refined", method))
    run.require_unchanged("segment")
    stores = {method: seed_store(run.folder("seeds", method)) for method in config.seeds.methods}
    with run_log(run.folder()):
        seeds: dict[str, SeedEvaluation] = {}
        for method, store in stores.items():
            folder = run.folder("seeds", method)
            logger.info(f"scoring {folder} on the masks of {len(data.samples)} images of {data.name} {data.split}")
            seeds[method] = evaluate_seeds(
                store,
                data,
                SEED_THRESHOLDS[config.score.thresholds],
                device=run.runtime.torch_device(),
                allow_missing=config.score.allow_missing,
            )
            _log_left_out(seeds[method].scope)
            logger.info(f"wrote {write_seed_evaluation(seeds[method], folder)}")
        masks = {method: _mask_scores(run, method) for method in seeds}
        scores = Scores(config, seeds, masks, _net_scores(run), _instance_scores(run))
        tables, report = run.folder("tables.md"), run.folder("report.json")
        write_text(tables, "\n\n".join([scores.summary(), *(table.markdown() for table in scores.tables)]) + "\n")
        write_json(report, scores.to_json())
        logger.info(f"wrote {tables} and {report}")
    return scores


def score_masks(folder: Path, data: SegmentationData, *, allow_missing: bool = False) -> MaskEvaluation:
    """Score label maps, and log which images were left out."""
    evaluation = evaluate_masks(folder, data, allow_missing=allow_missing)
    _log_left_out(evaluation.scope)
    return evaluation


def _log_left_out(scope: Scope) -> None:
    for line in left_out(scope):
        logger.info(line)


def _mask_scores(run: Run, method: str) -> dict[str, float]:
    found: dict[str, float] = {}
    data, allow_missing = run.split(run.config.data.score), run.config.score.allow_missing
    for step in dict.fromkeys(("seeds_crf", "masks", run.config.refine.final_step)):
        folder = run.folder("refined", method, step)
        if folder.is_dir():
            logger.info(f"scoring {folder}")
            found[step] = score_masks(folder, data, allow_missing=allow_missing).scores().mean_iou
    return found


def _instance_scores(run: Run) -> dict[str, InstanceEvaluation]:
    data = run.split(run.config.data.score)
    found: dict[str, InstanceEvaluation] = {}
    for method in run.config.seeds.methods:
        folder = run.folder("refined", method, FOLDER)
        if folder.is_dir():
            logger.info(f"scoring {folder}")
            evaluation = evaluate_instances(folder, data, allow_missing=run.config.score.allow_missing)
            _log_left_out(evaluation.scope)
            if evaluation.scope.ids:
                found[method] = evaluation
    return found


def _net_scores(run: Run) -> dict[str, dict[str, NetScore]]:
    found: dict[str, dict[str, NetScore]] = {method: {} for method in run.config.seeds.methods}
    if run.config.data.val is None or not run.folder("segmentation").is_dir():
        return found
    split = run.split(run.config.data.val).split
    for method, crf in product(found, run.config.segmentation.crfs):
        path = predictions_folder(run.folder("segmentation", method), split, crf) / REPORT
        if path.is_file():
            found[method][path.parent.name] = read_net_score(path)
    return found


def read_net_score(path: Path) -> NetScore:
    """Read the evaluation of a net's predictions."""
    try:
        about = read_json(path)
        images, scores = about["images"], {**about["scores"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvCAMError(f"{path} is damaged: remove it and segment again") from error
    if type(images) is not int or not all(type(value) in (int, float, type(None)) for value in scores.values()):
        raise AdvCAMError(f"{path} is damaged: remove it and segment again")
    return NetScore(images, scores)


def seed_tables(scores: Scores) -> list[Table]:
    """Return the paper's tables that seeds and masks fill: I, IX and XI for VOC, II and XIII for COCO."""
    names, mask_names = _row_names(scores.config), _mask_row_names(scores.config)
    best = {method: one.at() for method, one in scores.seeds.items()}
    shares = {method: one.scores() for method, one in best.items()}
    scope = next(iter(scores.seeds.values())).scope
    source = f"here, {len(scope.ids)} images"
    if scores.config.data.kind == "coco":
        by_size = {_NAMES[method]: one.by_size() for method, one in best.items()}
        both = {m: (shares[m].mean_iou, scores.masks[m].get("masks")) for m in best}
        return [table_ii(_rows(both, names, mask_names), source), table_xiii(by_size, source)]
    steps = {m: (shares[m].mean_iou, scores.masks[m].get("seeds_crf"), scores.masks[m].get("masks")) for m in best}
    each = {names[method]: one.matrix.iou().tolist() for method, one in best.items()}
    tables = [table_i(_rows(steps, names, mask_names), source), table_ix(each, scope.classes, source)]
    if "advcam" in shares:
        design = "last map only" if scores.config.seeds.overrides.get("aggregate") == "last" else "sum over t"
        tables.append(table_xi({design: shares["advcam"]}, source))
    return tables


def instance_tables(scores: Scores) -> list[Table]:
    """Return the table of instance masks, if there are any with true ones."""
    if not scores.instances:
        return []
    names, images = _row_names(scores.config), len(next(iter(scores.instances.values())).scope.ids)
    shares = {
        names[m]: (one.scores.mean, one.scores.at(0.5), one.scores.at(0.7)) for m, one in scores.instances.items()
    }
    return [table_instances(shares, f"here, {images} images")]


def net_tables(scores: Scores) -> list[Table]:
    """Return the paper's tables that segmentation nets fill: III, or IV with Res2Net, for VOC; V for COCO.

    Predictions after the CRF replace those before it. Splits other than val have no column.
    """
    last = {method: [*splits.values()][-1] for method, splits in scores.nets.items() if splits}
    if not last or val_and_test(None, scores.config.data.val or "") is None:
        return []
    names, source = _mask_row_names(scores.config), f"here, {next(iter(last.values())).images} images"
    shares = {names[method]: one.scores["mean_iou"] for method, one in last.items()}
    if scores.config.data.kind == "coco":
        return [table_v({name: (share,) for name, share in shares.items()}, source)]
    backbone = scores.config.segmentation.backbone.name
    depth = next((depth for depth in (101, 152) if f"res2net{depth}" in backbone), None)
    if depth is None:
        return [table_iii({name: (share, None) for name, share in shares.items()}, source)]
    return [table_iv({f"{name}, Res2Net-{depth}": (share, None) for name, share in shares.items()}, source)]


def _rows(
    shares: Mapping[str, tuple[float | None, ...]], names: Mapping[str, str], mask_names: Mapping[str, str]
) -> dict[str, tuple[float | None, ...]]:
    """Name each method's shares; the masks' share, the last, has its own row where that has another name."""
    rows: dict[str, tuple[float | None, ...]] = {}
    for method, (*seeds, mask) in shares.items():
        if mask_names[method] == names[method] or mask is None:
            rows[names[method]] = (*seeds, mask)
        else:
            rows[names[method]] = (*seeds, None)
            rows[mask_names[method]] = (*(None for _ in seeds), mask)
    return rows


def _mask_row_names(config: WSSSConfig) -> dict[str, str]:
    by = ", masks by PSA" if config.refine.method == "psa" else ""
    return {method: name + by for method, name in _row_names(config).items()}


def _row_names(config: WSSSConfig) -> dict[str, str]:
    cam = "IRN" if config.net.backbone.name == NetConfig().backbone.name else "CAM"
    if config.net.generator is not None:
        cam = {"seam": "SEAM", "irn": "IRN"}.get(config.net.generator, "CAM")
    saliency = config.seeds.saliency is not None or config.refine.saliency is not None
    return {"cam": cam, "advcam": "AdvCAM-Sal" if saliency else "AdvCAM"}
