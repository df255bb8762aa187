"""A data set and how an image's label map is made in; a folder of palette PNGs, one an image, out.

Beside the folder, ``<folder>.json`` says what the label maps depend on, and each PNG holds its digest. A stage that was
killed goes on where it stopped, any number of processes share it, and files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from advcam_attr.data.images import read_rgb, to_bytes
from advcam_attr.data.masks import mask_path, png_settings, write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import remove_leftovers
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import check_settings, read_record, require_same
from advcam_attr.runs.sharding import Shard, shard_of, shard_of_launch
from advcam_attr.types import AdvCAMError, ClassMaps, Sample

logger = logging.getLogger(__name__)


T = TypeVar("T")

#: For so long, in seconds, nothing new may come from the other processes before they count as stopped.
PATIENCE = 1800.0

#: Temporary files older than this, in seconds, were left by killed processes: a write takes milliseconds.
_DEAD = 3600.0


@dataclass(frozen=True)
class LabelStage(Generic[T]):
    """How the label maps of a folder are made.

    Attributes:
        what: the label maps' name in messages, e.g. ``"masks"``.
        folder: of the PNGs.
        depends_on: all that they depend on.
        read: what an image's label map is made of; called ahead, in threads.
        make: the label map, ``(H, W)`` uint8, or whatever ``write`` takes.
        write: writes it to a path, with a digest that `advcam_attr.data.masks.png_settings` finds.
    """

    what: str
    folder: Path
    depends_on: Mapping[str, Any]
    read: Callable[[Sample], T]
    make: Callable[[T], Tensor]
    write: Callable[[Path, Tensor, str], None] = write_mask


def run_stage(
    stage: LabelStage[Any],
    data: SegmentationData,
    *,
    workers: int = 0,
    overwrite: bool = False,
    shard: Shard | None = None,
) -> str:
    """Make the label maps of this process's share of the images.

    Args:
        stage: what is made.
        data: the images.
        workers: threads that read ahead.
        overwrite: make all anew, also where the folder was made with other settings.
        shard: which share; None asks the environment (``torchrun``, SLURM).

    Returns:
        The digest of what they depend on.

    Raises:
        AdvCAMError: the folder was made with other settings (the difference is told), a file cannot be written, or,
            after all others were done, some images could not be.
    """
    shard, begin, folder = shard_of() if shard is None else shard, time.monotonic(), stage.folder
    nothing_there = next(folder.glob("*.png"), None) is None
    digest = check_settings(record_path(folder), to_json(stage.depends_on), overwrite=overwrite or nothing_there)
    mine = shard.take(data.samples)
    todo = [s for s in mine if overwrite or png_settings(mask_path(folder, s.id)) != digest]
    logger.info(
        f"{shard}: {stage.what} of {len(mine)} of {len(data.samples)} images; {len(mine) - len(todo)} are in {folder}"
    )
    remove_leftovers(folder, older_than=_DEAD)
    failed: list[tuple[str, str]] = []

    def read(sample: Sample) -> Any:
        try:
            return stage.read(sample)
        except AdvCAMError as error:
            return error

    with progress_bar(len(mine), stage.what, initial=len(mine) - len(todo)) as bar:
        for sample, content in zip(todo, prefetched(read, todo, workers=workers), strict=True):
            try:
                if isinstance(content, AdvCAMError):
                    raise content
                labels = stage.make(content)
            except AdvCAMError as error:
                failed.append((sample.id, str(error)))
            else:
                stage.write(mask_path(folder, sample.id), labels, digest)
            bar.update()
    if todo:
        made = len(todo) - len(failed)
        logger.info(f"{shard}: {made} {stage.what} written, {made / max(time.monotonic() - begin, 1e-9):.2f} images/s")
    _raise_failures(failed, stage.what)
    return digest


def _raise_failures(failed: Sequence[tuple[str, str]], what: str) -> None:
    if failed:
        shown = "; ".join(f"{id}: {reason}" for id, reason in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise AdvCAMError(f"{what} of {len(failed)} images could not be made ({shown}{more}); all others are there")


def record_path(folder: Path) -> Path:
    """The file that says what a folder's label maps depend on."""
    return folder.with_name(f"{folder.name}.json")


def folder_digest(folder: Path) -> str:
    """The digest of what a folder's label maps depend on.

    Raises:
        AdvCAMError: there is no record of it.
    """
    record = read_record(record_path(folder))
    if record is None:
        raise AdvCAMError(f"no label maps in {folder}: {record_path(folder)} is missing or damaged; make them first")
    return str(record["digest"])


def check_method(masks: Path, method: str, *, overwrite: bool) -> None:
    """That the masks of a folder, if there are any, are by this method: to tell it before a net is trained for them.

    Raises:
        AdvCAMError: they are by another one, and are not to be made anew.
    """
    record = read_record(record_path(masks))
    if record is not None and not overwrite and next(masks.glob("*.png"), None) is not None:
        known = {"method": record["settings"].get("method")}
        require_same(record_path(masks), known, {"method": method}, "overwrite")


