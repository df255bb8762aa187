"""The report of a run folder as one HTML file, of whatever results the folder holds."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from advcam_attr import __version__
from advcam_attr.files import inside, write_text
from advcam_attr.pipelines.analyze.run import ANALYSES
from advcam_attr.reading import read_json, read_text
from advcam_attr.report.attribution import attribution_sections
from advcam_attr.report.page import Figure, Section, file_uri, parse_tables, render
from advcam_attr.report.semi import semi_sections
from advcam_attr.report.wsol import wsol_sections
from advcam_attr.report.wsss import wsss_sections
from advcam_attr.tables.table import Table
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.axes import BLUE, figure, style_axes

logger = logging.getLogger(__name__)

#: Depths of results below a run, as ``segmentation/cam/predictions/val/evaluation.json``.
_LEVELS = ("", "*/", "*/*/", "*/*/*/", "*/*/*/*/")

#: Column titles of the scores by their names in evaluations.
_SCORES = {
    "mean_iou": "mIoU", "precision": "precision", "recall": "recall", "f1_of_means": "F1",
    "mean_f1": "mean of the classes' F1", "noise": "noise",
}  # fmt: skip


def write_report(run: Path, out: Path | None = None, limit: int = 500) -> Path:
    """Write the report of a run and return its file.

    Args:
        run: The run folder.
        out: The file; None takes ``report.html`` in the folder.
        limit: Most images in a gallery; of more, those of the largest losses and gains are shown.
    """
    if limit < 1:
        raise AdvCAMError(f"limit must be at least 1, got {limit}")
    if not run.is_dir():
        raise AdvCAMError(f"no such run folder: {run}")
    sections = [section for find in FINDERS for section in find(run, limit)]
    if not sections:
        raise AdvCAMError(
            f"{run} holds no results of advcam attribute, wsss, semi, wsol, evaluate or analyze: nothing to report"
        )
    name = run.resolve().name
    page = render(f"Report of {name}", f"{run.resolve()}, advcam_attr {__version__}", sections)
    path = out or run / "report.html"
    write_text(path, page)
    logger.info(f"wrote {path} ({len(page.encode()) / 1e6:.1f} MB)")
    return path


def _files(run: Path, name: str) -> list[Path]:
    found = sorted({path for level in _LEVELS for path in run.glob(level + name) if path.is_file()})
    return [inside(path.parent, path.name, path.parent) for path in found]


def table_sections(run: Path, limit: int) -> list[Section]:
    """Return the tables of evaluations: every ``tables.md``."""
    found = []
    for path in _files(run, "tables.md"):
        tables, lines = parse_tables(read_text(path, "make it again"))
        if tables or lines:
            found.append(Section(_title("Tables", run, path), lines, tables))
    return found


def score_sections(run: Path, limit: int) -> list[Section]:
    """Return one table of all ``evaluation.json``: scores of seeds and masks in percent, other numbers unchanged."""
    found = {path.parent.relative_to(run).as_posix(): _scores(path) for path in _files(run, "evaluation.json")}
    if not found:
        return []
    extra = tuple(dict.fromkeys(name for _, scores in found.values() for name in scores if name not in _SCORES))
    known = tuple(name for name in _SCORES if any(name in scores for _, scores in found.values()))
    rows = []
    for where, (about, scores) in found.items():
        shares = (f"{100 * scores[name]:.1f}" if name in scores else "–" for name in known)
        others = (f"{scores[name]:.4g}" if name in scores else "–" for name in extra)
        rows.append((where, str(about.get("data", "")), str(about.get("images", "")), *shares, *others))
    columns = ("of", "data", "images", *(f"{_SCORES[name]}, %" for name in known), *extra)
    return [Section("Scores", tables=(Table("All evaluations", columns, tuple(rows)),))]


def _scores(path: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """An evaluation, and the numbers in its ``scores`` or, without these, its own."""
    try:
        record = read_json(path)
        scores = record.get("scores", record)
        numbers = {name: value for name, value in scores.items() if _is_number(value) and name != "images"}
    except (OSError, ValueError, AttributeError) as error:
        raise AdvCAMError(f"{path} is damaged: evaluate again, or remove it") from error
    return record, numbers


def analysis_sections(run: Path, limit: int) -> list[Section]:
    """Return the figures of ``advcam analyze``."""
    figures = []
    for folder in (run, run / "analysis"):
        for name, (source, text) in ANALYSES.items():
            if (folder / f"{name}.png").is_file() and (folder / f"{name}.json").is_file():
                content = inside(folder, f"{name}.png", folder / f"{name}.json").read_bytes()
                figures.append(Figure(f"{name} ({source})", file_uri(content), text))
    return [Section("Analyses", figures=tuple(figures))] if figures else []


def training_sections(run: Path, limit: int) -> list[Section]:
    """Return the loss curves of every training, from ``log.jsonl``."""
    figures = []
    for path in _files(run, "log.jsonl"):
        points = [(r["step"], r["loss"]) for r in read_log(path) if _is_number(r.get("step"), r.get("loss"))]
        if points:
            drawing, axes = figure(width=4.6, height=2.8)
            axes[0, 0].plot(*zip(*points, strict=True), color=BLUE, linewidth=0.9)
            style_axes(axes[0, 0], "", "step", "loss")
            buffer = io.BytesIO()
            drawing.savefig(buffer, dpi=100)
            where = path.parent.relative_to(run).as_posix()
            title = f"loss of {run.resolve().name if where == '.' else where}"
            text = f"from {points[0][1]:.3g} to {points[-1][1]:.3g} in {len(points)} records"
            figures.append(Figure(title, file_uri(buffer.getvalue()), text))
    return [Section("Training", figures=tuple(figures))] if figures else []


#: The finders, in the order of the page.
FINDERS: tuple[Callable[[Path, int], list[Section]], ...] = (
    table_sections, score_sections, wsss_sections, semi_sections, wsol_sections, attribution_sections,
    analysis_sections, training_sections,
)  # fmt: skip


def _title(what: str, run: Path, path: Path) -> str:
    where = path.parent.relative_to(run).as_posix()
    return what if where == "." else f"{what} of {where}"


#: Numbers of JSON may be too large for a float.
_HUGE = 1e300


def _is_number(*values: Any) -> bool:
    return all(type(value) in (int, float) and -_HUGE < value < _HUGE for value in values)
