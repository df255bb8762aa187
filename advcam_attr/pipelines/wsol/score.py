"""The paper's localization tables with a run's rows, ``tables.md`` and ``report.json``.

Gains over CAM have a bootstrap interval over images, and with several training seeds a mean and a standard deviation.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advcam_attr.files import write_json, write_text
from advcam_attr.metrics.bootstrap import Interval, bootstrap
from advcam_attr.metrics.localization import (
    Contours,
    LocalizationScores,
    Measure,
    best_share,
    compare_tables,
    measure_counts,
)
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.wsol.config import TrainedNet, WSOLConfig, WSOLMethod
from advcam_attr.pipelines.wsol.evaluate import TABLES, load_table
from advcam_attr.runs.run_log import MULTILINE
from advcam_attr.tables.localization import table_vii, table_viii, table_x
from advcam_attr.tables.table import Table

logger = logging.getLogger(__name__)

#: Names of the data sets in the paper's tables.
PAPER_DATA = {"cub": "CUB-200-2011", "imagenet": "ImageNet-1K"}

#: Names of the methods in Table X.
DESIGNS: dict[WSOLMethod, str] = {"cam": "no climbing", "climb": "climbing", "advcam": "climbing, regularized"}

_MEASURES: tuple[Measure, ...] = ("max_box_acc_v2", "gt_known", "top1_loc")


@dataclass(frozen=True)
class Measured:
    """The scores, by contours, of a classifier's maps in ``folder`` by one method."""

    net: TrainedNet
    method: WSOLMethod
    folder: Path
    scores: Mapping[Contours, LocalizationScores]


def write_wsol_report(config: WSOLConfig, data: str, found: Sequence[Measured]) -> None:
    """Write and log ``tables.md`` and ``report.json`` of a run on the data set ``data``."""
    out = path_of(config.run)
    backbone = (config.net.model or config.net.checkpoint or "") if config.net else config.classifier.backbone.name
    tables = paper_tables(found, data, backbone.rpartition("/")[2])
    gains: dict[tuple[TrainedNet, WSOLMethod], dict[Measure, Interval]] = {
        (one.net, one.method): _gains(one, found) for one in found if one.method != "cam"
    }
    lines = [*_own_lines(found), *gain_lines(gains)]
    write_text(out / "tables.md", "\n\n".join([*lines, *(table.markdown() for table in tables)]) + "\n")
    maps = [
        {
            "classifier": one.net.name,
            "seed": one.net.seed,
            "method": one.method,
            "folder": one.folder.as_posix(),
            "scores": {kind: dataclasses.asdict(scores) for kind, scores in one.scores.items()},
            "gain_over_cam": {name: gain._asdict() for name, gain in gains.get((one.net, one.method), {}).items()},
        }
        for one in found
    ]
    write_json(out / "report.json", {"data": data, "threshold_chosen": "the best on these images", "maps": maps})
    for part in (*(table.text() for table in tables), "\n".join(lines)):
        logger.info("\n" + part, extra=MULTILINE)
    logger.info(f"\nwrote {out / 'tables.md'} and {out / 'report.json'}", extra=MULTILINE)


def paper_tables(found: Sequence[Measured], data: str, backbone: str) -> list[Table]:
    """Return the paper's tables of a data set with our rows: VIII for Inception-V3 on CUB, else VII and X."""
    if data not in PAPER_DATA:
        return []
    means = mean_scores(found)
    seeds = len({one.net.seed for one in found})
    source = f"here, {backbone}, {next(iter(means.values())).images} images" + (f", {seeds} seeds" if seeds > 1 else "")
    rows = {f"{name}{' + AdvCAM' * (how == 'advcam')}": s for (name, how), s in means.items() if how != "climb"}
    if "inception" in backbone and data == "cub":
        return [table_viii(rows, source)]
    tables = [table_vii(rows, PAPER_DATA[data], source)]
    if data == "cub":
        names = list(dict.fromkeys(name for name, _ in means))
        name = "CutMix" if "CutMix" in names else names[0]
        design = {DESIGNS[method]: s for (other, method), s in means.items() if other == name}
        tables.append(table_x(design, f"{source}, {name}"))
    return tables


def mean_scores(found: Sequence[Measured]) -> dict[tuple[str, WSOLMethod], LocalizationScores]:
    """Return the measures of all contours by classifier and method, averaged over seeds (thresholds: the first's)."""
    groups: dict[tuple[str, WSOLMethod], list[LocalizationScores]] = {}
    for one in found:
        groups.setdefault((one.net.name, one.method), []).append(one.scores["all"])
    return {key: _mean(scores) for key, scores in groups.items()}


def _mean(scores: Sequence[LocalizationScores]) -> LocalizationScores:
    first = scores[0]
    averaged: dict[str, Any] = {
        "max_box_acc": tuple(statistics.fmean(values) for values in zip(*(s.max_box_acc for s in scores), strict=True))
    }
    for name in ("max_box_acc_v2", "gt_known", "top1_cls", "top1_loc", "top1_loc_at_gt_known"):
        values = [getattr(s, name) for s in scores]
        averaged[name] = None if None in values else statistics.fmean(values)
    return dataclasses.replace(first, **averaged)


def _gains(one: Measured, found: Sequence[Measured]) -> dict[Measure, Interval]:
    cam = next((other for other in found if other.net == one.net and other.method == "cam"), None)
    if cam is None:
        return {}
    a, b = (load_table(m.folder / TABLES["all"]) for m in (one, cam))
    return {measure: compare_tables(a, b, measure) for measure in _MEASURES}


def _own_lines(found: Sequence[Measured]) -> list[str]:
    lines = []
    for one in found:
        table = load_table(one.folder / TABLES["all"])
        pooled = bootstrap(measure_counts(table, "max_box_acc_v2"), best_share)
        own = Interval(*(value / len(table) for value in pooled))
        lines.append(f"{one.net}, {one.method}: MaxBoxAccV2 {_percent(own, signed=False)}")
    return lines


def gain_lines(gains: Mapping[tuple[TrainedNet, WSOLMethod], Mapping[Measure, Interval]]) -> list[str]:
    """Return lines of each gain over CAM with its interval, and of mean and standard deviation over several seeds."""
    lines = []
    by_seed: dict[tuple[str, WSOLMethod], list[float]] = {}
    for (net, method), measured in gains.items():
        if not measured:
            continue
        gain = measured["max_box_acc_v2"]
        by_seed.setdefault((net.name, method), []).append(100 * gain.value)
        lines.append(f"{net}, {method} - cam: MaxBoxAccV2 {_percent(gain)}")
    for (name, method), values in by_seed.items():
        if len(values) > 1:
            spread = statistics.stdev(values)
            lines.append(
                f"{name}, {method} - cam over {len(values)} seeds: MaxBoxAccV2 {statistics.fmean(values):+.1f}, "
                f"standard deviation {spread:.1f}"
            )
    return lines


def _percent(value: Interval, *, signed: bool = True) -> str:
    shown, low, high = (format(100 * number, "+.1f" if signed else ".1f") for number in value)
    return f"{shown} (90 % interval over images {low} to {high})"
