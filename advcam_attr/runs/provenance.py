"""A run folder, and what its results depend on, in; the digest of that, the images' sizes, or a refusal, out.

What a stage depends on is kept beside its results: a later run goes on with the same, or is told the difference. The
configuration of the last stage that was not refused is kept in the run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from advcam_attr.data.images import image_size
from advcam_attr.files import digest, write_json
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import AdvCAMError, Sample


class ImageList(Protocol):
    """A split of a data set, as far as its images go."""

    @property
    def name(self) -> str:
        """Of the data set."""

    @property
    def root(self) -> Path:
        """Its folder."""

    @property
    def split(self) -> str:
        """Of the data set."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images."""


def weights_digest(net: nn.Module) -> str:
    """What tells a net's weights from others': 16 hexadecimal digits of their SHA-256.

    Example:
        >>> len(weights_digest(nn.Linear(2, 2)))
        16
    """
    content = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def net_config(net: nn.Module, spec: Any) -> dict[str, Any]:
    """What a net's results depend on: its architecture, a dataclass; its normalisation; its weights."""
    return {**dataclasses.asdict(spec), "mean": net.mean, "std": net.std, "weights": weights_digest(net)}


def check_settings(path: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> str:
    """Remember what the results of a folder depend on, or check that it is what is remembered.

    Args:
        path: the file to remember it in.
        config: as JSON gives it back.
        overwrite: other settings take the place of those that are there.

    Returns:
        A digest of the settings, 16 hexadecimal digits.

    Raises:
        AdvCAMError: the folder was made with other settings; the message says which.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    record = read_record(path)
    if record is None or (overwrite and record["digest"] != digest):
        write_json(path, {"digest": digest, "settings": config})
        record = read_record(path)  # another process may have been faster, with other settings
    require_same(path, record["settings"] if record else {}, config, "overwrite")
    return digest


def read_record(path: Path) -> dict[str, Any] | None:
    """What `check_settings` wrote: ``digest`` and ``settings``; None where there is nothing of the kind."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"digest", "settings"} <= record.keys() else None


def image_sizes(
    samples: Sequence[Sample], path: Path, workers: int
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    """Height and width of every image, from a file or else from the images' headers; and why others have none.

    Args:
        samples: the images.
        path: where sizes are remembered; it is written when images are new to it.
        workers: threads that read headers.

    Returns:
        Sizes by id, and id and reason of the images that cannot be read. These are not remembered.
    """
    try:
        known = {id: (int(h), int(w)) for id, (h, w) in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    unknown = [sample for sample in samples if sample.id not in known]
    failed: list[tuple[str, str]] = []
    for sample, found in zip(unknown, prefetched(_size_or_reason, unknown, workers=workers, ahead=64), strict=True):
        if isinstance(found, str):
            failed.append((sample.id, found))
        else:
            known[sample.id] = found
    if len(failed) < len(unknown):
        write_json(path, known)
    return known, failed


def _size_or_reason(sample: Sample) -> tuple[int, int] | str:
    try:
        return image_size(sample.image)
    except AdvCAMError as error:
        return str(error)


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
