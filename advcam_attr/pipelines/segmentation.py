"""Images and a folder of pseudo masks in; a trained segmentation net, and its label maps of other images, out.

In the output folder: ``deeplab/`` (the training and its net), ``predictions/<split>/`` (a palette PNG an image) and
``predictions/<split>_crf/`` (the same after the CRF). All stages go on where they stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.images import read_rgb
from advcam_attr.data.lists import few
from advcam_attr.data.pictures import normalised, to_bytes
from advcam_attr.data.segmentation import SegmentationData
from advcam_attr.data.segmentation_transforms import SegmentationTrain
from advcam_attr.engine.devices import choose_device
from advcam_attr.engine.optimiser import Group
from advcam_attr.engine.segmentation_losses import SEGMENTATION_LOSSES, summed_over_grids
from advcam_attr.engine.sharding import Shard, shard_of, shard_of_launch
from advcam_attr.networks.deeplab import DeepLab, MultiScale
from advcam_attr.networks.deeplab_file import load_deeplab, save_deeplab
from advcam_attr.pipelines.label_stage import LabelStage, Tell, listed, plain, run_stage, silent, wait_for_ranks
from advcam_attr.pipelines.pseudo_masks import MaskedImages, look_at_masks
from advcam_attr.pipelines.run_folder import net_config
from advcam_attr.pipelines.segmentation_settings import SegmentationSettings
from advcam_attr.pipelines.training import TrainingTask, as_found, train
from advcam_attr.refine.crf import DenseCRF, unary_from_logits
from advcam_attr.types import AdvCAMError

__all__ = ["SegmentationSettings", "predict", "segment", "segmentation_logits", "train_segmentation", "trained_net"]

#: The net's folder in the output folder, and its file in there.
FOLDER, WEIGHTS = "deeplab", "deeplab.safetensors"

#: Settings that a training depends on, besides the net.
_TRAINING = ("steps", "batch", "accumulate", "crop", "scales", "loss", "lr", "weight_decay", "momentum", "power",
             "refresh", "average", "precision", "seed")  # fmt: skip


@dataclass(frozen=True)
class SegmentationSummary:
    """What a run of `segment` has made.

    Attributes:
        weights: the net's file.
        predictions: the folder of label maps of each split and, as ``<split>_crf``, those after the CRF.
    """

    weights: Path
    predictions: Mapping[str, Path]


def segment(
    settings: SegmentationSettings,
    data: SegmentationData,
    masks: Path,
    tests: Sequence[SegmentationData],
    out: Path,
    tell: Tell = silent,
) -> SegmentationSummary:
    """Train a segmentation net on pseudo masks, and let it label the images of other splits.

    Under ``torchrun`` or ``srun``, all ranks share each batch, and then the images; they need to see the same folder.
    In a SLURM array the training is one job's, and predictions are shared.

    Args:
        settings: how; with ``settings.trained``, nothing is trained.
        data: the images that the masks are of; their true masks are not read.
        masks: the folder of the masks, ``<id>.png``.
        tests: what is labelled.
        out: the folder.
        tell: is told what is going on, line by line.

    Raises:
        AdvCAMError: as `train_segmentation` and `predict`.

    Example:
        >>> data, val = read_voc("VOCdevkit", "train_aug"), read_voc("VOCdevkit", "val")  # doctest: +SKIP
        >>> segment(SETTINGS["voc"], data, Path("run/irn/masks"), [val], Path("run/net"), print)  # doctest: +SKIP
    """
    net = trained_net(settings, data, masks, out, tell)
    made: dict[str, Path] = {}
    for test in tests:
        for recipe in recipes_of(settings):
            folder = predict(dataclasses.replace(settings, crf=recipe), net, test, out, tell)
            made[folder.name] = folder
    return SegmentationSummary(Path(settings.trained or out / FOLDER / WEIGHTS), made)


def trained_net(
    settings: SegmentationSettings, data: SegmentationData, masks: Path, out: Path, tell: Tell = silent
) -> DeepLab:
    """The net of ``settings.trained``; or one that is trained on masks, as `train_segmentation` does it.

    Raises:
        AdvCAMError: as `train_segmentation`, or it is not trained yet and this is a share of a SLURM array.
    """
    net = settings.make_net(data.classes)
    if settings.trained is not None:
        return net
    if shard_of().world > shard_of_launch().world and not (out / FOLDER / WEIGHTS).is_file():
        raise AdvCAMError("a net is trained in one job: start this once outside of the SLURM array, and then again")
    return train_segmentation(settings, net, data, masks, out, tell)


def recipes_of(settings: SegmentationSettings) -> tuple[str | None, ...]:
    """The recipes of the CRF that predictions are made with: without one, and with the settings' if there is one."""
    return (None, settings.crf) if settings.crf else (None,)


def predictions_folder(out: Path, split: str, crf: str | None) -> Path:
    """Where the label maps of a split are, or would be."""
    return out / "predictions" / (f"{split}_crf" if crf else split)


