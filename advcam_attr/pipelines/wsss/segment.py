"""Images and a folder of pseudo masks in; a trained segmentation net, and its label maps of other images, out.

In the output folder: ``deeplab/`` (the training and its net), ``predictions/<split>/`` (a palette PNG an image) and
``predictions/<split>_crf/`` (the same after the CRF). All stages go on where they stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.images import normalised, read_rgb, to_bytes
from advcam_attr.data.labels import few
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.transforms import SEGMENTATION_SCALES, SegmentationTrain
from advcam_attr.files import to_json
from advcam_attr.networks.backbone import Backbone, StrideMode
from advcam_attr.networks.cam_net import UnknownClassError
from advcam_attr.networks.deeplab import DEEPLAB, DeepLab, MultiScale, deeplab
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.networks.resnet101 import RESNET101, StrideIn
from advcam_attr.pipelines.wsss.pseudo_masks import MaskedImages, look_at_masks
from advcam_attr.refine.crf import CRF_RECIPES, DenseCRF, unary_from_logits
from advcam_attr.registry import lookup
from advcam_attr.runs.provenance import fingerprint, net_config
from advcam_attr.runs.runtime import Autocast, Runtime
from advcam_attr.runs.sharding import Shard, choose_device, shard_of, shard_of_launch
from advcam_attr.runs.stage import LabelStage, run_stage, wait_for_ranks
from advcam_attr.training.fit import Group, Optimizer
from advcam_attr.training.losses.segmentation import SEGMENTATION_LOSSES, summed_over_grids
from advcam_attr.training.train import TrainingTask, as_found, train
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)


#: The net's folder in the output folder, and its file in there.
FOLDER, WEIGHTS = "deeplab", "deeplab.safetensors"

#: Settings that a training depends on, besides the net.
_TRAINING = ("steps", "batch", "grad_accum", "crop", "scales", "loss", "lr", "weight_decay", "momentum", "power",
             "lr_update_every", "ema_decay", "autocast", "seed")  # fmt: skip


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

    Raises:
        AdvCAMError: as `train_segmentation` and `predict`.

    Example:
        >>> data, val = read_voc("VOCdevkit", "train_aug"), read_voc("VOCdevkit", "val")  # doctest: +SKIP
        >>> segment(SETTINGS["voc"], data, Path("run/irn/masks"), [val], Path("run/net"))  # doctest: +SKIP
    """
    net = trained_net(settings, data, masks, out)
    made: dict[str, Path] = {}
    for test in tests:
        for recipe in recipes_of(settings):
            folder = predict(dataclasses.replace(settings, crf=recipe), net, test, out)
            made[folder.name] = folder
    return SegmentationSummary(Path(settings.trained or out / FOLDER / WEIGHTS), made)


