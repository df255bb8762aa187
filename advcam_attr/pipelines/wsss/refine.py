"""Seeds and images in; pseudo ground truth, one palette PNG an image and step, out.

The steps of the paper's section 4.5 and Table I, each in a folder of its own, so that each can be evaluated:

- ``seeds_crf/``: the seeds after a dense CRF (Table I's column +CRF); nothing else is made of them;
- ``masks/``: the seeds refined by IRN or PSA (Table I's mask column);
- ``masks_crf/``: the masks after the same CRF (not in the paper);
- ``masks_saliency/``: the last masks, ambiguous where a saliency map disagrees (after Table I, for training).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from advcam_attr.data.masks import SaliencyFolder, mask_path, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.wsss.irn import IRNSettings, refine_irn
from advcam_attr.pipelines.wsss.psa import PSASettings, refine_psa
from advcam_attr.refine.crf import CRF_RECIPES, DenseCRF, refine_labels
from advcam_attr.refine.saliency import ambiguous
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.registry import lookup
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.provenance import read_record
from advcam_attr.runs.sharding import choose_device, shard_of_launch
from advcam_attr.runs.stage import (
    LabelStage,
    SeededImage,
    check_seeds,
    folder_digest,
    read_seeded,
    record_path,
    run_stage,
    seeded_stage,
    wait_for_ranks,
)
from advcam_attr.types import AdvCAMError, Sample


@dataclass(frozen=True)
class RefineSettings:
    """Which steps lead from seeds to pseudo ground truth.

    Attributes:
        method: ``irn`` or ``psa``.
        irn: how IRN refines; the defaults are AdvCAM's, see `advcam_attr.pipelines.wsss.irn.SETTINGS` for others.
        psa: how PSA refines; the defaults are PSA's, see `advcam_attr.pipelines.wsss.psa.SETTINGS` for others.
        crf: what goes through the CRF as well: ``seeds``, ``masks``, both, or nothing.
        crf_threshold: 0.35, at which the seeds for the CRF are cut ("0.3 or 0.35", the authors' answer in their
            issue 11). Masks need none.
        crf_recipe: ``table1``: deeplab-pytorch's numbers, labels held with p = 0.7. How the paper's CRF takes labels is
            not told; this is this package's reading.
        saliency: a folder of saliency maps, for the ambiguous rule of section 4.5; None leaves it out.
        saliency_threshold: 0.5, above which a pixel is salient; the paper does not give it.
        workers: threads that read images and maps for the CRF and the rule.
        device: of the CRF: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: make the CRF's and the rule's maps anew; the method's settings have their own.
    """

    method: str = "irn"
    irn: IRNSettings = IRNSettings()
    psa: PSASettings = PSASettings()
    crf: tuple[str, ...] = ()
    crf_threshold: float = 0.35
    crf_recipe: str = "table1"
    saliency: str | Path | None = None
    saliency_threshold: float = 0.5
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        lookup(self.method, METHODS, "refinement method")
        for what in self.crf:
            lookup(what, dict.fromkeys(("seeds", "masks")), "input of the CRF")
        lookup(self.crf_recipe, CRF_RECIPES, "CRF recipe")
        if not (0 <= self.crf_threshold <= 1 and 0 <= self.saliency_threshold < 1):
            raise AdvCAMError(
                f"refine: thresholds must lie in 0..1, got crf_threshold {self.crf_threshold:g} and "
                f"saliency_threshold {self.saliency_threshold:g}"
            )


@dataclass(frozen=True)
class RefineSummary:
    """What was made.

    Attributes:
        steps: the folder of each step's label maps by the step's name, in the order in which they were made.
        final: the folder of the pseudo ground truth.
        images: how many images there are.
        seconds: what it took.
    """

    steps: dict[str, Path]
    final: Path
    images: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.images} images in {self.seconds:.0f} s: " + ", ".join(str(f) for f in self.steps.values())


def final_step(settings: RefineSettings) -> str:
    """The step whose label maps are the pseudo ground truth that segmentation nets learn from.

    Example:
        >>> final_step(RefineSettings()), final_step(RefineSettings(saliency="saliency"))
        ('masks', 'masks_saliency')
    """
    if settings.saliency is not None:
        return "masks_saliency"
    return "masks_crf" if "masks" in settings.crf else "masks"


def check_refined(settings: RefineSettings, out: Path) -> None:
    """That the pseudo ground truth of a folder, if there is any, is what these settings name.

    Raises:
        AdvCAMError: the masks are by another method, or further steps were made of them, e.g. by options that were
            given to the refinement alone.
    """
    method = _made_with(out / "masks", "method") or settings.method
    if method != settings.method:
        raise AdvCAMError(
            f"{out / 'masks'} is by {method}, and refine.method is {settings.method}: give --refine.method {method} "
            "here, too, or set it in the configuration"
        )
    steps = {
        "masks": "",
        "masks_crf": "--refine.crf '[masks]'",
        "masks_saliency": f"--refine.saliency {_made_with(out / 'masks_saliency', 'saliency') or 'DIR'}",
    }
    last = [step for step in steps if (out / step).is_dir()][-1:]
    if last and [*steps].index(last[0]) > [*steps].index(final_step(settings)):
        raise AdvCAMError(
            f"{out / last[0]} is there, and the settings end with {final_step(settings)}: give {steps[last[0]]} here, "
            "too, or set it in the configuration; or remove that folder"
        )


def _made_with(folder: Path, setting: str) -> str | None:
    """What the record of a folder's label maps says of a setting; None where it says nothing."""
    record = read_record(record_path(folder))
    return None if record is None else record["settings"].get(setting)


