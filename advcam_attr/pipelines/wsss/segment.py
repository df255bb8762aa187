"""Training of a segmentation net on pseudo masks, and its predictions.

In the output folder: ``deeplab/`` (the training and its net), ``predictions/<split>/`` (a palette PNG an image) and
``predictions/<split>_crf/`` (the same after a dense CRF). All resume where they were interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.images import normalised
from advcam_attr.data.labels import few
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import SegmentationTrain
from advcam_attr.networks.cam_net import UnknownClassError
from advcam_attr.networks.deeplab import DEEPLAB, DeepLab, MultiScale, deeplab
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.pipelines.predictions import write_label_maps
from advcam_attr.pipelines.training_report import mask_training_config
from advcam_attr.pipelines.wsss.mask_config import SegmentationConfig
from advcam_attr.pipelines.wsss.pseudo_masks import MaskedImages, check_masks
from advcam_attr.runs.provenance import net_config
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard, shard_of, shard_of_launch
from advcam_attr.runs.stage import wait_for_ranks
from advcam_attr.training.fit import Group
from advcam_attr.training.losses.segmentation import SEGMENTATION_LOSSES, summed_over_grids
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.training.train import TrainingTask, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: The net's folder in the output folder, and its file in there.
FOLDER, WEIGHTS = "deeplab", "deeplab.safetensors"

#: Settings that a training depends on, besides the net.
_TRAINING = ("steps", "batch", "grad_accum", "crop", "scales", "loss", "optimizer", "ema_decay")

#: By data set. AdvCAM's settings for COCO are not known beyond "DeepLab's default settings"; steps, batch and rate are
#: those of LPCAM, a follow-up that trains the same net on COCO, and the crop is that of RIB's configuration.
SETTINGS: dict[str, SegmentationConfig] = {
    "voc": SegmentationConfig(),
    "coco": SegmentationConfig(
        steps=100000,
        batch=20,
        grad_accum=2,
        crop=481,
        optimizer=Optimizer(2e-4, weight_decay=5e-4, lr_update_every=10),
        loss="cross_entropy",
        checkpoint_every=2000,
    ),
}


def make_net(config: SegmentationConfig, classes: Sequence[str], seed: int = 0) -> DeepLab:
    """Return the trained net that a configuration names, or one to train, of these foreground classes."""
    if config.trained is not None:
        net, _ = load_net(config.trained, DEEPLAB)
        if net.spec.num_labels != len(classes) + 1:
            raise AdvCAMError(f"{config.trained} has {net.spec.num_labels - 1} classes; the data has {len(classes)}")
        return net
    class_map = None
    if config.class_map is not None:
        found = read_class_map(config.class_map, classes, config.class_offset)
        class_map = {k + 1: depicting for k, depicting in found.items()}
    try:
        return deeplab(
            config.backbone,
            len(classes) + 1,
            stride_in=config.stride_in,
            rates=config.rates,
            scales=config.msc,
            seed=seed,
            class_map=class_map,
        )
    except UnknownClassError as error:
        raise AdvCAMError(
            f"{error}; check class_map ({config.class_map}) and class_offset ({config.class_offset})"
        ) from error


def segment(
    config: SegmentationConfig,
    data: SegmentationData,
    masks: Path,
    tests: Sequence[SegmentationData],
    out: Path,
    runtime: Runtime = Runtime(),
) -> dict[str, Path]:
    """Train a segmentation net on pseudo masks, and predict the masks of other splits.

    Under ``torchrun`` or ``srun``, all ranks share each batch, and then the images; they need to see the same folder.
    In a SLURM array the training is one job's, and predictions are shared.

    Args:
        config: with ``config.trained``, nothing is trained.
        data: the images of the masks; their true masks are not read.
        masks: folder of the masks, ``<id>.png``.
        tests: splits to predict.

    Returns:
        The folder of predictions of each split and, as ``<split>_crf``, of those after the CRF.

    Raises:
        AdvCAMError: Masks are missing or cannot be used, a folder holds results of other settings, there are too few
            images, the loss is not finite, or some images failed; all others are done then.
    """
    net = trained_net(config, data, masks, out, runtime)
    folders = [predict(config, net, test, out, runtime, crf=crf) for test in tests for crf in config.crfs]
    return {folder.name: folder for folder in folders}


def trained_net(
    config: SegmentationConfig, data: SegmentationData, masks: Path, out: Path, runtime: Runtime
) -> DeepLab:
    """Return the net of ``config.trained``, or one that is trained on masks as `train_segmentation` does."""
    net = make_net(config, data.classes, runtime.seed)
    if config.trained is not None:
        return net
    if shard_of().world > shard_of_launch().world and not (out / FOLDER / WEIGHTS).is_file():
        raise AdvCAMError("a net is trained in one job: run this once outside of the SLURM array, then again in it")
    return train_segmentation(config, net, data, masks, out, runtime)


def predictions_folder(out: Path, split: str, crf: str | None) -> Path:
    return out / "predictions" / (f"{split}_crf" if crf else split)


def train_segmentation(
    config: SegmentationConfig,
    net: DeepLab,
    data: SegmentationData,
    masks: Path,
    out: Path,
    runtime: Runtime = Runtime(),
) -> DeepLab:
    """Train a net in place on the masks of a folder, or resume its training.

    Masks that are void throughout are left out. On the CPU, a resumed training ends with the same bits.

    Returns:
        The net as saved, ``out/deeplab/deeplab.safetensors``, in eval mode.
    """
    _check_classes(net, data)
    checked = check_masks(masks, data, runtime.workers)
    if checked.void:
        logger.info(
            f"{len(checked.void)} of {len(data.samples)} masks are void throughout, left out: {few(checked.void)}"
        )
    transform = SegmentationTrain(config.crop, config.scales, net.mean, net.std)
    task = TrainingTask(
        name="segmentation net",
        net=MultiScale(net),
        items=MaskedImages(checked, len(data.classes), transform),
        loss=summed_over_grids(SEGMENTATION_LOSSES[config.loss]),
        groups=_groups(net, config.optimizer),
        optimizer=config.optimizer,
        steps=config.steps,
        batch=config.batch,
        grad_accum=config.grad_accum,
        ema_decay=config.ema_decay,
        checkpoint_every=config.checkpoint_every,
        runtime=runtime,
        depends_on=mask_training_config(config, _TRAINING, net, runtime, data, masks=checked.digest),
        save=lambda path: save_net(path, net, data.classes),
        file=WEIGHTS,
    )
    return load_net(train(task, out / FOLDER), DEEPLAB)[0]


def _check_classes(net: DeepLab, data: SegmentationData) -> None:
    if net.spec.num_labels != len(data.classes) + 1:
        raise AdvCAMError(f"the net has {net.spec.num_labels - 1} classes; {data.name} has {len(data.classes)}")


def _groups(net: DeepLab, optimizer: Optimizer) -> tuple[Group, ...]:
    """deeplab-pytorch's groups: the backbone without its norms, and the pyramid's weights and biases."""
    weights, biases = (
        [p for name, p in net.aspp.named_parameters() if name.endswith(part)] for part in ("weight", "bias")
    )
    return (
        Group("backbone", net.trunk.parameters(), optimizer.lr, optimizer.weight_decay),
        Group("pyramid", weights, 10 * optimizer.lr, optimizer.weight_decay),
        Group("pyramid_biases", biases, 20 * optimizer.lr, 0.0),
    )


def predict(
    config: SegmentationConfig,
    net: DeepLab,
    data: SegmentationData,
    out: Path,
    runtime: Runtime = Runtime(),
    *,
    crf: str | None = None,
    shard: Shard | None = None,
) -> Path:
    """Write the predictions of a split to ``out/predictions/<split>/<id>.png``, from whole images.

    Processes of one launch wait for each other.

    Args:
        config: test scales and flip.
        net: trained; its mode and device are restored.
        crf: recipe of a CRF; the folder is ``<split>_crf`` then.
        shard: share of the images; None asks the environment (``torchrun``, SLURM).

    Returns:
        The folder of the predictions.
    """
    _check_classes(net, data)
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: check its list")
    shard = shard_of() if shard is None else shard
    many, folder = MultiScale(net), predictions_folder(out, data.split, crf)
    about = {"scales": config.test_scales, "flip": config.test_flip, "data": data.name, **net_config(net, net.spec)}
    scores = partial(segmentation_logits, many, scales=config.test_scales, flip=config.test_flip)
    write_label_maps(many, scores, data, folder, about, runtime, shard, crf)
    if shard.world == shard_of_launch().world:
        wait_for_ranks(folder, data)
    return folder


@torch.no_grad()
def segmentation_logits(net: MultiScale, pixels: Tensor, scales: Sequence[float] = (1.0,), *, flip: bool) -> Tensor:
    """Return the logits of an image, averaged over scales and, with ``flip``, its mirror image.

    Args:
        net: in eval mode.
        pixels: ``(3, H, W)`` uint8, on the net's device.

    Returns:
        ``(K, H, W)``: each resized to the image (bilinear, half-pixel centres), then averaged.
    """
    image, size = normalised(pixels[None], net.net.mean, net.net.std), pixels.shape[1:]
    images = torch.cat([image, image.flip(-1)]) if flip else image
    total = torch.zeros(net.net.spec.num_labels, *size, device=pixels.device)
    for scale in scales:
        grid = [max(1, int(side * scale)) for side in size]
        scaled = images if scale == 1 else F.interpolate(images, grid, mode="bilinear", align_corners=False)
        logits = F.interpolate(net(scaled).float(), size, mode="bilinear", align_corners=False)
        total += logits[0] + (logits[1].flip(-1) if flip else 0)
    return total / (len(scales) * len(images))
