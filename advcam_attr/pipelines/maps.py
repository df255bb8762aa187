"""Localization maps of a data set: seeds of all classes of an image, or one map per image for boxes.

A run folder holds ``maps/`` (a `MapStore`; for a sweep over the number of steps ``maps/T02`` and so on), a record of
all that the maps depend on (``seeds.json`` or ``maps.json``), for seeds ``sizes.json`` (the images' sizes, hence the
batches) and for boxes ``predictions/`` (the predicted classes, a file per process). A killed run resumes, any number of
processes share the work, and the maps are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from advcam_attr.climbing import recipes
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import append_to, make_folder, write_error, write_text
from advcam_attr.pipelines.map_batches import MapMaker
from advcam_attr.pipelines.map_settings import MapSettings, config_dict
from advcam_attr.reading import parse_json, printable, read_text
from advcam_attr.runs.map_store import FLAT_LIMIT, Layout, MapStore
from advcam_attr.runs.prefetch import plan_batches
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import ImageList, check_settings, image_sizes, read_record
from advcam_attr.runs.run_log import MULTILINE
from advcam_attr.runs.sharding import Shard, shard_of
from advcam_attr.types import AdvCAMError, Sample

__all__ = [
    "MapSettings",
    "MapSummary",
    "make_seeds",
    "make_wsol_maps",
    "read_map",
    "read_predictions",
    "seed_store",
    "sweep_seeds",
    "wsol_map_store",
]

logger = logging.getLogger(__name__)

_SEEDS, _MAPS = "seeds.json", "maps.json"


@dataclass(frozen=True)
class MapSummary:
    """Result of one process: its share of ``images``, of which ``written`` are new and ``kept`` were already complete.

    ``failed`` are the id and reason of the others.
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
        line = (
            f"{self.images} images of {self.shard}: {self.written} written, {self.kept} kept, {len(self.failed)} failed"
        )
        return "\n".join([line + speed, *(f"  {printable(id)}: {printable(reason)}" for id, reason in self.failed)])


def make_seeds(
    net: nn.Module,
    data: SegmentationData,
    out: Path,
    settings: MapSettings | None = None,
    *,
    shard: Shard | None = None,
) -> MapSummary:
    """Make the localization maps of all classes of each image.

    Args:
        net: a classifier whose class k is the data's; left in its mode and on its device.
        data: the samples; an image without labels gets a file without maps.
        out: the run folder.
        settings: how maps are made; None takes the defaults.
        shard: this process's share; None reads the environment (``torchrun``, SLURM).

    Returns:
        The summary. An image that cannot be read is a failure and does not stop the others.

    Raises:
        AdvCAMError: no images, two of one id, a label that the net lacks, settings that cannot be used or are not the
            folder's, a full disk, too little memory.
    """
    settings = settings or MapSettings()
    return _make(net, data, out, settings, {settings.whole_recipe().steps: ""}, None, shard)


def sweep_seeds(
    net: nn.Module,
    data: SegmentationData,
    out: Path,
    steps: Sequence[int],
    settings: MapSettings | None = None,
    *,
    shard: Shard | None = None,
) -> MapSummary:
    """Make the seeds of several numbers of steps in one climb, each in a store of its own, ``out/maps/T02``.

    Each store equals that of `make_seeds`, whose arguments these are, with that number of steps; the recipe's is not
    read. 0 steps give the base attribution's seed.
    """
    settings = settings or MapSettings()
    counts = sorted({recipes.check_steps(t) for t in steps})
    if not counts:
        raise AdvCAMError("steps must name at least one number of steps, e.g. (0, 2, 4)")
    if settings.method == "cam":
        raise AdvCAMError("plain CAM seeds take no steps: sweep with method advcam, whose 0 steps are its base's seed")
    settings = replace(settings, overrides={**settings.overrides, "steps": counts[-1]})
    return _make(net, data, out, settings, {t: _sweep_name(t) for t in counts}, counts, shard)


