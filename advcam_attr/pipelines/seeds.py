"""A classifier and a labelled data set in; localization maps of every image's classes, one file an image, out.

A run folder holds ``maps/`` (a `advcam_attr.runs.map_store.MapStore`; one in ``maps/T02`` and so on for each number of
steps of a sweep), ``seeds.json`` (what the maps depend on) and ``sizes.json`` (what the batches depend on). A run that
was killed goes on where it stopped, any number of processes share the work, and the files are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from advcam_attr.climbing import recipes
from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.seed_batches import SeedMaker
from advcam_attr.pipelines.seed_settings import SeedSettings, described
from advcam_attr.runs.map_store import FLAT_LIMIT, MapHeader, MapStore
from advcam_attr.runs.prefetch import plan_batches
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import ImageList, check_settings, image_sizes, read_record
from advcam_attr.runs.sharding import Shard, choose_device, shard_of
from advcam_attr.types import AdvCAMError, Sample

logger = logging.getLogger(__name__)


__all__ = ["SeedSettings", "SeedSummary", "make_seeds", "seed_store", "sweep_seeds"]


@dataclass(frozen=True)
class SeedSummary:
    """What one process did.

    Attributes:
        folder: the run folder.
        images: how many were its share.
        written: of them, how many it made.
        kept: how many were there already.
        failed: the others: id and reason.
        seconds: what it took.
        shard: which process.
    """

    folder: Path
    images: int
    written: int
    kept: int
    failed: tuple[tuple[str, str], ...]
    seconds: float
    shard: Shard

    def __str__(self) -> str:
        speed = f", {self.written / self.seconds:.2f} images/s" if self.written and self.seconds > 0 else ""
        parts = [
            f"{self.images} images of {self.shard}: {self.written} written, {self.kept} kept, {len(self.failed)} failed"
        ]
        return "\n".join([parts[0] + speed, *(f"  {id}: {reason}" for id, reason in self.failed)])


def make_seeds(
    net: nn.Module,
    data: SegmentationData,
    out: Path,
    settings: SeedSettings | None = None,
    *,
    shard: Shard | None = None,
    show_progress: bool = False,
) -> SeedSummary:
    """Make the localization maps of a data set and keep them in ``out/maps``.

    Args:
        net: a classifier whose class k is the data's; its mode, gradients and place are left as they are.
        data: the samples; an image without labels gets a file without maps.
        out: the run folder.
        settings: how; None takes the defaults.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).
        show_progress: a progress bar with images a second and time left, of the first process.

    Returns:
        What was done. An image that cannot be read is named there and does not stop the others.

    Raises:
        AdvCAMError: no images, two of one id, a label that the net lacks, settings that cannot be used or are not those
            that the folder was made with, a full disk, too little memory.

    Example:
        >>> make_seeds(net, voc.train("VOC2012"), Path("runs/voc"))  # doctest: +SKIP
    """
    settings = settings or SeedSettings()
    steps = settings.whole_recipe().steps
    return _run(net, data, out, settings, {steps: ""}, None, shard, show_progress)


def sweep_seeds(
    net: nn.Module,
    data: SegmentationData,
    out: Path,
    steps: Sequence[int],
    settings: SeedSettings | None = None,
    *,
    shard: Shard | None = None,
    show_progress: bool = False,
) -> SeedSummary:
    """Make the maps of several numbers of steps in one climb, and keep each in a store of its own, ``out/maps/T02``.

    Each store holds what `make_seeds` with that number of steps would, the schedule's steps and weights included.

    Args:
        net, data, out, settings, shard, show_progress: as for `make_seeds`; the recipe's steps are not read.
        steps: the numbers of steps, T; 0 is the base attribution's seed.

    Raises:
        AdvCAMError: as `make_seeds`; no number of steps, or a negative one.
    """
    settings = settings or SeedSettings()
    counts = sorted({recipes.check_steps(t) for t in steps})
    if not counts:
        raise AdvCAMError("steps must name at least one number of steps, e.g. (0, 2, 4)")
    if settings.method == "cam":
        raise AdvCAMError("plain CAM seeds take no steps: sweep with method advcam, whose 0 steps are its base's seed")
    settings = dataclasses.replace(settings, overrides={**settings.overrides, "steps": counts[-1]})
    return _run(net, data, out, settings, {t: _sweep_name(t) for t in counts}, counts, shard, show_progress)


def seed_store(out: Path, steps: int | None = None) -> MapStore:
    """The maps of a run folder; those of one number of steps where it is a sweep's.

    Raises:
        AdvCAMError: no seeds were made there.
    """
    record = read_record(out / "seeds.json")
    if record is None:
        raise AdvCAMError(f"no seeds in {out}: its seeds.json is missing or damaged; make them first")
    folder = out / "maps" if steps is None else out / "maps" / _sweep_name(steps)
    return MapStore(folder, settings=record["digest"])


def _sweep_name(steps: int) -> str:
    return f"T{steps:02d}"


def _run(
    net: nn.Module,
    data: SegmentationData,
    out: Path,
    settings: SeedSettings,
    folders: Mapping[int, str],
    sweep: Sequence[int] | None,
    shard: Shard | None,
    show_progress: bool,
) -> SeedSummary:
    """Plan for all, take this process's share of the batches, make what is not there."""
    begin = time.monotonic()
    shard = shard_of() if shard is None else shard
    device = choose_device(settings.device, shard.local)
    check_ids(data)
    config = described(settings, net, data, sweep)
    nothing_there = next((out / "maps").rglob("*.safetensors"), None) is None
    digest = check_settings(out / "seeds.json", config, overwrite=settings.overwrite or nothing_there)
    stores = _stores(out, folders, digest, len(data.samples))
    sizes, unreadable = image_sizes(data.samples, out / "sizes.json", settings.workers)
    batches = plan_batches(
        [sizes.get(sample.id) for sample in data.samples], [len(s.labels) for s in data.samples], settings.batch_rows
    )
    mine = [tuple(data.samples[i] for i in batch) for batch in shard.take(batches)]
    todo = mine if settings.overwrite else [b for b in mine if not _done(b, stores, sizes, digest)]
    count, left = (sum(map(len, some)) for some in (mine, todo))
    failed = list(shard.take(unreadable))
    logger.info(
        f"{shard}: {count} of {len(data.samples)} images of {data.name} {data.split} in {len(mine)} batches; "
        f"{count - left} are in {out / 'maps'}, {left} are to do"
    )
    highest = max((s for s in data.samples if s.labels), key=lambda s: s.labels[-1], default=data.samples[0])
    written = 0
    with (
        progress_bar(count, "seeds", initial=count - left) as bar,
        placed(net, device),
    ):
        for batch in SeedMaker(net, settings, list(stores), sizes, device, highest).batches(todo):
            for steps, store in stores.items():
                for id, maps in batch.maps[steps].items():
                    store.write(id, maps)
            written += len(batch.samples) - len(batch.failed)
            failed += batch.failed
            bar.update(len(batch.samples))
    images = count + len(shard.take(unreadable))
    summary = SeedSummary(out, images, written, count - left, tuple(failed), time.monotonic() - begin, shard)
    logger.info(str(summary))
    return summary


