"""A trained CCT net and photographs in; scores of their pixels, label maps, and their mean IoU, out."""

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
from advcam_attr.pipelines.semi.config import SemiPredictConfig
from advcam_attr.refine.crf import DenseCRF, unary_from_logits
from advcam_attr.runs.prefetch import prefetched
from advcam_attr.runs.provenance import weights_digest
from advcam_attr.runs.sharding import Shard, choose_device, shard_of
from advcam_attr.runs.stage import LabelStage, run_stage
from advcam_attr.training.train import as_found
from advcam_attr.types import Sample


@torch.no_grad()
def padded_scores(net: CCT, images: Tensor) -> Tensor:
    """A net's scores of images of any size, which are mirrored at the right and below up to a multiple of its stride.

    Args:
        net: in eval mode.
        images: normalised, ``(N, 3, H, W)``.

    Returns:
        ``(N, K, H, W)``.
    """
    height, width = images.shape[2:]
    below, right = -height % net.stride, -width % net.stride
    mode = "reflect" if below < height and right < width else "replicate"  # nothing can be mirrored beyond itself
    scores: Tensor = net(F.pad(images, (0, right, 0, below), mode=mode))
    return scores[:, :, :height, :width]


@torch.no_grad()
def multi_scale_scores(net: CCT, pixels: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
    """The mean over scales, and mirror images, of a net's scores at the photograph's size.

    The normalised photograph is resized bilinearly, as in the released code. There a photograph is padded before it is
    resized, and scores are resized by their corners; here after, and by their cells. Effect: shifts of less than a
    cell are gone.

    Args:
        net: in eval mode.
        pixels: ``(3, H, W)`` uint8, on the net's device.
        scales: factors of the size.
        flip: whether mirror images are seen too.

    Returns:
        ``(K, H, W)``.
    """
    image = normalised(pixels[None], net.mean, net.std)
    size = image.shape[2:]
    total = image.new_zeros(())
    for scale in scales:
        scaled = [max(1, round(side * scale)) for side in size]
        rows = image if scaled == list(size) else F.interpolate(image, scaled, mode="bilinear")
        scores = padded_scores(net, torch.cat([rows, rows.flip(-1)]) if flip else rows)
        if flip:
            scores = (scores[:1] + scores[1:].flip(-1)) / 2
        total = total + F.interpolate(scores, size, mode="bilinear")
    return (total / len(scales))[0]


def validation_iou(net: CCT, data: SegmentationData, workers: int = 0) -> float:
    """The mean IoU of a net over images with true masks, each seen once and whole.

    Args:
        net: its mode is as before afterwards.
        data: the images and masks; the classes that occur count.
        workers: threads that read ahead.

    Raises:
        AdvCAMError: an image or a mask cannot be read, or does not fit.
    """
    matrix = ConfusionMatrix(len(data.classes) + 1)
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    try:
        read = prefetched(lambda sample: (_pixels(sample), data.mask(sample)), data.samples, workers=workers)
        for pixels, truth in read:
            image = normalised(pixels[None].to(device), net.mean, net.std)
            matrix.update(padded_scores(net, image)[0].argmax(0).cpu(), truth)
    finally:
        net.train(training)
    return matrix.mean_iou()


def write_predictions(
    config: SemiPredictConfig,
    net: CCT,
    data: SegmentationData,
    folder: Path,
    shard: Shard | None = None,
) -> None:
    """Predict the label maps of all images, ``folder/<id>.png``; those that are there are kept.

    Args:
        config: how.
        net: trained; its mode and device are as before afterwards.
        data: the images; their true masks are not read.
        folder: of palette PNGs in VOC's layout.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).

    Raises:
        AdvCAMError: the predictions there were made with other settings, a file cannot be written, or, after all
            others were done, some images could not be.
    """
    shard = shard_of() if shard is None else shard
    device = choose_device(config.device, shard.local)

    def make(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device)
        scores = multi_scale_scores(net, pixels, config.scales, config.flip)
        if config.crf is not None:
            scores = DenseCRF(pixels[None], config.crf)(unary_from_logits(scores[None]))[0]
        return scores.argmax(0).to(torch.uint8)

    depends_on = {
        "net": weights_digest(net), "mean": net.mean, "std": net.std, "data": f"{data.name} {data.split}",
        "scales": config.scales, "flip": config.flip, "crf": config.crf,
    }  # fmt: skip
    stage = LabelStage("predictions", folder, depends_on, _pixels, make)
    with as_found(net):
        net.to(device).eval()
        run_stage(stage, data, workers=config.workers, overwrite=config.overwrite, shard=shard)


def _pixels(sample: Sample) -> Tensor:
    return to_bytes(read_rgb(sample.image))