def trained_net(
    settings: SegmentationSettings,
    data: SegmentationData,
    masks: Path,
    out: Path,
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
    return train_segmentation(settings, net, data, masks, out)


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
) -> DeepLab:
    """Train a net on the masks of a folder, or go on with a training that was interrupted.

    Killed at any moment, a training on the CPU ends with the same bits. Masks that are void alone are left out.

    Args:
        settings: how.
        net: with a new pyramid; trained in place.
        data: the images; their true masks are not read.
        masks: the folder of the masks, ``<id>.png``.
        out: the folder; the net is ``out/deeplab/deeplab.safetensors``.

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
        logger.info(f"{len(found.void)} of {len(data.samples)} masks are void alone and left out: {few(found.void)}")
    transform = SegmentationTrain(s.crop, s.scales, net.mean, net.std)
    task = TrainingTask(
        name="segmentation net",
        net=many,
        items=MaskedImages(found, len(data.classes), transform),
        loss=summed_over_grids(SEGMENTATION_LOSSES[s.loss]),
        groups=_groups(net, s),
        optimizer=Optimizer(s.lr, None, s.weight_decay, s.momentum, s.power, lr_update_every=s.lr_update_every),
        epochs=0,
        steps=s.steps,
        batch=s.batch,
        grad_accum=s.grad_accum,
        ema_decay=s.ema_decay,
        checkpoint_every=s.checkpoint_every,
        runtime=Runtime(s.device, s.workers, s.autocast, seed=s.seed, overwrite=s.overwrite),
        depends_on=to_json(
            {
                **{name: getattr(s, name) for name in _TRAINING},
                **net_config(net, net.spec),
                "data": f"{data.name} {data.split}",
                "images": fingerprint(data),
                "masks": found.digest,
            }
        ),
        save=lambda path: save_net(path, net, data.classes),
        file=WEIGHTS,
    )
    return load_net(train(task, out / FOLDER), DEEPLAB)[0]


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
        run_stage(stage, data, workers=s.workers, overwrite=s.overwrite, shard=shard)
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


@dataclass(frozen=True)
class SegmentationSettings:
    """How a segmentation net is trained and tested. The defaults are AdvCAM's for VOC (the authors' issue 9) and, where
    they say nothing, deeplab-pytorch's, which they trained with.

    Attributes:
        backbone: ResNet-101; see `advcam_attr.networks.deeplab.deeplab`, as for the next ones.
        model_args, checkpoint, random_weights, mean, std: of the backbone; ImageNet weights by default, as AdvCAM.
        stride: 8, the output stride.
        stride_in: ``"1x1"`` or ``"3x3"``, by default as the weights were trained.
        stride_mode: how a timm backbone's stride is lowered.
        rates: 6, 12, 18 and 24, of the pyramid.
        msc: 0.5 and 0.75, the scales besides 1 at which the net sees each image; none for one scale.
        train_from: the module of the backbone from which on weights are trained; ``"aspp"`` trains the pyramid alone,
            and None all, as there.
        class_map: a JSON file that says which classes of the backbone's own classifier depict the data's; the pyramid
            starts from their weights (`advcam_attr.data.class_names`). None starts from random ones, as there.
        class_offset: is added to the file's classes; 1 for backbones whose class 0 is the background.
        trained: a file of a trained net; then none is trained.
        steps: 30000 updates (deeplab-pytorch: 20000).
        batch: 10 images an update, whatever the number of ranks. ("Batch 10" may mean 5 × 2 or 10 × 2 there.)
        grad_accum: in how many parts a batch goes through the net, to save memory; their gradients are averaged.
        crop: 321 pixels (COCO: 481).
        scales: 0.5 to 2 by 0.25 (deeplab-pytorch: 0.5 to 1.5), of which one is drawn for each image.
        loss: ``"balanced"``, AdvCAM's class-balanced cross-entropy, or ``"cross_entropy"``, deeplab-pytorch's.
        lr: 2.5e-4 of the backbone; the pyramid's weights learn 10 and its biases 20 times as fast.
        weight_decay: 5e-4, of all but the pyramid's biases.
        momentum: 0.9.
        power: 0.9, of the poly schedule.
        lr_update_every: 10 steps, after which learning rates follow the schedule.
        ema_decay: decay of an exponential moving average of the weights, which is kept then; None for none, as there.
        autocast: precision of the forward pass; None for float32 as in deeplab-pytorch.
        seed: of the pyramid's weights, of order and augmentation.
        checkpoint_every: steps between two checkpoints.
        test_scales: 1, of the whole image in testing, whose logits are averaged. (MSC is within each of them.)
        test_flip: False; average over the mirror image too.
        crf: the recipe of the CRF that predictions go through once more, ``"deeplab"``; None leaves it out.
        workers: processes that read images in training, threads elsewhere.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: a training with other settings makes way, and predictions are made anew.
    """

    backbone: str = RESNET101
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    stride: int = 8
    stride_in: StrideIn | None = None
    stride_mode: StrideMode = "dilation"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    msc: tuple[float, ...] = (0.5, 0.75)
    train_from: str | None = None
    class_map: str | Path | None = None
    class_offset: int = 0
    trained: str | Path | None = None
    steps: int = 30000
    batch: int = 10
    grad_accum: int = 1
    crop: int = 321
    scales: tuple[float, ...] = SEGMENTATION_SCALES
    loss: str = "balanced"
    lr: float = 2.5e-4
    weight_decay: float = 5e-4
    momentum: float = 0.9
    power: float = 0.9
    lr_update_every: int = 10
    ema_decay: float | None = None
    autocast: Autocast | None = None
    seed: int = 0
    checkpoint_every: int = 1000
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    crf: str | None = "deeplab"
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and choices that do not go together.

        Raises:
            AdvCAMError: with what would do.
        """
        for name in ("steps", "batch", "grad_accum", "crop", "lr_update_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"segmentation: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "weight_decay", "momentum", "power", "workers", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"segmentation: {name} must not be negative, got {getattr(self, name)}")
        for name in ("scales", "test_scales"):
            if not getattr(self, name) or not all(0 < scale <= 16 for scale in getattr(self, name)):
                raise AdvCAMError(f"segmentation: {name} must lie between 0 and 16, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise AdvCAMError(f"segmentation: ema_decay must lie in [0, 1), got {self.ema_decay}; 0.999 is usual")
        if self.class_map is None and self.class_offset:
            raise AdvCAMError(
                f"segmentation: class_offset {self.class_offset} has no file to go with: give class_map too"
            )
        if self.class_map is not None and self.trained is not None:
            raise AdvCAMError(
                "segmentation: class_map is the start of a training, and trained needs none: give one of them"
            )
        lookup(self.loss, SEGMENTATION_LOSSES, "loss")
        if self.crf is not None:
            lookup(self.crf, CRF_RECIPES, "CRF recipe")

    def make_net(self, classes: Sequence[str]) -> DeepLab:
        """The net: the trained one, or one to be trained.

        Args:
            classes: the names of the foreground's.

        Raises:
            AdvCAMError: it cannot be made, or the trained one has other classes.
        """
        if self.trained is None:
            class_map = None
            if self.class_map is not None:
                found = read_class_map(self.class_map, classes, self.class_offset)
                class_map = {k + 1: depicting for k, depicting in found.items()}
            backbone = Backbone(
                self.backbone,
                self.model_args,
                self.checkpoint,
                self.random_weights,
                self.stride,
                self.stride_mode,
                self.train_from,
                self.mean,
                self.std,
            )
            try:
                return deeplab(
                    backbone, len(classes) + 1, stride_in=self.stride_in, rates=self.rates, scales=self.msc,
                    seed=self.seed, class_map=class_map,
                )  # fmt: skip
            except UnknownClassError as error:
                raise AdvCAMError(
                    f"{error}; look at class_map ({self.class_map}) and class_offset ({self.class_offset})"
                ) from error
        net, _ = load_net(self.trained, DEEPLAB)
        if net.spec.num_labels != len(classes) + 1:
            raise AdvCAMError(
                f"{self.trained} tells {net.spec.num_labels - 1} classes apart; the data has {len(classes)}"
            )
        return net


#: By data set. AdvCAM tells of COCO that it follows DeepLab's default settings; steps, batch and rate are those of
#: LPCAM, a follow-up that trains the same net on COCO, and the crop is that of RIB's configuration.
SETTINGS: dict[str, SegmentationSettings] = {
    "voc": SegmentationSettings(),
    "coco": SegmentationSettings(
        steps=100000, batch=20, grad_accum=2, crop=481, lr=2e-4, loss="cross_entropy", checkpoint_every=2000
    ),
}
