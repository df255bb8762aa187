"""A run folder, and what its results depend on, in; the digest of that, the images' sizes, or a refusal, out.

What a stage depends on is kept beside its results: a later run goes on with the same, or is told the difference. The
configuration of the last stage that was not refused is kept in the run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from advcam_attr.data.sizes import image_size
from advcam_attr.engine.prefetch import prefetched
from advcam_attr.engine.sharding import shard_of
from advcam_attr.files import write_bytes, write_json
from advcam_attr.pipelines.folder import require_same
from advcam_attr.types import AdvCAMError, Sample

#: The file of a run folder that holds its configuration.
CONFIG = "config.json"


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


def same_settings(path: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> str:
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


@contextmanager
def kept_config(run: Path, config: Any) -> Iterator[None]:
    """A stage's block, for which the run folder keeps a configuration, for those who look at it later.

    Where the stage refuses, the configuration that was there before is put back.

    Args:
        run: the folder.
        config: a dataclass.
    """
    path = run / CONFIG
    if shard_of().rank != 0:
        yield
        return
    before = path.read_bytes() if path.is_file() else None
    write_json(path, dataclasses.asdict(config))
    try:
        yield
    except AdvCAMError:
        if before is not None:
            write_bytes(path, before)
        raise


def read_record(path: Path) -> dict[str, Any] | None:
    """What `same_settings` wrote: ``digest`` and ``settings``; None where there is nothing of the kind."""
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
