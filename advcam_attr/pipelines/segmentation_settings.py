"""How a segmentation net is trained and tested: what a user chooses in, checked, out; the paper's choices by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advcam_attr.data.known_classes import read_known_classes
from advcam_attr.data.segmentation_transforms import SCALES
from advcam_attr.engine.fit import Precision
from advcam_attr.engine.segmentation_losses import SEGMENTATION_LOSSES
from advcam_attr.networks.deeplab import DeepLab, deeplab
from advcam_attr.networks.deeplab_file import load_deeplab
from advcam_attr.networks.deeplab_trunk import RESNET101, StrideIn
from advcam_attr.networks.known_weights import UnknownClassError
from advcam_attr.networks.timm_trunk import Lowering
from advcam_attr.refine.crf import RECIPES
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class SegmentationSettings:
    """How a segmentation net is trained and tested. The defaults are AdvCAM's for VOC (the authors' issue 9) and, where
    they say nothing, deeplab-pytorch's, which they trained with.

    Attributes:
        backbone: ResNet-101; see `advcam_attr.networks.deeplab.deeplab`, as for the next ones.
        model_args, checkpoint, random_weights, mean, std: of the backbone; ImageNet weights by default, as AdvCAM.
        stride: 8, the output stride.
        stride_in: ``"1x1"`` or ``"3x3"``, by default as the weights were trained.
        lowered_by: how a timm backbone's stride is lowered.
        rates: 6, 12, 18 and 24, of the pyramid.
        msc: 0.5 and 0.75, the scales besides 1 at which the net sees each image; none for one scale.
        train_from: the module of the backbone from which on weights are trained; ``"aspp"`` trains the pyramid alone,
            and None all, as there.
        known: a JSON file that says which classes of the backbone's own classifier depict the data's; the pyramid
            starts from their weights (`advcam_attr.data.known_classes`). None starts from random ones, as there.
        known_offset: is added to the file's classes; 1 for backbones whose class 0 is the background.
        trained: a file of a trained net; then none is trained.
        steps: 30000 updates (deeplab-pytorch: 20000).
        batch: 10 images an update, whatever the number of ranks. ("Batch 10" may mean 5 × 2 or 10 × 2 there.)
        accumulate: in how many parts a batch goes through the net, to save memory; their gradients are averaged.
        crop: 321 pixels (COCO: 481).
        scales: 0.5 to 2 by 0.25 (deeplab-pytorch: 0.5 to 1.5), of which one is drawn for each image.
        loss: ``"balanced"``, AdvCAM's class-balanced cross-entropy, or ``"cross_entropy"``, deeplab-pytorch's.
        lr: 2.5e-4 of the backbone; the pyramid's weights learn 10 and its biases 20 times as fast.
        weight_decay: 5e-4, of all but the pyramid's biases.
        momentum: 0.9.
        power: 0.9, of the poly schedule.
        refresh: 10 steps, after which learning rates follow the schedule.
        average: decay of an exponential moving average of the weights, which is kept then; None for none, as there.
        precision: ``float32``; ``bfloat16`` and ``float16`` (GPU only) are autocast, and not in deeplab-pytorch.
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
    lowered_by: Lowering = "dilation"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    msc: tuple[float, ...] = (0.5, 0.75)
    train_from: str | None = None
    known: str | Path | None = None
    known_offset: int = 0
    trained: str | Path | None = None
    steps: int = 30000
    batch: int = 10
    accumulate: int = 1
    crop: int = 321
    scales: tuple[float, ...] = SCALES
    loss: str = "balanced"
    lr: float = 2.5e-4
    weight_decay: float = 5e-4
    momentum: float = 0.9
    power: float = 0.9
    refresh: int = 10
    average: float | None = None
    precision: Precision = "float32"
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
        for name in ("steps", "batch", "accumulate", "crop", "refresh", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"segmentation: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "weight_decay", "momentum", "power", "workers", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"segmentation: {name} must not be negative, got {getattr(self, name)}")
        for name in ("scales", "test_scales"):
            if not getattr(self, name) or not all(0 < scale <= 16 for scale in getattr(self, name)):
                raise AdvCAMError(f"segmentation: {name} must lie between 0 and 16, got {getattr(self, name)}")
        if self.average is not None and not 0 <= self.average < 1:
            raise AdvCAMError(f"segmentation: average must lie in [0, 1), got {self.average}; 0.999 is usual")
        if self.known is None and self.known_offset:
            raise AdvCAMError(f"segmentation: known_offset {self.known_offset} has no file to go with: give known too")
        if self.known is not None and self.trained is not None:
            raise AdvCAMError(
                "segmentation: known is the start of a training, and trained needs none: give one of them"
            )
        lookup(self.loss, SEGMENTATION_LOSSES, "loss")
        if self.crf is not None:
            lookup(self.crf, RECIPES, "CRF recipe")

    def make_net(self, classes: Sequence[str]) -> DeepLab:
        """The net: the trained one, or one to be trained.

        Args:
            classes: the names of the foreground's.

        Raises:
            AdvCAMError: it cannot be made, or the trained one has other classes.
        """
        if self.trained is None:
            known = None if self.known is None else read_known_classes(self.known, classes, self.known_offset)
            try:
                return deeplab(
                    self.backbone, len(classes) + 1, model_args=self.model_args, checkpoint=self.checkpoint,
                    random_weights=self.random_weights, stride=self.stride, stride_in=self.stride_in,
                    lowered_by=self.lowered_by, rates=self.rates, scales=self.msc, train_from=self.train_from,
                    mean=self.mean, std=self.std, seed=self.seed,
                    known=None if known is None else {k + 1: depicting for k, depicting in known.items()},
                )  # fmt: skip
            except UnknownClassError as error:
                raise AdvCAMError(
                    f"{error}; look at known ({self.known}) and known_offset ({self.known_offset})"
                ) from error
        net, _ = load_deeplab(self.trained)
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
        steps=100000, batch=20, accumulate=2, crop=481, lr=2e-4, loss="cross_entropy", checkpoint_every=2000
    ),
}
