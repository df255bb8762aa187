"""A folder of results and the images of a run in; what is done, and what is to do under which name, out.

An image is done when its JSON is there, which is written last. The JSON remembers the image (its path and a digest of
its content) and all settings that the results depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advcam_attr.files import digest
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class Job:
    """One image to do.

    Attributes:
        image: its file.
        name: what the names of its results begin with; no other image of the folder has it.
        digest: of the image's content; empty if it cannot be read.
        stale: files of earlier results under this name.
    """

    image: Path
    name: str
    digest: str
    stale: tuple[Path, ...] = ()

    def identity(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the image's JSON must hold for a later run to know it again."""
        return {
            "image": self.image.resolve().as_posix(),
            "image_digest": self.digest,
            "config": dict(config),
        }


def outstanding(
    images: Sequence[Path], out: Path, config: Mapping[str, Any], *, overwrite: bool = False
) -> tuple[list[Job], list[Path]]:
    """Sort images into those to do and those that are done.

    A name is the file's stem; where another image of the folder has that already, the names of the image's folders go
    before it, as many as it takes.

    Args:
        images: the files.
        out: the folder; need not exist.
        config: all settings, as JSON would give them back.
        overwrite: everything is to do, whatever is there.

    Returns:
        The jobs, and the images whose results are there and up to date.

    Raises:
        AdvCAMError: an image was done with other settings; the message says which.
    """
    jobs: list[Job] = []
    done: list[Path] = []
    taken: set[str] = set()
    for image in images:
        name, record = _place(image, out, taken)
        taken.add(name)
        content = _digest(image)
        if record and not overwrite:
            require_same(out / f"{name}.json", record["config"], config, "--overwrite")
            if record["image_digest"] == content:
                done.append(image)
                continue
        stale = tuple(out / file for file in record.get("files", ())) if record else ()
        jobs.append(Job(image, name, content, stale))
    return jobs, done


def _place(image: Path, out: Path, taken: set[str]) -> tuple[str, dict[str, Any] | None]:
    """A name that is free or the image's own, and the record of its earlier results."""
    full = image.resolve()
    name = full.stem
    for folder in (*full.parent.parts[:0:-1], None):
        record = _record(out / f"{name}.json")
        if name not in taken and (record is None or record["image"] == full.as_posix()):
            return name, record
        name = f"{folder}_{name}"
    name = f"{full.stem}_{hashlib.sha256(full.as_posix().encode()).hexdigest()[:8]}"
    return name, _record(out / f"{name}.json")


def _record(path: Path) -> dict[str, Any] | None:
    """An earlier run's JSON, or None where there is none that `Job.identity` is in."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"image", "image_digest", "config"} <= record.keys() else None


def _digest(image: Path) -> str:
    try:
        return digest(image)
    except OSError:
        return ""


def require_same(made: Path, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str) -> None:
    """Check that what is there was made with the settings of this run.

    Args:
        made: what is there.
        old: its settings.
        new: this run's.
        remedy: what helps besides another folder.

    Raises:
        AdvCAMError: it was not; the message says what changed.
    """
    if old != new:
        raise AdvCAMError(
            f"{made} was made with other settings ({difference(old, new)}); choose another folder, or {remedy}"
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed from some settings to others, in words; three changes at most.

    Example:
        >>> difference({"steps": 8, "base": "cam"}, {"steps": 9, "base": "cam"})
        'steps was 8, is 9'
    """
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:3]]
    return "; ".join(shown + (["..."] if len(changed) > 3 else []))
