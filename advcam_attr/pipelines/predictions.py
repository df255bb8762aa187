"""Label maps of segmentation nets, with or without a dense CRF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advcam_attr.data.images import read_rgb, to_bytes
from advcam_attr.data.samples import SegmentationData
from advcam_attr.refine.crf import DenseCRF, unary_from_logits
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard
from advcam_attr.runs.stage import LabelStage, run_stage
from advcam_attr.training.train import as_found


def write_label_maps(
    net: nn.Module,
    scores: Callable[[Tensor], Tensor],
    data: SegmentationData,
    folder: Path,
    depends_on: Mapping[str, Any],
    runtime: Runtime,
    shard: Shard,
    crf: str | None = None,
) -> None:
    """Write the label maps ``folder/<id>.png``; existing ones are skipped, those of other settings raise.

    Args:
        net: its mode and device are restored.
        scores: maps pixels, ``(3, H, W)`` uint8 on the net's device, to the net's scores, ``(K, H, W)``.
        data: images.
        folder: of palette PNGs in VOC's layout.
        depends_on: what the scores depend on.
        runtime: device and workers.
        shard: of the images.
        crf: recipe of a dense CRF; None for none.
    """
    device = runtime.torch_device(shard)

    def make(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device)
        found = scores(pixels)
        if crf is not None:
            found = DenseCRF(pixels[None], crf)(unary_from_logits(found[None]))[0]
        return found.argmax(0).to(torch.uint8).cpu()

    what = "predictions" if crf is None else "predictions after the CRF"
    config = {**depends_on, "crf": crf}
    stage = LabelStage(what, folder, config, lambda sample: to_bytes(read_rgb(sample.image)), make)
    with as_found(net):
        net.to(device).eval()
        run_stage(stage, data, workers=runtime.workers, overwrite=runtime.overwrite, shard=shard)
