"""A run of weakly supervised segmentation in; its scores, the paper's tables with its rows, and ``report.json``, out.

``report.json`` has all of it as numbers: the scores of seeds, pseudo masks and segmentation nets (shares of 1), and
each of the paper's tables that they fill (percent, as printed), with the paper's rows beside ours. ``tables.md`` has
the tables to read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from advcam_attr import __version__
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import write_json, write_text
from advcam_attr.metrics.evaluation import SeedEvaluation, compare_best
from advcam_attr.metrics.seeds import SEED_THRESHOLDS
from advcam_attr.pipelines.evaluate import REPORT, evaluate_masks, evaluate_seeds, left_out, write_seed_evaluation
from advcam_attr.pipelines.maps import seed_store
from advcam_attr.pipelines.wsss.config import NetConfig, WSSSConfig, folder_of
from advcam_attr.pipelines.wsss.refine import check_refined, final_step
from advcam_attr.pipelines.wsss.segment import predictions_folder, recipes_of
from advcam_attr.pipelines.wsss.stages import read_split
from advcam_attr.runs.sharding import shard_of
from advcam_attr.tables.segmentation import (
    table_i,
    table_ii,
    table_iii,
    table_iv,
    table_ix,
    table_v,
    table_xi,
    table_xiii,
)
from advcam_attr.tables.table import Table
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


#: Mean IoU by step of the refinement.
MaskScores = Mapping[str, float]


@dataclass(frozen=True)
class NetScore:
    """What a segmentation net's predictions of a split reach.

    Attributes:
        images: how many were scored.
        scores: shares of 1 by measure, as `advcam_attr.metrics.evaluation.MaskEvaluation.describe` has them.
    """

    images: int
    scores: Mapping[str, float | None]


def evaluate(
    config: WSSSConfig,
) -> dict[str, SeedEvaluation]:
    """The stage ``evaluate``: scores of all that there is, the paper's tables with this run's rows, ``report.json``.

    Seeds and pseudo masks are scored anew each time; segmentation nets when they predict.

    Returns:
        The evaluation of each method's seeds.

    Raises:
        AdvCAMError: no seeds, other pseudo masks than the configuration names, a damaged evaluation, or as
            `advcam_attr.pipelines.evaluate.evaluate_seeds`.
    """
    data = read_split(config.data, config.data.score)
    if config.score.thresholds not in SEED_THRESHOLDS:
        raise AdvCAMError(f"score.thresholds is one of {', '.join(SEED_THRESHOLDS)}, got {config.score.thresholds!r}")
    for method in config.seeds.methods:
        check_refined(config.refine, folder_of(config, "refined", method))
    found: dict[str, SeedEvaluation] = {}
    for method in config.seeds.methods:
        folder = folder_of(config, "seeds", method)
        logger.info(f"scoring {folder} on the masks of {len(data.samples)} images of {data.name} {data.split}")
        found[method] = evaluate_seeds(
            seed_store(folder), data, SEED_THRESHOLDS[config.score.thresholds], device=config.score.device,
            allow_missing=config.score.allow_missing,
        )  # fmt: skip
        for line in left_out(found[method].scope):
            logger.info(line)
        logger.info(f"wrote {write_seed_evaluation(found[method], folder)}")
    refined = {method: refined_iou(config, method, data) for method in found}
    nets = net_scores(config)
    tables = [*seed_tables(found, config, refined), *net_tables(nets, config)]
    lines = summary(found, nets)
    if shard_of().rank == 0:
        path = folder_of(config, "tables.md")
        write_text(path, "\n\n".join([lines, *(table.markdown() for table in tables)]) + "\n")
        write_json(folder_of(config, "report.json"), _report(config, found, refined, nets, tables))
        logger.info(f"wrote {path} and {folder_of(config, 'report.json')}")
    for part in (*(table.text() for table in tables), lines):
        logger.info("\n" + part)
    return found


def _report(
    config: WSSSConfig,
    found: Mapping[str, SeedEvaluation],
    refined: Mapping[str, MaskScores],
    nets: Mapping[str, Mapping[str, NetScore]],
    tables: list[Table],
) -> dict[str, Any]:
    seeds = {}
    for method, one in found.items():
        best = one.sweep.best_threshold()
        about = one.describe()
        seeds[method] = {"images": about["images"], "threshold": best, **about["scores"]}
    report: dict[str, Any] = {
        "made_by": f"advcam_attr {__version__}",
        "data": {"seeds": next(iter(found.values())).scope.data, "val": config.data.val},
        "seeds": seeds,
        "refined_mean_iou": {method: dict(one) for method, one in refined.items()},
        "segmentation": {
            method: {split: {"images": one.images, **one.scores} for split, one in splits.items()}
            for method, splits in nets.items()
        },
        "tables": [table.describe() for table in tables],
    }
    if {"cam", "advcam"} <= found.keys():
        gain, low, high = compare_best(found["advcam"], found["cam"])
        report["seeds_gain"] = {"mean_iou": gain, "interval_90": [low, high]}
    return report


def summary(found: Mapping[str, SeedEvaluation], nets: Mapping[str, Mapping[str, NetScore]]) -> str:
    """Each method's best mean IoU and its threshold, AdvCAM's gain with a bootstrap interval over images, and nets."""
    lines = []
    for method, one in found.items():
        best = one.sweep.best_threshold()
        lines.append(f"{_NAMES[method]}: mIoU {100 * one.at(best).scores().mean_iou:.1f} at threshold {best:.2f}")
    if {"cam", "advcam"} <= found.keys():
        gain, low, high = (100 * value for value in compare_best(found["advcam"], found["cam"]))
        lines.append(f"AdvCAM - CAM: {gain:+.1f} (90 % interval over images {low:+.1f} to {high:+.1f})")
    for method, splits in nets.items():
        told = (f"{split} {100 * (one.scores['mean_iou'] or 0):.1f} ({one.images} images)"
                for split, one in splits.items())  # fmt: skip
        lines += [f"Segmentation net on {_NAMES[method]}'s masks: mIoU {', '.join(told)}"] if splits else []
    scope = next(iter(found.values())).scope
    return "\n".join([f"Seeds of {scope.data}, {len(scope.ids)} images", *lines])


def refined_iou(
    config: WSSSConfig,
    method: str,
    data: SegmentationData,
) -> MaskScores:
    """The mean IoU of a method's seeds after the CRF, of its masks, and of those after further steps, if there."""
    found: dict[str, float] = {}
    for step in dict.fromkeys(("seeds_crf", "masks", final_step(config.refine))):
        folder = folder_of(config, "refined", method, step)
        if folder.is_dir():
            logger.info(f"scoring {folder}")
            evaluation = evaluate_masks(folder, data, allow_missing=config.score.allow_missing)
            for line in left_out(evaluation.scope):
                logger.info(line)
            found[step] = evaluation.scores().mean_iou
    return found


