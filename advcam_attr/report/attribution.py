"""Report sections of a folder of ``advcam attribute``: gallery and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from advcam_attr.data.images import open_image
from advcam_attr.files import inside
from advcam_attr.reading import read_json
from advcam_attr.report.page import Entry, Frame, Section, extremes, heat_uri, thumbnail
from advcam_attr.tables.table import Table
from advcam_attr.tensor_files import read_tensors
from advcam_attr.types import AdvCAMError

#: Position and height of the first image in a drawing of `advcam_attr.viz.overlay.panels`.
_LEFT, _TOP, _CELL = 6, 26, 224


def attribution_sections(folder: Path, limit: int) -> list[Section]:
    """Return gallery and scores of the attributed images, which are those with a JSON record."""
    records = {path: record for path in sorted(folder.glob("*.json")) if (record := _read_record(path))}
    if not records:
        return []
    entries, rows = [], []
    for path, record in records.items():
        try:
            maps, _ = read_tensors(inside(folder, path.with_suffix(".safetensors").name, path))
            for t, target in enumerate(record["targets"]):
                logit, probability = _ends(target)
                entries.append(_entry(path, record, target, _frames(maps, t)))
                numbers = *(f"{value:.2f}" for value in logit), *(f"{value:.3f}" for value in probability)
                rows.append((Path(record["image"]).name, target["name"], *numbers))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AdvCAMError(f"the files of {path} are damaged ({error}); recompute them with --overwrite") from error
    config = next(iter(records.values()))["config"]
    notes = [
        f"{config.get('model.spec')}, base {config.get('base')}, recipe {config.get('recipe.name')}; "
        f"{config.get('recipe.steps')} steps at most."
    ]
    shown = extremes(entries, lambda entry: entry.gain or 0.0, limit)
    if len(shown) < len(entries):
        notes.append(f"The gallery shows the {len(shown)} of {len(entries)} maps whose logits rose least and most.")
    columns = ("image", "class", "logit", "at the end", "probability", "at the end")
    return [
        Section("Gallery", tuple(notes), gallery=tuple(shown), gain="rise of the logit"),
        Section("Scores", tables=(Table("Scores of each class before and after the climb", columns, tuple(rows)),)),
    ]


def step_name(t: int) -> str:
    return "CAM, t = 0" if t == 0 else f"AdvCAM, t = {t}"


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of an image, or None for any other JSON."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    kinds = {"image": str, "config": dict, "targets": list, "files": list, "input_size": list}
    sound = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    return record if sound else None


def _ends(target: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last (logit, probability) at the scale nearest 1."""
    at = min(target["scores"], key=lambda scores: abs(scores["scale"] - 1))
    return (at["logit"][0], at["logit"][-1]), (at["probability"][0], at["probability"][-1])


def _entry(path: Path, record: dict[str, Any], target: dict[str, Any], frames: tuple[Frame, ...]) -> Entry:
    overlay = inside(path.parent, target["overlay"], path)
    source, size = thumbnail(_input_image(overlay, record["input_size"]))
    logit, probability = _ends(target)
    score = (
        f"logit {logit[0]:.1f} → {logit[1]:.1f}, probability {probability[0]:.3f} → {probability[1]:.3f}"
    )  # fmt: skip
    return Entry(
        Path(record["image"]).name, (target["name"],), source, size, frames, score=score, gain=logit[1] - logit[0]
    )


def _input_image(overlay: Path, size: list[int]) -> Image.Image:
    """The image as the model saw it: the first panel of the overlay."""
    with open_image(overlay, formats=("PNG",)) as drawing:
        width = max(1, round(size[1] * _CELL / size[0]))
        return drawing.crop((_LEFT, _TOP, _LEFT + width, _TOP + _CELL)).copy()


def _frames(maps: dict[str, Tensor], t: int) -> tuple[Frame, ...]:
    """The sums after each step if they were stored, else the first and the last map."""
    if "steps" in maps:
        return tuple(Frame(step_name(n), heat_uri(heat.numpy())) for n, heat in enumerate(maps["steps"][t]))
    return Frame("CAM", heat_uri(maps["base"][t].numpy())), Frame("AdvCAM", heat_uri(maps["advcam"][t].numpy()))
