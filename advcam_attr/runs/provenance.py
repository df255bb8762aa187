"""Provenance of results: the settings, weights and images that they were made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from advcam_attr.data.images import image_size
from advcam_attr.files import difference, digest, inside, write_json
from advcam_attr.reading import read_json
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import AdvCAMError, Sample


class ImageList(Protocol):
    """The images of a data set's split."""

    @property
    def name(self) -> str: ...

    @property
    def root(self) -> Path: ...

    @property
    def split(self) -> str: ...

    @property
    def samples(self) -> tuple[Sample, ...]: ...


def fingerprint(data: ImageList) -> str:
    """Return the number of images and a digest of their ids."""
    ids = "".join(f"{sample.id}\n" for sample in data.samples)
    return f"{len(data.samples)}, {hashlib.sha256(ids.encode()).hexdigest()[:8]}"


def weights_digest(net: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a net's weights."""
    content = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def net_config(net: nn.Module, spec: Any) -> dict[str, Any]:
    """Return what a net's outputs depend on: architecture (a dataclass), normalisation, weights."""
    return {**dataclasses.asdict(spec), "mean": net.mean, "std": net.std, "weights": weights_digest(net)}


def check_settings(path: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> str:
    """Record the settings of a folder's results in ``path``, or check that they equal the recorded ones.

    Returns:
        16 hexadecimal digits of their SHA-256.

    Raises:
        AdvCAMError: the recorded settings differ; the message lists the changes.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    record = read_record(path)
    if record is None or (overwrite and record["digest"] != digest):
        write_json(path, {"digest": digest, "settings": config})
        record = read_record(path)  # another process may have written after us
    require_same(path, record["settings"] if record else {}, config, "--runtime.overwrite true")
    return digest


def read_record(path: Path) -> dict[str, Any] | None:
    """Return ``digest`` and ``settings`` as recorded by `check_settings`; None without a readable record."""
    record = _read_json(path, {"digest": str, "settings": dict})
    return record if record and re.fullmatch(r"[0-9a-f]{16}", record["digest"]) else None


def _read_json(path: Path, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    sound = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    return record if sound else None


def require_same(made: Path, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str) -> None:
    """Raise unless the settings of the results ``made`` are unchanged, and list the changes."""
    if old != new:
        raise AdvCAMError(
            f"{made} was made with other settings ({difference(old, new)}); choose another folder, or {remedy}"
        )


def image_sizes(
    samples: Sequence[Sample], path: Path, workers: int
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    """Return height and width by id, read from headers and cached in a file; and id and reason of unreadable images."""
    try:
        sizes = {id: (h, w) for id, (h, w) in read_json(path).items() if type(h) is type(w) is int and min(h, w) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        sizes = {}
    new = [sample for sample in samples if sample.id not in sizes]
    failed: list[tuple[str, str]] = []
    for sample, size in zip(new, prefetched(_size_or_reason, new, workers=workers, ahead=64), strict=True):
        if isinstance(size, str):
            failed.append((sample.id, size))
        else:
            sizes[sample.id] = size
    if len(failed) < len(new):
        write_json(path, sizes)
    return sizes, failed


def _size_or_reason(sample: Sample) -> tuple[int, int] | str:
    try:
        return image_size(sample.image)
    except AdvCAMError as error:
        return str(error)


@dataclass(frozen=True)
class Job:
    """An image whose results are to be computed.

    Attributes:
        image: its file.
        name: unique prefix of its results' names in their folder.
        digest: of its content; empty if unreadable.
        stale: files of earlier results under this name.
        kept: for results that are up to date, their number of targets, height and width; None if they are to be made.
    """

    image: Path
    name: str
    digest: str
    stale: tuple[Path, ...] = ()
    kept: tuple[int, int, int] | None = None

    def identity(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the image's JSON by which later runs recognise its results."""
        return {"image": self.image.resolve().as_posix(), "image_digest": self.digest, "config": dict(config)}


def planned(images: Sequence[Path], out: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> list[Job]:
    """Return all images in order, those whose results are up to date marked as kept.

    Names are stems; of images with equal stems, as many parent folders as necessary are prefixed.
    """
    jobs: list[Job] = []
    taken: set[str] = set()
    for image in images:
        name, record = _place(image, out, taken)
        taken.add(name)
        content = _digest(image)
        if record and not overwrite:
            require_same(out / f"{name}.json", record["config"], config, "--overwrite")
            if record["image_digest"] == content:
                count, (height, width) = len(record["targets"]), record["input_size"]
                jobs.append(Job(image, name, content, kept=(count, height, width)))
                continue
        jobs.append(Job(image, name, content, _results(out, name, record) if record else ()))
    return jobs


def _place(image: Path, out: Path, taken: set[str]) -> tuple[str, dict[str, Any] | None]:
    """Return a name that is free or the image's own, and the record of its earlier results."""
    full = image.resolve()
    name = full.stem
    for folder in (*full.parent.parts[:0:-1], None):
        record = _job_record(out, name)
        if name not in taken and (record is None or record["image"] == full.as_posix()):
            return name, record
        name = f"{folder}_{name}"
    name = f"{full.stem}_{hashlib.sha256(full.as_posix().encode()).hexdigest()[:8]}"
    return name, _job_record(out, name)


def _job_record(out: Path, name: str) -> dict[str, Any] | None:
    kinds = {"image": str, "image_digest": str, "config": dict, "input_size": list, "targets": list}
    record = _read_json(out / f"{name}.json", kinds)
    size = record["input_size"] if record else []
    return record if len(size) == 2 and all(type(side) is int and side > 0 for side in size) else None


def _results(out: Path, name: str, record: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files of an image's earlier results, which begin with its name."""
    path, files = out / f"{name}.json", record.get("files", [])
    found = tuple(inside(out, file, path) for file in files) if isinstance(files, list) else ()
    for file in found:
        if not re.fullmatch(rf"{re.escape(name)}\.(\w+(\.png|\.overlay\.jpg)|safetensors)", file.name):
            raise AdvCAMError(f"{path} names {file.name!r}, which is no result of {name}: remove it")
    return found


def _digest(image: Path) -> str:
    try:
        return digest(image)
    except OSError:
        return ""