def _irn(
    settings: RefineSettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
) -> None:
    refine_irn(settings.irn, seeds, data, out)


def _psa(
    settings: RefineSettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
) -> None:
    refine_psa(settings.psa, seeds, data, out)


Method = Callable[[RefineSettings, MapReader, SegmentationData, Path], None]

#: What writes ``out/masks/<id>.png`` of all images, by name.
METHODS: dict[str, Method] = {"irn": _irn, "psa": _psa}


def refine(
    settings: RefineSettings,
    seeds: MapReader,
    data: SegmentationData,
    out: Path,
) -> RefineSummary:
    """Make pseudo ground truth of seeds, or go on where that was interrupted.

    Under ``torchrun`` or ``srun``, processes share every step. Label maps are 8-bit palette PNGs as PASCAL VOC's: 0 the
    background, k + 1 class k, 255 ambiguous (after the saliency rule alone).

    Args:
        settings: which steps, and how.
        seeds: localization maps by image id: a `advcam_attr.runs.map_store.MapStore`, or anything that reads them.
        data: the images; their true masks are not read.
        out: the folder.

    Returns:
        The folders of the steps' label maps.

    Raises:
        AdvCAMError: seeds or saliency maps are missing, a folder was made with other settings (the difference is told),
            or some images could not be done; then all others are.

    Example:
        >>> settings = RefineSettings(crf=("seeds",), saliency="VOC2012/saliency")  # doctest: +SKIP
        >>> print(refine(settings, seed_store(Path("run")), data, Path("run/irn")))  # doctest: +SKIP
    """
    begin = time.monotonic()
    check_seeds(seeds, data)
    saliency = None if settings.saliency is None else _saliency(settings.saliency, data)
    steps: dict[str, Path] = {}
    if "seeds" in settings.crf:
        steps["seeds_crf"] = _run(_seeds_crf(settings, seeds, data, out), settings, data)
    METHODS[settings.method](settings, seeds, data, out)
    final = steps["masks"] = out / "masks"
    wait_for_ranks(final, data)
    if "masks" in settings.crf:
        final = steps["masks_crf"] = _run(_masks_crf(settings, final, seeds, data, out), settings, data)
    if saliency is not None:
        stage = _saliency_rule(settings, saliency, final, data, out)
        final = steps["masks_saliency"] = _run(stage, settings, data)
    return RefineSummary(steps, final, len(data.samples), time.monotonic() - begin)