def _stores(out: Path, folders: Mapping[int, str], digest: str, images: int) -> dict[int, MapStore]:
    """The stores by number of steps, without what killed processes left in them."""
    stores = {
        steps: MapStore(out / "maps" / name, settings=digest, layout="flat" if images <= FLAT_LIMIT else "spread")
        for steps, name in folders.items()
    }
    for store in stores.values():
        store.remove_stale()
    return stores


def check_ids(data: ImageList) -> None:
    """That there are images, and no two of one id.

    Raises:
        AdvCAMError: otherwise.
    """
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    seen: dict[str, Path] = {}
    for sample in data.samples:
        if sample.id in seen:
            raise AdvCAMError(f"two images have the id {sample.id}: {seen[sample.id]} and {sample.image}")
        seen[sample.id] = sample.image


def _done(
    batch: Sequence[Sample], stores: Mapping[int, MapStore], sizes: Mapping[str, tuple[int, int]], digest: str
) -> bool:
    """Whether the maps of all samples of a batch are there, whole, of these settings, and of these labels."""
    return all(
        store.header(sample.id) == MapHeader(sample.labels, sizes[sample.id], digest)
        for sample in batch
        for store in stores.values()
    )


@contextlib.contextmanager
def placed(net: nn.Module, device: torch.device) -> Iterator[None]:
    """A block in which the net is on the device; afterwards it is where it was."""
    first = next((p.device for p in net.parameters()), device)
    if first == device:
        yield
        return
    net.to(device)
    try:
        yield
    finally:
        net.to(first)