def make_wsol_maps(
    net: nn.Module, data: ImageList, out: Path, settings: MapSettings, *, shard: Shard | None = None
) -> MapSummary:
    """Make a map of each image's only class, and record the class that the net predicts.

    The arguments are those of `make_seeds`; each sample has one label, and the settings have a ``size``.
    """
    if settings.size is None:
        raise AdvCAMError("maps for boxes need a size: give MapSettings(size=(224, 224))")
    if several := next((sample for sample in data.samples if len(sample.labels) != 1), None):
        raise AdvCAMError(f"image {several.id} has {len(several.labels)} labels: localization needs one for each image")
    return _make(net, data, out, settings, {settings.whole_recipe().steps: ""}, None, shard)


def seed_store(out: Path, steps: int | None = None) -> MapStore:
    """Return the maps of a run folder; those of one number of steps if it is a sweep's."""
    record = read_record(out / _SEEDS)
    if record is None:
        raise AdvCAMError(f"no seeds in {out}: its {_SEEDS} is missing or damaged; make them first")
    folder = out / "maps" if steps is None else out / "maps" / _sweep_name(steps)
    return MapStore(folder, settings=record["digest"])


def wsol_map_store(out: Path) -> MapStore:
    """Return the maps of a run folder of `make_wsol_maps`."""
    return MapStore(out / "maps", settings=_digest(out))


def read_map(store: MapStore, id: str) -> Tensor:
    """Read the map of an image on the net's own grid, ``(h, w)``; neither normalised nor rectified."""
    return store.read_grids(id).grids[0][0]


def read_predictions(out: Path) -> dict[str, int]:
    """Read the predicted classes by image id, of `make_wsol_maps`."""
    return _Predictions(out, _digest(out)).read()


def _digest(out: Path) -> str:
    record = read_record(out / _MAPS)
    if record is None:
        raise AdvCAMError(f"no maps in {out}: its {_MAPS} is missing or damaged; make them first")
    return str(record["digest"])


def _sweep_name(steps: int) -> str:
    return f"T{steps:02d}"


def _make(
    net: nn.Module,
    data: ImageList,
    out: Path,
    settings: MapSettings,
    folders: Mapping[int, str],
    sweep: Sequence[int] | None,
    shard: Shard | None,
) -> MapSummary:
    begin, runtime, boxes = time.monotonic(), settings.runtime, settings.size is not None
    shard = shard_of() if shard is None else shard
    device = runtime.torch_device(shard)
    check_ids(data)
    config = config_dict(settings, net, f"{data.name} {data.split}" if boxes else data.name, sweep)
    empty = next((out / "maps").rglob("*.safetensors"), None) is None
    digest = check_settings(out / (_MAPS if boxes else _SEEDS), config, overwrite=runtime.overwrite or empty)
    layout: Layout = "flat" if len(data.samples) <= FLAT_LIMIT else "spread"
    stores = {t: MapStore(out / "maps" / name, settings=digest, layout=layout) for t, name in folders.items()}
    for store in stores.values():
        store.remove_stale()
    predictions = _Predictions(out, digest) if boxes else None
    sizes: dict[str, tuple[int, int]] = {}
    unreadable: Sequence[tuple[str, str]] = ()
    if not boxes:
        sizes, unreadable = image_sizes(data.samples, out / "sizes.json", runtime.workers)
        unreadable = shard.take(unreadable)
    planned = [settings.size or sizes.get(sample.id) for sample in data.samples]
    batches = plan_batches(planned, [len(sample.labels) for sample in data.samples], settings.batch)
    mine = [tuple(data.samples[i] for i in batch) for batch in shard.take(batches)]
    done = _Done(settings, list(stores.values()), sizes, None if predictions is None else predictions.read())
    todo = [batch for batch in mine if runtime.overwrite or not all(map(done, batch))]
    count, left = (sum(map(len, some)) for some in (mine, todo))
    logger.info(
        f"{shard}: {count} of {len(data.samples)} images of {data.name} {data.split} in {len(mine)} batches; "
        f"{count - left} are in {out / 'maps'}, {left} are to do"
    )
    highest = max(data.samples, key=lambda sample: sample.labels[-1:])
    maker = MapMaker(net, settings, list(stores), sizes, device, highest)
    written, failed = 0, list(unreadable)
    with progress_bar(count, "maps" if boxes else "seeds", initial=count - left) as bar, placed(net, device):
        for batch in maker.batches(todo):
            if predictions is not None:
                predictions.append(batch.predicted, shard)
            for t, store in stores.items():
                for id, maps in batch.maps[t].items():
                    store.write(id, maps)
            written += len(batch.samples) - len(batch.failed)
            failed += batch.failed
            bar.update(len(batch.samples))
    if predictions is not None:
        predictions.finish(shard)
    images = count + len(unreadable)
    summary = MapSummary(out, images, written, count - left, tuple(failed), time.monotonic() - begin, shard)
    logger.info(str(summary), extra=MULTILINE)
    return summary