def _run(
    stage: LabelStage[Any],
    settings: RefineSettings,
    data: SegmentationData,
) -> Path:
    run_stage(stage, data, workers=settings.workers, overwrite=settings.overwrite)
    wait_for_ranks(stage.folder, data)
    return stage.folder


def _seeds_crf(
    settings: RefineSettings, seeds: MapReader, data: SegmentationData, out: Path
) -> LabelStage[SeededImage]:
    """Table I's +CRF: the seeds, cut at a threshold, and the CRF among the background and the image's classes."""
    device = choose_device(settings.device, shard_of_launch().local)

    def make(read: SeededImage) -> Tensor:
        labels = threshold_maps(read.maps.high_res, read.maps.classes, settings.crf_threshold)
        return _crf(read.pixels, labels, read.maps.classes, settings, device)

    config = {"recipe": settings.crf_recipe, "threshold": settings.crf_threshold}
    return seeded_stage("seeds after the CRF", out / "seeds_crf", config, seeds, data, make)


def _masks_crf(
    settings: RefineSettings, masks: Path, seeds: MapReader, data: SegmentationData, out: Path
) -> LabelStage[tuple[SeededImage, Tensor]]:
    """The masks after the CRF among the background and the image's classes."""
    device = choose_device(settings.device, shard_of_launch().local)

    def read(sample: Sample) -> tuple[SeededImage, Tensor]:
        image = read_seeded(seeds, sample)
        return image, read_mask(mask_path(masks, sample.id), len(data.classes), image.maps.size)

    def make(read: tuple[SeededImage, Tensor]) -> Tensor:
        image, labels = read
        return _crf(image.pixels, labels, image.maps.classes, settings, device)

    config = {"recipe": settings.crf_recipe, "masks": folder_digest(masks), "data": data.name}
    return LabelStage("masks after the CRF", out / "masks_crf", config, read, make)


def _crf(pixels: Tensor, labels: Tensor, classes: tuple[int, ...], settings: RefineSettings, device: Any) -> Tensor:
    crf = DenseCRF(pixels[None].to(device), settings.crf_recipe)
    return refine_labels(crf, labels[None].to(device), (0, *(k + 1 for k in classes)))[0]


def _saliency(folder: str | Path, data: SegmentationData) -> SaliencyFolder:
    saliency = SaliencyFolder(folder)
    missing = [sample for sample in data.samples if saliency.find(sample.id) is None]
    if missing:
        raise AdvCAMError(
            f"saliency maps of {len(missing)} of {len(data.samples)} images are missing in {folder}, e.g. of "
            f"{missing[0].id}; add them, or refine without saliency"
        )
    return saliency


def _saliency_rule(
    settings: RefineSettings, saliency: SaliencyFolder, masks: Path, data: SegmentationData, out: Path
) -> LabelStage[tuple[Tensor, Tensor]]:
    """The masks with 255 where they and the saliency maps disagree."""

    def read(sample: Sample) -> tuple[Tensor, Tensor]:
        labels = read_mask(mask_path(masks, sample.id), len(data.classes))
        return labels, saliency(sample, (labels.shape[0], labels.shape[1]))

    def make(read: tuple[Tensor, Tensor]) -> Tensor:
        return ambiguous(*read, settings.saliency_threshold)

    config = {
        "saliency": Path(settings.saliency or "").resolve().as_posix(),
        "maps": saliency.digest(sample.id for sample in data.samples),
        "threshold": settings.saliency_threshold,
        "masks": folder_digest(masks),
        "data": data.name,
    }
    return LabelStage("masks by the saliency rule", out / "masks_saliency", config, read, make)
