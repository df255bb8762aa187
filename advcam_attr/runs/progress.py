"""Progress of a run's stages, counted from the files in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import Sample


@dataclass(frozen=True)
class Progress:
    """How much of a stage is done; ``changed`` are the settings that are no longer those of what is done, as text."""

    stage: str
    done: int
    total: int
    unit: str = "images"
    changed: str = ""

    @property
    def state(self) -> str:
        if self.done and self.changed:
            return f"made with other settings ({self.changed})"
        if self.done >= self.total:
            return "done"
        return "started" if self.done else "to do"

    def __str__(self) -> str:
        return f"{self.stage}: {min(self.done, self.total)} of {self.total} {self.unit}, {self.state}"


def training_progress(stage: str, folder: Path, weights: str, total: int) -> Progress:
    """Return a training's progress: all steps where its net's file exists, else those of its log."""
    if (folder / weights).is_file():
        return Progress(stage, total, total, "steps")
    log = folder / "log.jsonl"
    return Progress(stage, log.read_bytes().count(b"\n") if log.is_file() else 0, total, "steps")


def masks_progress(stage: str, folder: Path, samples: Sequence[Sample]) -> Progress:
    """Return the progress of a folder of label maps, ``<id>.png``."""
    wanted = {f"{sample.id}.png" for sample in samples}
    done = sum(file.name in wanted for file in folder.iterdir()) if folder.is_dir() else 0
    return Progress(stage, done, len(samples))


def maps_progress(stage: str, folder: Path, samples: Sequence[Sample]) -> Progress:
    """Return the progress of a map store."""
    missing = MapStore(folder).missing([sample.id for sample in samples])
    return Progress(stage, len(samples) - len(missing), len(samples))