def check_ids(data: ImageList) -> None:
    """Check that there are images, and no two of one id."""
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    seen: dict[str, Path] = {}
    for sample in data.samples:
        if sample.id in seen:
            raise AdvCAMError(f"two images have the id {sample.id}: {seen[sample.id]} and {sample.image}")
        seen[sample.id] = sample.image


@dataclass(frozen=True)
class _Done:
    """Whether the maps of a sample are complete, of these settings, of its size and of the wanted classes."""

    settings: MapSettings
    stores: Sequence[MapStore]
    sizes: Mapping[str, tuple[int, int]]
    predicted: Mapping[str, int] | None

    def __call__(self, sample: Sample) -> bool:
        classes = sample.labels
        if self.predicted is not None:
            if sample.id not in self.predicted:
                return False
            classes = (self.predicted[sample.id],) if self.settings.target == "predicted" else classes
        for store in self.stores:
            header = store.header(sample.id)
            if header is None or (header.settings, header.classes) != (store.settings, classes):
                return False
            if header.size != self.sizes.get(sample.id, header.size):
                return False
        return True


@dataclass(frozen=True)
class _Predictions:
    """The predicted classes of a run folder, a line per image in a file per process."""

    out: Path
    digest: str

    def read(self) -> dict[str, int]:
        """Read those of all processes; a line that an interruption cut off is skipped."""
        files = sorted((self.out / "predictions").glob(f"{self.digest}-*.jsonl"))
        return {id: label for file in files for id, label in self._records(file).items()}

    def append(self, predicted: Mapping[str, int], shard: Shard) -> None:
        """Append predictions, after a line break: an interruption may have cut off the last line."""
        file = self._file(shard)
        make_folder(file.parent)
        try:
            with append_to(file) as stream:
                stream.write("".join(f"\n{json.dumps([id, label])}" for id, label in predicted.items()) + "\n")
        except OSError as error:
            raise write_error(file, error) from error

    def finish(self, shard: Shard) -> None:
        """Rewrite a process's file with each image once, as one that was never interrupted has it."""
        file = self._file(shard)
        if file.is_file():
            lines = "".join(f"{json.dumps([id, label])}\n" for id, label in sorted(self._records(file).items()))
            if lines.encode() != file.read_bytes():
                write_text(file, lines)

    def _file(self, shard: Shard) -> Path:
        return self.out / "predictions" / f"{self.digest}-{shard.rank}of{shard.world}.jsonl"

    def _records(self, file: Path) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in read_text(file, "remove it, and make the maps again").splitlines():
            try:
                id, label = parse_json(line)
            except (ValueError, TypeError):
                continue
            if isinstance(id, str) and type(label) is int:
                found[id] = label
        return found


@contextlib.contextmanager
def placed(net: nn.Module, device: torch.device) -> Iterator[None]:
    first = next((p.device for p in net.parameters()), device)
    if first == device:
        yield
        return
    net.to(device)
    try:
        yield
    finally:
        net.to(first)