def check_made(folder: Path, data: SegmentationData, what: str) -> str:
    """That a folder has the label maps of all images, and the digest of what they depend on.

    Raises:
        AdvCAMError: some are missing, or were made with other settings.
    """
    record = read_record(record_path(folder))
    digest = None if record is None else str(record["digest"])
    missing = [s for s in data.samples if digest is None or png_settings(mask_path(folder, s.id)) != digest]
    if missing:
        raise AdvCAMError(
            f"{what} of {len(missing)} of {len(data.samples)} images are missing in {folder}, e.g. of {missing[0].id}; "
            "make them first"
        )
    return str(digest)


def wait_for_ranks(folder: Path, data: SegmentationData) -> None:
    """Wait until the label maps of all images are there, which the ranks of a launch make; alone, go on.

    Raises:
        AdvCAMError: nothing new came for half an hour.
    """
    if shard_of_launch().world == 1:
        return
    digest, since = folder_digest(folder), time.monotonic()
    missing = [mask_path(folder, sample.id) for sample in data.samples]
    while left := [file for file in missing if png_settings(file) != digest]:
        if len(left) < len(missing):
            missing, since = left, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise AdvCAMError(f"another process has stopped: {missing[0]} and {len(missing) - 1} more did not come")
        time.sleep(0.2)


def ready_to_train(what: str, folder: Path, net: str, weights: Path, data: SegmentationData) -> None:
    """Wait for the label maps that a net learns from; in a SLURM array, leave the training to a job of its own.

    Args:
        what: the label maps' name in messages.
        folder: of them; this process's share is made.
        net: the net's name in messages.
        weights: its file, when it is trained.
        data: the images.

    Raises:
        AdvCAMError: this is a share of an array and the net is not trained yet; or as `wait_for_ranks`.
    """
    wait_for_ranks(folder, data)
    if shard_of().world > shard_of_launch().world and not weights.is_file():
        raise AdvCAMError(
            f"the {what} of this share are in {folder}; now train {net} in one job, the same command outside of the "
            "array, and then start the array again for the masks"
        )


def check_seeds(seeds: MapReader, data: SegmentationData) -> None:
    """That there are images, and seeds of all that have labels.

    Raises:
        AdvCAMError: otherwise.
    """
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    missing = [sample for sample in data.samples if sample.labels and sample.id not in seeds]
    if missing:
        raise AdvCAMError(
            f"seeds of {len(missing)} of {len(data.samples)} images are missing, e.g. {missing[0].id}: make them first"
        )


def fingerprint(data: SegmentationData) -> str:
    """How many images, and what tells their list from others."""
    ids = "".join(f"{sample.id}\n" for sample in data.samples)
    return f"{len(data.samples)}, {hashlib.sha256(ids.encode()).hexdigest()[:8]}"


def to_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return dict(json.loads(json.dumps(config, default=str)))


@dataclass(frozen=True)
class SeededImage:
    """An image and the localization maps of its classes.

    Attributes:
        sample: which.
        pixels: ``(3, H, W)`` uint8.
        maps: of the same size; of no class for an image without labels.
    """

    sample: Sample
    pixels: Tensor
    maps: ClassMaps


def read_seeded(seeds: MapReader, sample: Sample) -> SeededImage:
    """Read an image and its maps.

    Raises:
        AdvCAMError: one of them cannot be read, they differ in size, or the maps are not finite.
    """
    pixels = to_bytes(read_rgb(sample.image))
    size = (pixels.shape[1], pixels.shape[2])
    if not sample.labels and sample.id not in seeds:
        return SeededImage(
            sample, pixels, ClassMaps((), size, torch.zeros(0, *strided_size(size, 4)), torch.zeros(0, *size))
        )
    maps = seeds.read(sample.id)
    if tuple(maps.high_res.shape) != (len(maps.classes), *size):
        raise AdvCAMError(
            f"the maps of {sample.id} are of {maps.high_res.shape[2]} x {maps.high_res.shape[1]} pixels and its image "
            f"{sample.image} is of {size[1]} x {size[0]}; make the maps again from this image"
        )
    if not bool(maps.high_res.isfinite().all() and maps.cam.isfinite().all()):
        raise AdvCAMError(f"the maps of {sample.id} are not finite; make them anew")
    return SeededImage(sample, pixels, maps)


def seeded_stage(
    what: str,
    folder: Path,
    depends_on: Mapping[str, Any],
    seeds: MapReader,
    data: SegmentationData,
    make: Callable[[SeededImage], Tensor],
    write: Callable[[Path, Tensor, str], None] = write_mask,
) -> LabelStage[SeededImage]:
    """A stage whose label maps are made of images and their seeds.

    Args:
        what, folder, make, write: as in `advcam_attr.runs.stage.LabelStage`.
        depends_on: all that the label maps depend on besides the seeds and the data set.
        seeds: localization maps by image id; what they depend on is told by their ``settings``, if they have any.
        data: the images.
    """
    config = {**depends_on, "seeds": str(getattr(seeds, "settings", "")), "data": data.name}
    return LabelStage(what, folder, config, lambda sample: read_seeded(seeds, sample), make, write)
