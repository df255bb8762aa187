"""A folder of ``advcam attribute`` in; the sections of its report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from advcam_attr.data.images import open_image
from advcam_attr.report.page import Entry, Frame, Section, heat_uri, most_telling, picture_uri
from advcam_attr.tables.segmentation import Table
from advcam_attr.types import AdvCAMError

#: Where a drawing of `advcam_attr.viz.overlay.panels` has its first picture, and how high it is.
_LEFT, _TOP, _CELL = 6, 26, 224


def attribution_sections(folder: Path, limit: int) -> list[Section]:
    """Scores and gallery of the images that were attributed; nothing where there are none.

    An image is done when its JSON is there. Files of other images, half done, are not shown.

    Raises:
        AdvCAMError: an image's files are damaged.
    """
    records = {path: record for path in sorted(folder.glob("*.json")) if (record := _record(path))}
    if not records:
        return []
    entries = [entry for path, record in records.items() for entry in _entries(path, record)]
    rows = [
        (record_name(record), one["name"], *(f"{value:.2f}" for value in _ends(one)[0]),
         *(f"{value:.3f}" for value in _ends(one)[1]))
        for record in records.values() for one in record["targets"]
    ]  # fmt: skip
    columns = ("image", "class", "logit", "at the end", "probability", "at the end")
    config = next(iter(records.values()))["config"]
    about = f"{config.get('model.spec')}, base {config.get('base')}, recipe {config.get('recipe.name')}"
    kept = most_telling(entries, lambda entry: entry.gain or 0.0, limit)
    notes = [about + f"; {config.get('recipe.steps')} steps at most."]
    if len(kept) < len(entries):
        notes.append(f"The gallery shows the {len(kept)} of {len(entries)} maps whose logits rose least and most.")
    return [
        Section("Gallery", tuple(notes), gallery=tuple(kept), gain="rise of the logit"),
        Section("Scores", tables=(Table("Scores of each class before and after the climb", columns, tuple(rows)),)),
    ]


def record_name(record: dict[str, Any]) -> str:
    """What the image of a record is called."""
    return Path(record["image"]).name


def _record(path: Path) -> dict[str, Any] | None:
    """An image's record, or None for any other JSON."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"image", "config", "targets", "files", "input_size"}
    return record if isinstance(record, dict) and needed <= record.keys() else None


def _ends(one: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Logit and probability at the first and last step of the scale nearest 1."""
    at = min(one["scores"], key=lambda scores: abs(scores["scale"] - 1))
    return (at["logit"][0], at["logit"][-1]), (at["probability"][0], at["probability"][-1])


def _entries(path: Path, record: dict[str, Any]) -> list[Entry]:
    try:
        maps = load_file(path.with_suffix(".safetensors"))
        found = []
        for t, one in enumerate(record["targets"]):
            source, size = picture_uri(_picture(path.parent / one["overlay"], record["input_size"]))
            logit, likely = _ends(one)
            score = f"logit {logit[0]:.1f} → {logit[1]:.1f}, probability {likely[0]:.3f} → {likely[1]:.3f}"
            name, steps = record_name(record), _frames(maps, t)
            found.append(Entry(name, (one["name"],), source, size, steps, (), score, logit[1] - logit[0]))
        return found
    except (OSError, SafetensorError, KeyError, IndexError, TypeError) as error:
        raise AdvCAMError(f"the files of {path} are damaged ({error}); make them anew with --overwrite") from error


def _picture(overlay: Path, size: list[int]) -> Image.Image:
    """The image as the model saw it: the first picture of the overlay."""
    with open_image(overlay, formats=("PNG",)) as drawing:
        width = max(1, round(size[1] * _CELL / size[0]))
        return drawing.crop((_LEFT, _TOP, _LEFT + width, _TOP + _CELL)).copy()


def _frames(maps: dict[str, Tensor], t: int) -> tuple[Frame, ...]:
    """The sums after each step where they were kept, else the first and the last map."""
    if "steps" in maps:
        return tuple(Frame(step_name(n), heat_uri(heat.numpy())) for n, heat in enumerate(maps["steps"][t]))
    return Frame("CAM", heat_uri(maps["base"][t].numpy())), Frame("AdvCAM", heat_uri(maps["advcam"][t].numpy()))


def step_name(t: int) -> str:
    """What the sum after t steps is called."""
    return "CAM, t = 0" if t == 0 else f"AdvCAM, t = {t}"
