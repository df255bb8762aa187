"""Refinement of seeds into pseudo ground truth: dense CRF, IRN or PSA, saliency rule.

The steps of the paper's section 4.5 and Table I, each in a folder of its own:

- ``seeds_crf/``: the seeds after a dense CRF (Table I's column +CRF); not used further;
- ``masks/``: the seeds refined by IRN or PSA (Table I's mask column);
- ``masks_crf/``: the masks after the same CRF (not in the paper);
- ``masks_saliency/``: the last masks, void where a saliency map disagrees (after Table I, for training).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcam_attr.data.masks import SaliencyFolder, mask_path, read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.pipelines.checks import saliency_folder
from advcam_attr.pipelines.wsss.affinity import refine_by_affinity
from advcam_attr.pipelines.wsss.irn import IRN
from advcam_attr.pipelines.wsss.mask_config import RefineConfig
from advcam_attr.pipelines.wsss.psa import PSA
from advcam_attr.refine.crf import DenseCRF, refine_labels
from advcam_attr.refine.saliency import ambiguous
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.registry import lookup
from advcam_attr.runs.map_store import MapReader
from advcam_attr.runs.provenance import read_record
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import shard_of_launch
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

Method = Callable[[RefineConfig, MapReader, SegmentationData, Path, Runtime], None]

#: Refinement methods by name; each writes ``out/masks/<id>.png`` of all images.
METHODS: dict[str, Method] = {
    "irn": lambda config, seeds, data, out, runtime: refine_by_affinity(IRN(config.irn, runtime), seeds, data, out),
    "psa": lambda config, seeds, data, out, runtime: refine_by_affinity(PSA(config.psa, runtime), seeds, data, out),
}


def refine(
    config: RefineConfig, seeds: MapReader, data: SegmentationData, out: Path, runtime: Runtime = Runtime()
) -> dict[str, Path]:
    """Refine seeds into pseudo ground truth, or resume a refinement.

    Under ``torchrun`` or ``srun``, processes share every step. Masks are 8-bit palette PNGs as PASCAL VOC's: 0 the
    background, k + 1 class k, 255 void (after the saliency rule alone).

    Args:
        seeds: localization maps by image id, e.g. a `advcam_attr.runs.map_store.MapStore`.
        data: the images; their true masks are not read.

    Returns:
        The folder of each step's masks by its name, in order; the last is the pseudo ground truth.

    Raises:
        AdvCAMError: Seeds or saliency maps are missing, a folder was made with other settings, or some images failed;
            all others are done then.
    """
    method = lookup(config.method, METHODS, "refinement method")
    check_seeds(seeds, data)
    saliency = None if config.saliency is None else saliency_folder(config.saliency, data)
    device = runtime.torch_device(shard_of_launch())
    steps: dict[str, Path] = {}

    def run(stage: LabelStage[Any]) -> Path:
        run_stage(stage, data, workers=runtime.workers, overwrite=runtime.overwrite)
        wait_for_ranks(stage.folder, data)
        return stage.folder

    if "seeds" in config.crf:
        steps["seeds_crf"] = run(_seeds_crf(config, seeds, data, out, device))
    method(config, seeds, data, out, runtime)
    masks = steps["masks"] = out / "masks"
    wait_for_ranks(masks, data)
    if "masks" in config.crf:
        masks = steps["masks_crf"] = run(_masks_crf(config, masks, seeds, data, out, device))
    if saliency is not None:
        steps["masks_saliency"] = run(_saliency_rule(config, saliency, masks, data, out))
    return steps


def check_refined(config: RefineConfig, out: Path) -> None:
    """Raise if a folder has pseudo ground truth by another method than the configuration's, or further steps of it."""
    lookup(config.method, METHODS, "refinement method")
    method = _made_with(out / "masks", "method") or config.method
    if method != config.method:
        raise AdvCAMError(
            f"{out / 'masks'} is by {method}, but refine.method is {config.method}: give --refine.method {method}, or "
            "set it in the configuration"
        )
    steps = {
        "masks": "",
        "masks_crf": "--refine.crf '[masks]'",
        "masks_saliency": f"--refine.saliency {_made_with(out / 'masks_saliency', 'saliency') or 'DIR'}",
    }
    last = [step for step in steps if (out / step).is_dir()][-1:]
    if last and [*steps].index(last[0]) > [*steps].index(config.final_step):
        raise AdvCAMError(
            f"{out / last[0]} exists, but the settings end with {config.final_step}: give {steps[last[0]]}, set it in "
            "the configuration, or remove that folder"
        )


def _made_with(folder: Path, setting: str) -> str | None:
    record = read_record(record_path(folder))
    return None if record is None else record["settings"].get(setting)


def _seeds_crf(
    config: RefineConfig, seeds: MapReader, data: SegmentationData, out: Path, device: torch.device
) -> LabelStage[SeededImage]:
    def make(image: SeededImage) -> Tensor:
        labels = threshold_maps(image.maps.high_res, image.maps.classes, config.crf_threshold)
        return _crf(image, labels, config, device)

    depends_on = {"recipe": config.crf_recipe, "threshold": config.crf_threshold}
    return seeded_stage("seeds after the CRF", out / "seeds_crf", depends_on, seeds, data, make)


def _masks_crf(
    config: RefineConfig, masks: Path, seeds: MapReader, data: SegmentationData, out: Path, device: torch.device
) -> LabelStage[tuple[SeededImage, Tensor]]:
    def read(sample: Sample) -> tuple[SeededImage, Tensor]:
        image = read_seeded(seeds, sample)
        return image, read_mask(mask_path(masks, sample.id), len(data.classes), image.maps.size)

    def make(read: tuple[SeededImage, Tensor]) -> Tensor:
        return _crf(*read, config, device)

    depends_on = {"recipe": config.crf_recipe, "masks": folder_digest(masks), "data": data.name}
    return LabelStage("masks after the CRF", out / "masks_crf", depends_on, read, make)


def _crf(image: SeededImage, labels: Tensor, config: RefineConfig, device: torch.device) -> Tensor:
    crf = DenseCRF(image.pixels[None].to(device), config.crf_recipe)
    return refine_labels(crf, labels[None].to(device), (0, *(k + 1 for k in image.maps.classes)))[0]


def _saliency_rule(
    config: RefineConfig, saliency: SaliencyFolder, masks: Path, data: SegmentationData, out: Path
) -> LabelStage[tuple[Tensor, Tensor]]:
    def read(sample: Sample) -> tuple[Tensor, Tensor]:
        labels = read_mask(mask_path(masks, sample.id), len(data.classes))
        return labels, saliency(sample, (labels.shape[0], labels.shape[1]))

    def make(read: tuple[Tensor, Tensor]) -> Tensor:
        return ambiguous(*read, config.saliency_threshold)

    depends_on = {
        "saliency": Path(config.saliency or "").resolve().as_posix(),
        "maps": saliency.digest(sample.id for sample in data.samples),
        "threshold": config.saliency_threshold,
        "masks": folder_digest(masks),
        "data": data.name,
    }
    return LabelStage("masks by the saliency rule", out / "masks_saliency", depends_on, read, make)
