"""A run's configuration, and the choice of its images, in; the part that is asked for, and what is told, out.

The galleries of all kinds of runs share this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from advcam_attr.pipelines.config import CONFIG
from advcam_attr.report.page import Section
from advcam_attr.runs.provenance import ImageList
from advcam_attr.types import AdvCAMError, Sample

T = TypeVar("T")


def configured(folder: Path, part: str, kind: Callable[..., T]) -> T:
    """A part of the configuration that a run folder keeps.

    Args:
        folder: of the run.
        part: its name, e.g. ``"data"``; one that is null takes the defaults.
        kind: its dataclass.

    Raises:
        AdvCAMError: the file is missing or damaged.
    """
    path = folder / CONFIG
    try:
        return kind(**(json.loads(path.read_text(encoding="utf-8"))[part] or {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvCAMError(f"{path} is missing or damaged, so nobody knows the photographs ({error})") from error


def no_gallery(reason: object, title: str = "Gallery") -> Section:
    """The section that says why there is no gallery."""
    return Section(title, (f"There is no gallery: {reason}",))


def told(
    data: ImageList, there: int, shown: int, missing: Sequence[Sample], *, have: str, others: str,
    ends: str = "largest losses and gains",
) -> list[str]:  # fmt: skip
    """What is told above a gallery.

    Args:
        data: the images that could be shown.
        there: how many have something to show.
        shown: how many are shown.
        missing: those whose photograph is gone; they are not among the data's.
        have: what they have, e.g. ``"maps"``.
        others: what is said of the others, e.g. ``"have none"``.
        ends: which ones are shown of more than there is room for.
    """
    notes = [f"{there} images of {data.name} {data.split} have {have}."]
    if there < len(data.samples):
        notes.append(f"{len(data.samples) - there} others {others}.")
    if missing:
        notes.append(f"{len(missing)} photographs are not there, e.g. {missing[0].image}.")
    if shown < there:
        notes.append(f"Shown are the {shown} with the {ends}.")
    return notes
