"""Shared parts of the galleries of all kinds of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from advcam_attr.data.samples import LocalizationData, SegmentationData
from advcam_attr.pipelines.config import CONFIG
from advcam_attr.reading import read_json
from advcam_attr.report.page import Frame, Section, labels_uri
from advcam_attr.runs.provenance import ImageList
from advcam_attr.types import AdvCAMError, NoMaskError, Sample

T = TypeVar("T")

METHOD_NAMES = {"cam": "CAM", "climb": "climbing alone", "advcam": "AdvCAM"}


def read_config(folder: Path, section: str, kind: Callable[..., T]) -> T:
    """Return a section of a run folder's configuration as its dataclass; null takes the defaults."""
    path = folder / CONFIG
    try:
        return kind(**(read_json(path)[section] or {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvCAMError(f"{path} is missing or damaged, so the images cannot be found ({error})") from error


def no_gallery(reason: object, title: str = "Gallery") -> Section:
    return Section(title, (f"There is no gallery: {reason}",))


def gallery_notes(
    data: ImageList, found: int, shown: int, missing: Sequence[Sample], *, have: str, others: str,
    ends: str = "largest losses and gains",
) -> list[str]:  # fmt: skip
    """Return the sentences above a gallery.

    Args:
        data: Images that could be shown.
        found: Number of those that have something to show.
        shown: Number of those that are shown.
        missing: Samples whose image file is missing, besides ``data``.
        have, others: Ends of sentences, e.g. ``"maps"`` and ``"have none"``.
        ends: Which ones are shown when the limit is exceeded.
    """
    notes = [f"{found} images of {data.name} {data.split} have {have}."]
    if found < len(data.samples):
        notes.append(f"{len(data.samples) - found} others {others}.")
    if missing:
        notes.append(f"{len(missing)} image files are missing, e.g. {missing[0].image}.")
    if shown < found:
        notes.append(f"Shown are the {shown} with the {ends}.")
    return notes


def truth_frames(data: SegmentationData, sample: Sample) -> Iterator[Frame]:
    """Yield the true mask of a sample, if there is one."""
    with contextlib.suppress(NoMaskError):
        yield Frame("truth", labels_uri(data.mask(sample).numpy()))


def class_names(data: SegmentationData | LocalizationData, sample: Sample) -> tuple[str, ...]:
    return tuple(data.classes[k] for k in sample.labels)
