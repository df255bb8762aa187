"""Predictions of a trained CCT net: scores over scales and flips, label maps, mean IoU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.images import normalised, read_rgb, to_bytes
from advcam_attr.data.samples import SegmentationData
from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.networks.cct import CCT
from advcam_attr.pipelines.predictions import write_label_maps
from advcam_attr.pipelines.semi.config import SemiPredictConfig
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.runs.provenance import weights_digest
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard, shard_of
from advcam_attr.training.train import as_found
from advcam_attr.types import Sample


@torch.no_grad()
def padded_scores(net: CCT, images: Tensor) -> Tensor:
    """Return the scores, ``(N, K, H, W)``, of normalised images, padded by reflection to a multiple of the stride."""
    height, width = images.shape[2:]
    below, right = -height % net.stride, -width % net.stride
    mode = "reflect" if below < height and right < width else "replicate"  # reflection is limited by the size
    scores: Tensor = net(F.pad(images, (0, right, 0, below), mode=mode))
    return scores[:, :, :height, :width]


@torch.no_grad()
def multi_scale_scores(net: CCT, pixels: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
    """Return the mean over scales and flips of a net's scores, ``(K, H, W)``, for ``(3, H, W)`` uint8.

    The normalised image is resized bilinearly, as in the released code. There, an image is padded before it is resized,
    and scores are resized with aligned corners; here after, and by cells, which avoids shifts of less than a cell.
    """
    image = normalised(pixels[None], net.mean, net.std)
    size = image.shape[2:]
    total = image.new_zeros(())
    for scale in scales:
        scaled = [max(1, round(side * scale)) for side in size]
        resized = image if scaled == list(size) else F.interpolate(image, scaled, mode="bilinear")
        scores = padded_scores(net, torch.cat([resized, resized.flip(-1)]) if flip else resized)
        if flip:
            scores = (scores[:1] + scores[1:].flip(-1)) / 2
        total = total + F.interpolate(scores, size, mode="bilinear")
    return (total / len(scales))[0]


def validation_iou(net: CCT, data: SegmentationData, workers: int = 0) -> float:
    """Return the mean IoU of a net, at one scale, over the classes that occur; the net's mode is restored."""
    matrix = ConfusionMatrix(len(data.classes) + 1)
    device = next(net.parameters()).device
    with as_found(net):
        net.eval()
        read = prefetched(lambda sample: (_pixels(sample), data.mask(sample)), data.samples, workers=workers)
        for pixels, truth in read:
            image = normalised(pixels[None].to(device), net.mean, net.std)
            matrix.update(padded_scores(net, image)[0].argmax(0).cpu(), truth)
    return matrix.mean_iou()


def write_predictions(
    config: SemiPredictConfig,
    net: CCT,
    data: SegmentationData,
    folder: Path,
    runtime: Runtime,
    shard: Shard | None = None,
) -> None:
    """Predict the label maps ``folder/<id>.png``; existing ones are skipped, those of other settings raise."""
    write_label_maps(
        net,
        lambda pixels: multi_scale_scores(net, pixels, config.scales, config.flip),
        data,
        folder,
        {
            "net": weights_digest(net),
            "mean": net.mean,
            "std": net.std,
            "data": f"{data.name} {data.split}",
            "scales": config.scales,
            "flip": config.flip,
        },
        runtime,
        shard_of() if shard is None else shard,
        config.crf,
    )


def _pixels(sample: Sample) -> Tensor:
    return to_bytes(read_rgb(sample.image))