def net_scores(config: WSSSConfig) -> dict[str, dict[str, NetScore]]:
    """For each method the scores of its segmentation net, ``val`` and ``val_crf``, as they were written, if there.

    Raises:
        AdvCAMError: a file is damaged, or the images cannot be read.
    """
    found: dict[str, dict[str, NetScore]] = {method: {} for method in config.seeds.methods}
    if config.data.val is None or not folder_of(config, "segmentation").is_dir():
        return found
    split = read_split(config.data, config.data.val).split
    for method, recipe in product(found, recipes_of(config.segmentation)):
        path = predictions_folder(folder_of(config, "segmentation", method), split, recipe) / REPORT
        if path.is_file():
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
                found[method][path.parent.name] = NetScore(int(about["images"]), {**about["scores"]})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AdvCAMError(f"{path} is damaged: segment again, which scores anew, or remove it") from error
    return found


def seed_tables(
    found: Mapping[str, SeedEvaluation], config: WSSSConfig, refined: Mapping[str, MaskScores]
) -> list[Table]:
    """The paper's tables that seeds and masks fill: I, IX and XI for VOC, II and XIII for COCO.

    Args:
        found: the seeds of each method.
        config: of the run.
        refined: for each method the mean IoU by step of the refinement.
    """
    names, masked = _rows(config), _mask_rows(config)
    cut = {method: one.at() for method, one in found.items()}
    scores = {method: one.scores() for method, one in cut.items()}
    scope = next(iter(found.values())).scope
    source = f"here, {len(scope.ids)} images"
    if config.data.kind == "coco":
        sized = {_NAMES[method]: one.by_size() for method, one in cut.items()}
        both = {m: (scores[m].mean_iou, refined[m].get("masks")) for m in found}
        return [table_ii(_placed(both, names, masked), source), table_xiii(sized, source)]
    steps = {m: (scores[m].mean_iou, refined[m].get("seeds_crf"), refined[m].get("masks")) for m in found}
    each = {names[method]: one.matrix.iou().tolist() for method, one in cut.items()}
    tables = [table_i(_placed(steps, names, masked), source)]
    tables.append(table_ix(each, scope.classes, source))
    if "advcam" in scores:
        design = "last map only" if config.seeds.overrides.get("aggregate") == "last" else "sum over t"
        tables.append(table_xi({design: scores["advcam"]}, source))
    return tables


