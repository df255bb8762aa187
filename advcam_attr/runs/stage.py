"""Stages that make one label map per image: resumable, shared by processes, each file written atomically.

The settings of a folder of label maps are recorded beside it, in ``<folder>.json``, and each PNG holds their digest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from advcam_attr.data.images import read_rgb, to_bytes
from advcam_attr.data.masks import mask_path, png_settings, write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import remove_leftovers, to_json
from advcam_attr.refine.seeds import GridMaps, class_maps
from advcam_attr.runs.map_store import MapReader, maps_of
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import check_settings, read_record, require_same
from advcam_attr.runs.sharding import Shard, shard_of, shard_of_launch, wait_for
from advcam_attr.types import AdvCAMError, ClassMaps, Sample

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class LabelStage(Generic[T]):
    """How the label maps of a folder are made.

    Attributes:
        what: their name in messages, e.g. ``"masks"``.
        folder: of the PNGs.
        depends_on: all settings that they depend on.
        read: loads the input of an image's label map; called ahead, in threads.
        make: computes the label map, ``(H, W)`` uint8, or whatever ``write`` takes.
        write: writes it to a path, with a digest that `advcam_attr.data.masks.png_settings` reads.
    """

    what: str
    folder: Path
    depends_on: Mapping[str, Any]
    read: Callable[[Sample], T]
    make: Callable[[T], Any]
    write: Callable[[Path, Any, str], None] = write_mask


def run_stage(
    stage: LabelStage[Any],
    data: SegmentationData,
    *,
    workers: int = 0,
    overwrite: bool = False,
    shard: Shard | None = None,
) -> str:
    """Make the label maps of this process's share of the images; existing ones are skipped.

    Args:
        stage: what is made.
        data: the images.
        workers: threads that read ahead.
        overwrite: whether to recompute all, also in a folder of other settings.
        shard: None reads it from the environment (``torchrun``, SLURM).

    Returns:
        The digest of the settings.

    Raises:
        AdvCAMError: the folder has other settings, or some label maps could not be made; all others were.
    """
    shard, begin, folder = shard_of() if shard is None else shard, time.monotonic(), stage.folder
    empty = next(folder.glob("*.png"), None) is None
    digest = check_settings(record_path(folder), to_json(stage.depends_on), overwrite=overwrite or empty)
    mine = shard.take(data.samples)
    todo = [s for s in mine if overwrite or png_settings(mask_path(folder, s.id)) != digest]
    logger.info(
        f"{shard}: {stage.what} of {len(mine)} of {len(data.samples)} images; {len(mine) - len(todo)} are in {folder}"
    )
    remove_leftovers(folder)
    failed: list[str] = []

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
                failed.append(f"{sample.id}: {error}")
            else:
                stage.write(mask_path(folder, sample.id), labels, digest)
            bar.update()
    if todo:
        made = len(todo) - len(failed)
        logger.info(f"{shard}: {made} {stage.what} written, {made / max(time.monotonic() - begin, 1e-9):.2f} images/s")
    if failed:
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise AdvCAMError(
            f"{stage.what} of {len(failed)} images could not be made ({'; '.join(failed[:3])}{more}); all others exist"
        )
    return digest


def record_path(folder: Path) -> Path:
    """Return the path of the settings of a folder's label maps."""
    return folder.with_name(f"{folder.name}.json")


def folder_digest(folder: Path) -> str:
    """Return the digest of the settings of a folder's label maps."""
    record = read_record(record_path(folder))
    if record is None:
        raise AdvCAMError(f"no label maps in {folder}: {record_path(folder)} is missing or damaged; make them first")
    return str(record["digest"])


def check_method(masks: Path, method: str, *, overwrite: bool) -> None:
    """Check, before a net is trained for them, that existing masks of a folder are by this method."""
    record = read_record(record_path(masks))
    if record is not None and not overwrite and next(masks.glob("*.png"), None) is not None:
        made_by = {"method": record["settings"].get("method")}
        require_same(record_path(masks), made_by, {"method": method}, "--runtime.overwrite true")


def check_made(folder: Path, data: SegmentationData, what: str) -> str:
    """Return the digest of a folder's settings if it has the label maps of all images."""
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
    """Wait until the ranks of a launch have made the label maps of all images; return at once for one rank."""
    if shard_of_launch().world > 1:
        digest, files = folder_digest(folder), [mask_path(folder, sample.id) for sample in data.samples]
        wait_for(lambda: [file for file in files if png_settings(file) != digest])


def ready_to_train(what: str, folder: Path, net: str, weights: Path, data: SegmentationData) -> None:
    """Wait for the label maps that a net learns from; raise in a SLURM array unless the net's ``weights`` exist."""
    wait_for_ranks(folder, data)
    if shard_of().world > shard_of_launch().world and not weights.is_file():
        raise AdvCAMError(
            f"the {what} of this share are in {folder}; now train {net} in one job, the same command outside of the "
            "array, and then start the array again for the masks"
        )


def check_seeds(seeds: MapReader, data: SegmentationData) -> None:
    """Check that there are images, and seeds of all with labels."""
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    missing = [sample for sample in data.samples if sample.labels and sample.id not in seeds]
    if missing:
        raise AdvCAMError(
            f"seeds of {len(missing)} of {len(data.samples)} images are missing, e.g. {missing[0].id}: make them first"
        )


@dataclass(frozen=True)
class SeededImage:
    """An image, ``(3, H, W)`` uint8, and the localization maps of its classes, of the same size."""

    sample: Sample
    pixels: Tensor
    maps: ClassMaps


def read_seeded(seeds: MapReader, sample: Sample) -> SeededImage:
    """Read an image and its maps."""
    pixels = to_bytes(read_rgb(sample.image))
    size = (pixels.shape[1], pixels.shape[2])
    if not sample.labels and sample.id not in seeds:
        return SeededImage(sample, pixels, class_maps(GridMaps((), size, ())))
    maps = maps_of(seeds, sample)
    if tuple(maps.high_res.shape) != (len(maps.classes), *size):
        raise AdvCAMError(
            f"the maps of {sample.id} are of {maps.high_res.shape[2]} x {maps.high_res.shape[1]} pixels and its image "
            f"{sample.image} is of {size[1]} x {size[0]}; make the maps again from this image"
        )
    if not bool(maps.high_res.isfinite().all() and maps.cam.isfinite().all()):
        raise AdvCAMError(f"the maps of {sample.id} are not finite; make them again")
    return SeededImage(sample, pixels, maps)


def seeded_stage(
    what: str,
    folder: Path,
    depends_on: Mapping[str, Any],
    seeds: MapReader,
    data: SegmentationData,
    make: Callable[[SeededImage], Any],
    write: Callable[[Path, Any, str], None] = write_mask,
) -> LabelStage[SeededImage]:
    """Return a stage whose label maps are made of images and their seeds; arguments as of `LabelStage`."""
    config = {**depends_on, "seeds": str(getattr(seeds, "settings", "")), "data": data.name}
    return LabelStage(what, folder, config, lambda sample: read_seeded(seeds, sample), make, write)