def train_segmentation(
    settings: SegmentationSettings,
    net: DeepLab,
    data: SegmentationData,
    masks: Path,
    out: Path,
    tell: Tell = silent,
) -> DeepLab:
    """Train a net on the masks of a folder, or go on with a training that was interrupted.

    Killed at any moment, a training on the CPU ends with the same bits. Masks that are void alone are left out.

    Args:
        settings: how.
        net: with a new pyramid; trained in place.
        data: the images; their true masks are not read.
        masks: the folder of the masks, ``<id>.png``.
        out: the folder; the net is ``out/deeplab/deeplab.safetensors``.
        tell: is told what is going on, on the first rank.

    Returns:
        The trained net, in eval mode, as it was saved.

    Raises:
        AdvCAMError: masks are missing or cannot be used, the folder holds another training (the difference is told),
            there are too few images, the loss is not finite, or a file cannot be written.
    """
    s, many = settings, MultiScale(net)
    _check_classes(net, data)
    found = look_at_masks(masks, data, s.workers)
    if found.void:
        tell(f"{len(found.void)} of {len(data.samples)} masks are void alone and left out: {few(found.void)}")
    transform = SegmentationTrain(s.crop, s.scales, net.mean, net.std)
    task = TrainingTask(
        name="segmentation net", net=many, items=MaskedImages(found, len(data.classes), transform),
        loss=summed_over_grids(SEGMENTATION_LOSSES[s.loss]), groups=_groups(net, s), momentum=s.momentum,
        epochs=0, steps=s.steps, batch=s.batch, accumulate=s.accumulate, power=s.power, refresh=s.refresh,
        average=s.average, precision=s.precision, seed=s.seed, workers=s.workers, checkpoint_every=s.checkpoint_every,
        device=s.device,
        depends_on=plain({
            **{name: getattr(s, name) for name in _TRAINING}, **net_config(net, net.spec),
            "data": f"{data.name} {data.split}", "images": listed(data), "masks": found.digest,
        }),
        save=lambda path: save_deeplab(net, path, data.classes), file=WEIGHTS, overwrite=s.overwrite,
    )  # fmt: skip
    return load_deeplab(train(task, out / FOLDER, tell))[0]


def _check_classes(net: DeepLab, data: SegmentationData) -> None:
    if net.spec.num_labels != len(data.classes) + 1:
        raise AdvCAMError(f"the net tells {net.spec.num_labels - 1} classes apart; {data.name} has {len(data.classes)}")


def _groups(net: DeepLab, s: SegmentationSettings) -> tuple[Group, ...]:
    """deeplab-pytorch's: the backbone's weights but its norms', and the pyramid's weights and biases."""
    pyramid = {part: [p for name, p in net.aspp.named_parameters() if name.endswith(part)] for part in
               ("weight", "bias")}  # fmt: skip
    return (
        Group("backbone", net.trunk.parameters(), s.lr, s.weight_decay),
        Group("pyramid", pyramid["weight"], 10 * s.lr, s.weight_decay),
        Group("pyramid_biases", pyramid["bias"], 20 * s.lr, 0.0),
    )


def predict(
    settings: SegmentationSettings,
    net: DeepLab,
    data: SegmentationData,
    out: Path,
    tell: Tell = silent,
    shard: Shard | None = None,
) -> Path:
    """Label the images of a split, and write the label maps to ``out/predictions/<split>/<id>.png``.

    Whole images go through the net. Label maps that are there are kept. An image that cannot be done does not stop the
    others. Processes of one launch wait for each other.

    Args:
        settings: the test scales, whether to flip, and the CRF; with a CRF the folder is ``<split>_crf``.
        net: trained; its mode and device are as before afterwards.
        data: the images.
        out: the folder.
        tell: is told what is going on.
        shard: which share is done here; None asks the environment (``torchrun``, SLURM).

    Returns:
        The folder of the label maps.

    Raises:
        AdvCAMError: the label maps there are of another net or settings, a file cannot be written, or, after all
            others were done, some images could not be.
    """
    s = settings
    _check_classes(net, data)
    if not data.samples:
        raise AdvCAMError(f"no images in {data.name} {data.split} at {data.root}: look at its list")
    shard = shard_of() if shard is None else shard
    device, many = choose_device(s.device, shard.local), MultiScale(net)
    folder = predictions_folder(out, data.split, s.crf)

    def make(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device)
        logits = segmentation_logits(many, pixels, s.test_scales, flip=s.test_flip)
        if s.crf:
            logits = DenseCRF(pixels[None], s.crf)(unary_from_logits(logits[None]))[0]
        return logits.argmax(0).to(torch.uint8).cpu()

    stage = LabelStage(
        "predictions after the CRF" if s.crf else "predictions",
        folder,
        {"scales": s.test_scales, "flip": s.test_flip, "crf": s.crf, "data": data.name, **net_config(net, net.spec)},
        lambda sample: to_bytes(read_rgb(sample.image)),
        make,
    )
    with as_found(many):
        many.to(device).eval()
        run_stage(stage, data, workers=s.workers, overwrite=s.overwrite, shard=shard, tell=tell)
    if shard.world == shard_of_launch().world:
        wait_for_ranks(folder, data)
    return folder


@torch.no_grad()
def segmentation_logits(net: MultiScale, pixels: Tensor, scales: Sequence[float] = (1.0,), *, flip: bool) -> Tensor:
    """The logits of an image, the mean over scales and, it may be, its mirror image.

    Args:
        net: in eval mode.
        pixels: ``(3, H, W)`` uint8, on the net's device.
        scales: factors of the image's size.
        flip: whether its mirror image is asked too.

    Returns:
        ``(K, H, W)``: each enlarged to the image (bilinear, half-pixel centres), then averaged.
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