def net_tables(nets: Mapping[str, Mapping[str, NetScore]], config: WSSSConfig) -> list[Table]:
    """The paper's tables that segmentation nets fill: III, or IV with Res2Net, for VOC; V for COCO.

    Predictions after the CRF take the place of those before it.

    Args:
        nets: for each method the scores of its predictions by split.
        config: of the run.
    """
    last = {method: [*splits.values()][-1] for method, splits in nets.items() if splits}
    if not last:
        return []
    names, source = _mask_rows(config), f"here, {next(iter(last.values())).images} images"
    shares = {names[method]: one.scores["mean_iou"] for method, one in last.items()}
    if config.data.kind == "coco":
        return [table_v({name: (share,) for name, share in shares.items()}, source)]
    backbone = config.segmentation.backbone
    depth = next((depth for depth in (101, 152) if f"res2net{depth}" in backbone), None)
    if depth is None:
        return [table_iii({name: (share, None) for name, share in shares.items()}, source)]
    return [table_iv({f"{name}, Res2Net-{depth}": (share, None) for name, share in shares.items()}, source)]


def _placed(
    shares: Mapping[str, tuple[float | None, ...]], names: Mapping[str, str], masked: Mapping[str, str]
) -> dict[str, tuple[float | None, ...]]:
    """The shares of each method by row; the last one, the masks', has a row of its own where that has another name."""
    rows: dict[str, tuple[float | None, ...]] = {}
    for method, (*seeds, mask) in shares.items():
        if masked[method] == names[method] or mask is None:
            rows[names[method]] = (*seeds, mask)
        else:
            rows[names[method]] = (*seeds, None)
            rows[masked[method]] = (*(None for _ in seeds), mask)
    return rows


def _mask_rows(config: WSSSConfig) -> dict[str, str]:
    """What the paper calls these methods' masks: by IRN, they go without saying."""
    by = ", masks by PSA" if config.refine.method == "psa" else ""
    return {method: name + by for method, name in _rows(config).items()}


_NAMES = {"cam": "CAM", "advcam": "AdvCAM"}


def _rows(config: WSSSConfig) -> dict[str, str]:
    """What the paper calls these methods."""
    generators = {"seam": "SEAM", "irn": "IRN"}
    cam = "IRN" if config.net.backbone == NetConfig.backbone else "CAM"
    if config.net.generator is not None:
        cam = generators.get(config.net.generator, "CAM")
    saliency = config.seeds.saliency is not None or config.refine.saliency is not None
    return {"cam": cam, "advcam": "AdvCAM-Sal" if saliency else "AdvCAM"}
