"""Batches of samples in; the summed maps of each sample's classes, or why there are none, out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.data.images import normalised, read_rgb, resize_to, to_bytes
from advcam_attr.pipelines.model import head_at
from advcam_attr.pipelines.seed_maps import summed_maps
from advcam_attr.pipelines.seed_settings import SeedSettings
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import AdvCAMError, Sample


@dataclass(frozen=True)
class BatchMaps:
    """What became of one batch.

    Attributes:
        samples: the batch.
        maps: for each number of steps, the maps of the samples that have some, by id.
        failed: id and reason of the others.
    """

    samples: tuple[Sample, ...]
    maps: dict[int, dict[str, GridMaps]]
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Read:
    """The samples of a batch that could be read, with their pictures at each scale, ``(N, 3, H s, W s)``, uint8."""

    batch: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    pictures: tuple[Tensor, ...]
    background: Tensor | None
    failed: list[tuple[str, str]]


class SeedMaker:
    """A classifier at work on batches of samples of one size.

    Args:
        net: the classifier, on its device.
        settings: how.
        steps: the numbers of steps whose sums are wanted.
        sizes: height and width of each image, by id.
        device: the net's.
        highest: a sample with the highest class of the data, which the net must have.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: SeedSettings,
        steps: Sequence[int],
        sizes: Mapping[str, tuple[int, int]],
        device: torch.device,
        highest: Sample,
    ) -> None:
        advcam = AdvCAM(net, settings.layer, base=settings.base)
        self.view, self.base, self._needs_class_weights = advcam.view, advcam.base, advcam.needs_class_weights
        self.settings, self.recipe, self.steps = settings, settings.whole_recipe(), list(steps)
        self.sizes, self.device, self.highest = sizes, device, highest

    def batches(self, todo: Sequence[tuple[Sample, ...]]) -> Iterator[BatchMaps]:
        """Do all batches, in order, reading ahead.

        Raises:
            AdvCAMError: too little memory; or the net cannot be used for the first batch that could be read. Later,
                images that the net cannot be used for are failures of theirs.
        """
        succeeded = False
        for read in prefetched(self._read, todo, workers=self.settings.workers):
            failed = list(read.failed)
            found: dict[int, tuple[Tensor, ...]] | None = None
            try:
                found = self._grids(read)
                succeeded = succeeded or bool(read.pictures)
            except (AdvCAMError, torch.OutOfMemoryError) as error:
                if any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
                    pixels = " x ".join(map(str, read.pictures[0].shape[2:]))
                    raise AdvCAMError(
                        f"too little memory for {self.settings.batch_rows} rows of {pixels} pixels: lower batch_rows"
                    ) from error
                if not succeeded:
                    raise
                failed += [(sample.id, str(error)) for sample in read.samples]
            maps: dict[int, dict[str, GridMaps]] = {t: {} for t in self.steps}
            if found is not None:
                failed += self._share_out(read, found, maps)
            yield BatchMaps(read.batch, maps, tuple(failed))

    def _share_out(
        self, read: _Read, found: Mapping[int, tuple[Tensor, ...]], maps: dict[int, dict[str, GridMaps]]
    ) -> list[tuple[str, str]]:
        """Give each sample its rows of the grids; those whose maps are not finite are named."""
        ends = accumulate(len(sample.labels) for sample in read.samples)
        failed = []
        for sample, end in zip(read.samples, ends, strict=True):
            rows = slice(end - len(sample.labels), end)
            grids = {t: tuple(grid[rows] for grid in found[t]) for t in self.steps}
            if all(bool(grid.isfinite().all()) for some in grids.values() for grid in some):
                for t in self.steps:
                    maps[t][sample.id] = GridMaps(sample.labels, self.sizes[sample.id], grids[t])
            else:
                failed.append((sample.id, "its maps are not finite; look at the precision (autocast) and the recipe"))
        return failed

    def _read(self, batch: tuple[Sample, ...]) -> _Read:
        """Read the pictures of a batch; in a thread."""
        samples, pictures, backgrounds, failed = [], [], [], []
        for sample in batch:
            try:
                if sample.labels:
                    made = self._pictures(sample)
                    background = self._background(sample)
                    pictures.append(made)
                    backgrounds += [] if background is None else [background]
            except AdvCAMError as error:
                failed.append((sample.id, str(error)))
                continue
            samples.append(sample)
        stacked = tuple(map(torch.stack, zip(*pictures, strict=True)))
        return _Read(batch, tuple(samples), stacked, torch.stack(backgrounds) if backgrounds else None, failed)

    def _pictures(self, sample: Sample) -> tuple[Tensor, ...]:
        """The picture at each scale, ``(3, H s, W s)``, uint8: 8 bits travel to the device, where `_images` goes on."""
        picture, (height, width) = read_rgb(sample.image), self.sizes[sample.id]
        if picture.size != (width, height):
            raise AdvCAMError(
                f"{sample.image} is {picture.height} x {picture.width}, and was {height} x {width} when the run began: "
                "remove sizes.json from the run folder if the images have changed"
            )
        return tuple(to_bytes(resize_to(picture, scale)) for scale in self.settings.scales)

    def _background(self, sample: Sample) -> Tensor | None:
        """Where the detector sees background, ``(H, W)``, bool."""
        if self.settings.saliency is None:
            return None
        size = self.sizes[sample.id]
        found = self.settings.saliency(sample, size)
        if tuple(found.shape) != size:
            raise AdvCAMError(f"the saliency map of {sample.id} is {tuple(found.shape)}, and its image {size}")
        return ~found if found.dtype == torch.bool else found <= 0.5

    def _grids(self, read: _Read) -> dict[int, tuple[Tensor, ...]]:
        """The summed maps of a batch's rows for each number of steps, one tensor a scale, on the CPU."""
        if not read.pictures:
            return dict.fromkeys(self.steps, ())
        images = [self._images(pictures) for pictures in read.pictures]
        counts = torch.tensor([len(sample.labels) for sample in read.samples])
        image_of = torch.arange(len(counts)).repeat_interleave(counts).to(self.device)
        target = torch.tensor([k for sample in read.samples for k in sample.labels], device=self.device)
        with self._precision():
            for x in images:
                self._check_head(x)
            at_scales = dict(zip(self.settings.scales, images, strict=True))
            found = summed_maps(
                self.view, at_scales, target, image_of, self.recipe, self.base,
                steps=self.steps, rows_at_once=self.settings.batch_rows,
                background=None if read.background is None else read.background.to(self.device),
            )  # fmt: skip
        return {t: tuple(grid.cpu() for grid in grids) for t, grids in found.items()}

    def _images(self, pictures: Tensor) -> Tensor:
        x = normalised(pictures.to(self.device), self.settings.mean, self.settings.std)
        return x.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else x

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.settings.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.settings.autocast)

    def _check_head(self, x: Tensor) -> None:
        """That the net takes images of this size and has all classes of the data."""
        head = head_at(
            self.view, x[0], type(self.view.model).__name__, class_weights=self._needs_class_weights,
            remedy=f"seeds need a net that takes any size, or scales other than {self.recipe.scales}",
        )  # fmt: skip
        if self.highest.labels[-1] >= head.classes:
            raise AdvCAMError(
                f"image {self.highest.id} has class {self.highest.labels[-1]}, and the net has {head.classes}, "
                f"0 to {head.classes - 1}: is it a net of this data set?"
            )
