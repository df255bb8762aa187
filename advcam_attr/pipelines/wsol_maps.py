"""A classifier and images of one class each in; one localization map an image, and what the net predicts, out.

A run folder holds ``maps/`` (a `advcam_attr.runs.map_store.MapStore` of the net's own grids), ``predictions/`` (a line
an image, by process) and ``maps.json`` (what both depend on). A run that was killed goes on where it stopped, any
number of processes share the work, and the maps are the same, bit for bit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.data.images import normalised, to_bytes
from advcam_attr.files import make_folder, read_text
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.seeds import SeedSummary, check_ids, placed
from advcam_attr.pipelines.wsol_map_settings import WSOLMapSettings, described
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.map_store import FLAT_LIMIT, MapStore
from advcam_attr.runs.prefetch import plan_batches, prefetched
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import ImageList, check_settings, read_record
from advcam_attr.runs.sharding import Shard, choose_device, shard_of
from advcam_attr.types import AdvCAMError, ClimbStep, Sample

logger = logging.getLogger(__name__)


__all__ = ["WSOLMapSettings", "make_wsol_maps", "read_map", "read_predictions", "wsol_map_store"]


@dataclass(frozen=True)
class _Read:
    """A batch: those that could be read, with their pictures ``(N, 3, H, W)`` uint8 and sizes, and why others not."""

    batch: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    pictures: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    failed: tuple[tuple[str, str], ...]


def make_wsol_maps(
    net: nn.Module,
    data: ImageList,
    out: Path,
    settings: WSOLMapSettings | None = None,
    *,
    shard: Shard | None = None,
    show_progress: bool = False,
) -> SeedSummary:
    """Make a map of each image's class, keep it in ``out/maps``, and note what the net predicts for the image as it is.

    Args:
        net: a classifier whose class k is the data's; its mode, gradients and place are left as they are.
        data: the samples, each with one label.
        out: the run folder.
        settings: how; None takes the defaults.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).
        show_progress: a progress bar of the first process.

    Returns:
        What was done. An image that cannot be read is named there and does not stop the others.

    Raises:
        AdvCAMError: no images, two of one id, one without a single label or of a class that the net lacks, settings
            that cannot be used or are not those that the folder was made with, a full disk, too little memory.

    Example:
        >>> make_wsol_maps(net, read_cub("CUB_200_2011", "test"), Path("runs/cub"))  # doctest: +SKIP
    """
    begin, settings = time.monotonic(), settings or WSOLMapSettings()
    shard = shard_of() if shard is None else shard
    device = choose_device(settings.device, shard.local)
    check_ids(data)
    if several := next((sample for sample in data.samples if len(sample.labels) != 1), None):
        raise AdvCAMError(f"image {several.id} has {len(several.labels)} labels: localization needs one for each image")
    maker = _Maker(net, settings, device, data.samples)
    nothing_there = next((out / "maps").rglob("*.safetensors"), None) is None
    overwrite = settings.overwrite or nothing_there
    digest = check_settings(out / "maps.json", described(settings, net, data), overwrite=overwrite)
    store = MapStore(out / "maps", settings=digest, layout="flat" if len(data.samples) <= FLAT_LIMIT else "spread")
    store.remove_stale()
    batches = plan_batches([settings.size] * len(data.samples), [1] * len(data.samples), settings.batch)
    mine = [tuple(data.samples[i] for i in batch) for batch in shard.take(batches)]
    known = {} if settings.overwrite else _predictions(out, digest)
    todo = [batch for batch in mine if not all(_done(s, store, known, digest, settings) for s in batch)]
    count, left = (sum(map(len, some)) for some in (mine, todo))
    logger.info(
        f"{shard}: {count} of {len(data.samples)} images of {data.name} {data.split} in {len(mine)} batches; "
        f"{count - left} are in {out / 'maps'}, {left} are to do"
    )
    failed: list[tuple[str, str]] = []
    with (
        progress_bar(count, "maps", initial=count - left) as bar,
        placed(net, device),
    ):
        for read in prefetched(maker.read, todo, workers=settings.workers):
            failed += read.failed
            maps, predicted = maker.maps(read)
            _append(_predictions_file(out, digest, shard), predicted)
            for id, grid in maps.items():
                store.write(id, grid)
            failed += [(s.id, "its map is not finite; look at the precision") for s in read.samples if s.id not in maps]
            bar.update(len(read.batch))
    done = left - len(failed)
    summary = SeedSummary(out, count, done, count - left, tuple(failed), time.monotonic() - begin, shard)
    logger.info(str(summary))
    return summary


def wsol_map_store(out: Path) -> MapStore:
    """The maps of a run folder.

    Raises:
        AdvCAMError: none were made there.
    """
    return MapStore(out / "maps", settings=_record(out)["digest"])


def read_map(store: MapStore, id: str) -> Tensor:
    """The map of an image on the net's own grid, ``(h, w)``; not normalised, negative values and all.

    Raises:
        AdvCAMError: missing, damaged, or made with other settings.
    """
    return store.read_grids(id).grids[0][0]


def read_predictions(out: Path) -> dict[str, int]:
    """The classes that the net predicts, by image id.

    Raises:
        AdvCAMError: no maps were made there.
    """
    return _predictions(out, _record(out)["digest"])


class _Maker:
    """A classifier at work on batches."""

    def __init__(
        self, net: nn.Module, settings: WSOLMapSettings, device: torch.device, samples: Sequence[Sample]
    ) -> None:
        recipe = settings.whole_recipe()
        self.advcam = AdvCAM(
            net, settings.layer, base=settings.base, recipe=recipe, autocast=settings.autocast or False,
            channels_last=settings.channels_last,
        )  # fmt: skip
        self.settings, self.device = settings, device
        self.highest = max(samples, key=lambda sample: sample.labels)

    def read(self, batch: tuple[Sample, ...]) -> _Read:
        """Read the pictures of a batch; in a thread."""
        samples, pictures, sizes, failed = [], [], [], []
        for sample in batch:
            try:
                picture = self.settings.read(sample.image)
            except AdvCAMError as error:
                failed.append((sample.id, str(error)))
                continue
            height, width = self.settings.size
            samples.append(sample)
            sizes.append((picture.height, picture.width))
            pictures.append(to_bytes(picture.resize((width, height), Image.Resampling.BILINEAR)))
        return _Read(batch, tuple(samples), tuple(pictures), tuple(sizes), tuple(failed))

    def maps(self, read: _Read) -> tuple[dict[str, GridMaps], dict[str, int]]:
        """The finite maps of a batch, and what is predicted, by id.

        Raises:
            AdvCAMError: too little memory; the net does not take such images, or lacks a class.
        """
        if not read.samples:
            return {}, {}
        x = normalised(torch.stack(read.pictures).to(self.device), self.settings.mean, self.settings.std)
        head = head_at(
            self.advcam.view, x[0], type(self.advcam.view.model).__name__,
            class_weights=self.advcam.needs_class_weights, remedy="choose another size",
        )  # fmt: skip
        if self.highest.labels[0] >= head.classes:
            raise AdvCAMError(
                f"image {self.highest.id} has class {self.highest.labels[0]}, and the net has {head.classes}, "
                f"0 to {head.classes - 1}: is it a net of this data set?"
            )
        predicted: list[int] = []

        def note(step: ClimbStep) -> None:
            if step.index == 0:
                predicted.extend(step.logits[:, 0].argmax(1).tolist())

        target = [sample.labels[0] for sample in read.samples]
        try:
            if self.settings.target == "predicted":
                target = self._predict(x)
            grids = self.advcam.attribute(x, target, output="native", on_step=note)
        except torch.OutOfMemoryError as error:
            raise AdvCAMError(f"too little memory for {len(x)} images at once: lower batch") from error
        assert isinstance(grids, Tensor)
        rows = zip(read.samples, target, read.sizes, grids.float().cpu(), strict=True)
        maps = {
            sample.id: GridMaps((k,), size, (grid.contiguous(),))
            for sample, k, size, grid in rows
            if bool(grid.isfinite().all())
        }
        return maps, {sample.id: k for sample, k in zip(read.samples, predicted, strict=True)}

    def _predict(self, x: Tensor) -> list[int]:
        found: list[int] = []
        self.advcam.attribute(
            x, 0, steps=0, output="native", on_step=lambda step: found.extend(step.logits[:, 0].argmax(1).tolist())
        )
        return found


def _done(sample: Sample, store: MapStore, known: Mapping[str, int], digest: str, settings: WSOLMapSettings) -> bool:
    """Whether an image has its prediction and a map of the class that is wanted, of these settings."""
    header = store.header(sample.id)
    if sample.id not in known or header is None or header.settings != digest:
        return False
    return header.classes == (sample.labels if settings.target == "truth" else (known[sample.id],))


def _record(out: Path) -> dict[str, Any]:
    record = read_record(out / "maps.json")
    if record is None:
        raise AdvCAMError(f"no maps in {out}: its maps.json is missing or damaged; make them first")
    return record


def _predictions_file(out: Path, digest: str, shard: Shard) -> Path:
    return out / "predictions" / f"{digest}-{shard.rank}of{shard.world}.jsonl"


def _predictions(out: Path, digest: str) -> dict[str, int]:
    """What all processes have noted; a line that an interruption left unfinished is passed over."""
    found: dict[str, int] = {}
    for file in sorted((out / "predictions").glob(f"{digest}-*.jsonl")):
        for line in read_text(file, "remove it, and make the maps again").splitlines():
            try:
                id, label = json.loads(line)
            except (ValueError, TypeError):
                continue
            found[str(id)] = int(label)
    return found


def _append(file: Path, predicted: Mapping[str, int]) -> None:
    """Note predictions; on a line of their own even after one that an interruption left unfinished."""
    make_folder(file.parent)
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"\n{json.dumps([id, label])}" for id, label in predicted.items()) + "\n")
    except OSError as error:
        raise AdvCAMError(f"cannot write {file} ({error.strerror}): make room, and run it again") from error
