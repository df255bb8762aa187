"""Localization maps of batches of samples, and the classes that the net predicts for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from PIL import Image
from torch import Tensor, nn

from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.climbing.loop import to_grid, totals
from advcam_attr.data.images import normalised, resize_to, to_bytes
from advcam_attr.heads import undisturbed
from advcam_attr.heads.cells import blocks_of
from advcam_attr.pipelines.map_settings import MapSettings
from advcam_attr.pipelines.model import head_at
from advcam_attr.refine.seeds import GridMaps, resized, with_mirror
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.types import AdvCAMError, Cells, ClimbStep, Sample

#: As many sizes of images must fail, and none succeed, before the settings are to blame.
_SIZES = 3

_NOT_FINITE = "its maps are not finite; look at the precision (autocast) and the recipe"


@dataclass(frozen=True)
class BatchMaps:
    """The maps of one batch.

    Attributes:
        maps: for each number of steps, the maps of the samples that have some, by id.
        predicted: the class of the highest logit by id; for boxes only.
        failed: id and reason of the other samples.
    """

    samples: tuple[Sample, ...]
    maps: dict[int, dict[str, GridMaps]]
    predicted: dict[str, int]
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Read:
    """The readable samples of a batch; the images of those with classes at each scale, ``(N, 3, H s, W s)``, uint8."""

    batch: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    images: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    background: Tensor | None
    failed: tuple[tuple[str, str], ...]


class MapMaker:
    """Maker of the maps of batches, each of samples of one size.

    Args:
        net: the classifier, on its device.
        settings: how maps are made.
        steps: numbers of steps whose sums are wanted; a climb of T steps is the beginning of every longer one.
        sizes: expected height and width of images, by id.
        device: the net's.
        highest: a sample with the highest class of the data, which the net must have.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: MapSettings,
        steps: Sequence[int],
        sizes: Mapping[str, tuple[int, int]],
        device: torch.device,
        highest: Sample,
    ) -> None:
        recipe = settings.whole_recipe()
        self.plan = recipe.plan()
        # images are resized before they are normalised, so that scales and their schedule are followed here
        self.advcam = AdvCAM(
            net,
            settings.layer,
            base=settings.base,
            recipe=recipe.with_(scales=1.0, schedule="same"),
            autocast=settings.runtime.autocast_dtype or False,
            channels_last=settings.runtime.channels_last,
        )
        self.settings, self.steps, self.sizes = settings, list(steps), sizes
        self.device, self.highest = device, highest
        self.cell_layout = settings.cell_layout(self.advcam.view.model)

    def batches(self, todo: Sequence[tuple[Sample, ...]]) -> Iterator[BatchMaps]:
        """Yield the maps of all batches, in order.

        An error is a failure of its batch's images, e.g. of a photograph of one pixel. It stops the run if it is of
        memory, or if no batch succeeded before images of `_SIZES` sizes failed, or at all.
        """
        succeeded, unfit = False, dict[tuple[int, int], AdvCAMError]()
        for read in prefetched(self._read, todo, workers=self.settings.runtime.workers):
            try:
                made = self._maps(read)
                succeeded = succeeded or bool(read.images)
            except (AdvCAMError, torch.OutOfMemoryError) as error:
                if any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
                    pixels = " x ".join(map(str, read.images[0].shape[2:]))
                    raise AdvCAMError(
                        f"too little memory for {self.settings.batch} samples of {pixels} pixels: lower batch"
                    ) from error
                unfit.setdefault(read.sizes[0], AdvCAMError(str(error)))
                if not succeeded and len(unfit) == _SIZES:
                    raise
                failed = (*read.failed, *((sample.id, str(error)) for sample in read.samples))
                made = BatchMaps(read.batch, {t: {} for t in self.steps}, {}, failed)
            yield made
        if unfit and not succeeded:
            raise next(iter(unfit.values()))

    def _read(self, batch: tuple[Sample, ...]) -> _Read:
        samples, images, sizes, backgrounds, failed = [], [], [], [], []
        for sample in batch:
            try:
                size = self.sizes.get(sample.id, (0, 0))
                if sample.labels:
                    image = self.settings.read(sample.image)
                    size = image.height, image.width
                    scaled, background = self._scaled(sample, image), self._background(sample, size)
                    images.append(scaled)
                    backgrounds += [] if background is None else [background]
            except AdvCAMError as error:
                failed.append((sample.id, str(error)))
                continue
            samples.append(sample)
            sizes.append(size)
        stacked = tuple(map(torch.stack, zip(*images, strict=True)))
        background = torch.stack(backgrounds) if backgrounds else None
        return _Read(batch, tuple(samples), stacked, tuple(sizes), background, tuple(failed))

    def _scaled(self, sample: Sample, image: Image.Image) -> tuple[Tensor, ...]:
        """The image at each scale, uint8: 8 bits a value travel to the device."""
        if self.settings.size is not None:
            height, width = self.settings.size
            return (to_bytes(image.resize((width, height), Image.Resampling.BILINEAR)),)
        height, width = self.sizes[sample.id]
        if image.size != (width, height):
            raise AdvCAMError(
                f"{sample.image} is {image.height} x {image.width}, and was {height} x {width} when the run began: "
                "remove sizes.json from the run folder if the images have changed"
            )
        return tuple(to_bytes(resize_to(image, scale)) for scale in self.plan.scales)

    def _background(self, sample: Sample, size: tuple[int, int]) -> Tensor | None:
        if self.settings.saliency is None:
            return None
        found = self.settings.saliency(sample, size)
        if tuple(found.shape) != size:
            raise AdvCAMError(f"the saliency map of {sample.id} is {tuple(found.shape)}, and its image {size}")
        return ~found if found.dtype == torch.bool else found <= 0.5

    def _maps(self, read: _Read) -> BatchMaps:
        maps: dict[int, dict[str, GridMaps]] = {t: {} for t in self.steps}
        failed = list(read.failed)
        predicted: dict[str, int] = {}
        grids: dict[int, list[Tensor]] = {t: [] for t in self.steps}
        cells: list[Cells] = []
        counts = [len(sample.labels) for sample in read.samples]
        target = [k for sample in read.samples for k in sample.labels]
        image_of = torch.tensor([n for n, count in enumerate(counts) for _ in range(count)], device=self.device).long()
        for scale, images in zip(self.plan.scales, read.images, strict=False):
            x = normalised(images.to(self.device), self.settings.mean, self.settings.std)
            self._check_head(x)
            if self.settings.target == "predicted":
                (step,) = self.advcam.climb(x, 0, steps=0)
                target = _best(step)
            cells += [] if self.cell_layout == "irn" else [self._cells(x, read.sizes[0])]
            summed, classes = self._climb(scale, x, target, image_of, read.background)
            for t, grid in summed.items():
                grids[t].append(grid.cpu())
            if self.settings.size is not None:
                predicted = {sample.id: k for sample, k in zip(read.samples, classes, strict=True)}
        for sample, size, end in zip(read.samples, read.sizes, accumulate(counts), strict=True):
            its = slice(end - len(sample.labels), end)
            found = {t: tuple(grid[its] for grid in some) for t, some in grids.items()}
            if all(bool(grid.isfinite().all()) for some in found.values() for grid in some):
                labels = (predicted[sample.id],) if self.settings.target == "predicted" else sample.labels
                for t in self.steps:
                    made = GridMaps(labels, size, found[t], tuple(cells), self.settings.normalization)
                    maps[t][sample.id] = made
            else:
                failed.append((sample.id, _NOT_FINITE))
        return BatchMaps(read.batch, maps, predicted, tuple(failed))

    def _cells(self, x: Tensor, size: tuple[int, int]) -> Cells:
        """The cells of resized images over the images themselves, of ``size``."""
        with undisturbed(self.advcam.view.model):
            cells, grid = self.advcam.view.cells(x), self.advcam.view.inspect(x).grid
        scaled = x.shape[2], x.shape[3]
        cells = blocks_of(cells, grid, scaled) if self.cell_layout == "blocks" else cells
        cells = with_mirror(cells, scaled[1], grid[1]) if self.plan.views.mirrored else cells
        return resized(cells, scaled, size)

    def _climb(
        self, scale: float, x: Tensor, target: Sequence[int], image_of: Tensor, background: Tensor | None
    ) -> tuple[dict[int, Tensor], list[int]]:
        """The sums of all samples' maps at a scale, ``(R, h, w)``, by number of steps; and the predicted classes."""
        schedule = {t: self.plan.schedule(t, scale) for t in self.steps}
        wanted = {count for count, _ in schedule.values()}
        parts: dict[int, list[Tensor]] = {count: [] for count in wanted}
        at_once = max(1, int(self.settings.batch / max(1.0, scale**2)))
        predicted: list[int] = []
        saliency = None
        if background is not None:
            saliency = ~to_grid(background.to(self.device), (x.shape[2], x.shape[3]))
        for chunk in torch.arange(len(target), device=self.device).split(at_once):
            classes = [target[r] for r in chunk.tolist()]
            climbed = self.advcam.climb(x, classes, steps=max(wanted), saliency=saliency, image_of=image_of[chunk])
            for step, total in totals(climbed, self.plan.aggregate):
                predicted += _best(step) if step.index == 0 else []
                if step.index in wanted:
                    parts[step.index].append(total)
        sums = {t: weight * torch.cat(parts[count]).float() for t, (count, weight) in schedule.items()}
        return sums, predicted

    def _check_head(self, x: Tensor) -> None:
        remedy = "choose another size"
        if self.settings.size is None:
            remedy = f"seeds need a net that takes any size, or scales other than {self.plan.scales}"
        head = head_at(
            self.advcam.view,
            x[0],
            type(self.advcam.view.model).__name__,
            class_weights=self.advcam.needs_class_weights,
            remedy=remedy,
        )
        if self.highest.labels[-1] >= head.classes:
            raise AdvCAMError(
                f"image {self.highest.id} has class {self.highest.labels[-1]}, and the net has {head.classes}, "
                f"0 to {head.classes - 1}: is it a net of this data set?"
            )


def _best(step: ClimbStep) -> list[int]:
    """The class of the highest logit of each image (in its first view)."""
    return [int(k) for k in step.logits[:, 0].argmax(1)]
