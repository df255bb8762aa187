"""Configuration of pseudo ground truth and of the segmentation nets that are trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.defaults import IRN_BACKBONE, RESNET38, RESNET101, StrideIn
from advcam_attr.refine.recipes import (
    ALPHAS,
    CRF_RECIPES,
    LABEL_THRESHOLDS,
    LARGEST_RADIUS,
    TRAINING_RADIUS,
    WalkRecipe,
)
from advcam_attr.registry import lookup
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError

#: PSA's optimizer passes the weight decay in place of the momentum, as IRN's does; its learning rate fits that.
PSA_MOMENTUM = 5e-4


@dataclass(frozen=True)
class IRNConfig:
    """Settings of IRN. The defaults are those of AdvCAM's released code, whose training is IRN's.

    Attributes:
        foreground: lowest map value of a sure class (IRN: 0.30).
        background: highest map value of sure background (IRN: 0.05).
        crf: recipe of the CRF of confident labels.
        walk: the random walk; IRN's exponent is 1.
        backbone: frozen; stride 16.
        trained: file of a trained net, ours or its authors'; None trains one.
        radius: of pairs in training, in cells of 4 pixels.
        epochs: passes over the images; an incomplete last batch is dropped.
        batch: images per update; of all ranks together.
        crop: training crop in pixels.
        scales: range of random scales before the crop.
        optimizer: ``lr`` is the edge branch's, ``head_lr`` the displacement branch's, which masks do not depend on.
        checkpoint_every: steps per checkpoint; also one after each epoch.
        pad_to: least side at inference, by padding, in pixels.
    """

    foreground: ClosedUnitInterval = LABEL_THRESHOLDS["advcam"][0]
    background: ClosedUnitInterval = LABEL_THRESHOLDS["advcam"][1]
    crf: str = "irn"
    walk: WalkRecipe = WalkRecipe()
    backbone: Backbone = Backbone(IRN_BACKBONE)
    trained: str | Path | None = None
    radius: PositiveInt = TRAINING_RADIUS
    epochs: PositiveInt = 3
    batch: PositiveInt = 32
    crop: PositiveInt = 512
    scales: tuple[float, float] = (0.5, 1.5)
    optimizer: Optimizer = Optimizer(0.1, 1.0, momentum=RELEASED_MOMENTUM)
    checkpoint_every: PositiveInt = 200
    pad_to: PositiveInt = 512

    def __post_init__(self) -> None:
        lookup(self.crf, CRF_RECIPES, "CRF recipe")
        if self.background > self.foreground:
            raise AdvCAMError(
                f"irn: the background threshold {self.background} must not exceed the foreground's, {self.foreground}"
            )
        least = 4 * (2 * self.radius - 1)
        if self.radius < 2 or self.crop % 16 or self.crop < least:
            raise AdvCAMError(
                f"irn: a crop of {self.crop} pixels does not fit radius {self.radius}; give a radius of at least 2 and "
                f"a crop that is a multiple of 16, from {-(-least // 16) * 16} on"
            )
        if self.pad_to % 16:
            raise AdvCAMError(f"irn: pad_to must be a multiple of 16, got {self.pad_to}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise AdvCAMError(f"irn: scales must be positive, the smaller first, got {self.scales}")


@dataclass(frozen=True)
class PSAConfig:
    """Settings of PSA. The defaults are those of its released code.

    Attributes:
        backbone: ``resnet38``, or ``timm/NAME``; stride 8 by default.
        trained: file of a trained affinity net; None trains one.
        width: of the head, and of ResNet-38.
        alphas: powers of the background's score for confident foreground and confident background.
        crf: recipe of the CRF of these scores.
        radius: of pairs in training and in the walk, in cells.
        epochs: passes over the images; an incomplete last batch is dropped.
        batch: images per update; of all ranks together.
        crop: training crop in pixels; images are not rescaled.
        optimizer: ``lr`` is the backbone's; its biases have twice as much, new layers ten times; biases do not decay.
        jitter: of brightness, contrast, saturation and hue.
        checkpoint_every: steps per checkpoint; also one after each epoch.
        alpha: power of the background's score in the walk.
        beta: power of affinities.
        steps: of the walk.
        small_grids: radius of the walk on small images; ``psa`` keeps it from 5 x 9 cells on, ``seam`` takes at most
            half of the smaller side.
    """

    backbone: Backbone = Backbone(RESNET38)
    trained: str | Path | None = None
    width: PositiveInt = 64
    alphas: tuple[float, float] = (ALPHAS[0], ALPHAS[1])
    crf: str = "psa"
    radius: PositiveInt = 5
    epochs: PositiveInt = 8
    batch: PositiveInt = 8
    crop: PositiveInt = 448
    optimizer: Optimizer = Optimizer(0.1, weight_decay=5e-4, momentum=PSA_MOMENTUM)
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.3, 0.3, 0.3, 0.1)
    checkpoint_every: PositiveInt = 200
    alpha: NonNegativeFloat = 16.0
    beta: NonNegativeFloat = 8.0
    steps: NonNegativeInt = 256
    small_grids: Literal["psa", "seam"] = "psa"

    def __post_init__(self) -> None:
        lookup(self.crf, CRF_RECIPES, "CRF recipe")
        low, high = self.alphas
        if not 0 < low <= high:
            raise AdvCAMError(f"psa: alphas must be positive, the smaller first, got {self.alphas}")
        if self.jitter[3] > 0.5:
            raise AdvCAMError(f"psa: the jitter of the hue must be at most 0.5, got {self.jitter[3]}")
        if not 2 <= self.radius <= LARGEST_RADIUS:
            raise AdvCAMError(f"psa: the radius must lie between 2 and {LARGEST_RADIUS} cells, got {self.radius}")


@dataclass(frozen=True)
class RefineConfig:
    """Settings of the refinement.

    Attributes:
        method: ``irn`` or ``psa``.
        irn: AdvCAM's by default; `advcam_attr.pipelines.wsss.irn.SETTINGS` has others.
        psa: PSA's by default; `advcam_attr.pipelines.wsss.psa.SETTINGS` has others.
        crf: CRF of seeds or masks, or of both; none by default.
        crf_threshold: background threshold; of seeds that pass the CRF ("0.3 or 0.35", the authors' issue 11).
        crf_recipe: CRF recipe; ``table1`` has deeplab-pytorch's numbers, and labels at p = 0.7 (not published).
        saliency: folder of saliency maps; for the rule of section 4.5; None for none.
        saliency_threshold: saliency threshold; above it a pixel is salient; not published.
    """

    method: str = "irn"
    irn: IRNConfig = IRNConfig()
    psa: PSAConfig = PSAConfig()
    crf: tuple[Literal["seeds", "masks"], ...] = ()
    crf_threshold: ClosedUnitInterval = 0.35
    crf_recipe: str = "table1"
    saliency: str | Path | None = None
    saliency_threshold: ClosedUnitInterval = 0.5

    def __post_init__(self) -> None:
        lookup(self.crf_recipe, CRF_RECIPES, "CRF recipe")

    @property
    def final_step(self) -> str:
        """The step whose masks segmentation nets are trained on."""
        if self.saliency is not None:
            return "masks_saliency"
        return "masks_crf" if "masks" in self.crf else "masks"


@dataclass(frozen=True)
class SegmentationConfig:
    """Settings of a segmentation net. The defaults are AdvCAM's for VOC (the authors' issue 9) and otherwise those of
    deeplab-pytorch, which they trained with.

    Attributes:
        backbone: with ImageNet weights, as AdvCAM; stride 8. ``train_from: aspp`` trains the pyramid alone.
        stride_in: strided convolution: ``"1x1"`` or ``"3x3"``; None as the weights were trained.
        rates: dilations; of the pyramid.
        msc: extra scales; the net sees each image at them and at 1.
        class_map: JSON map to the backbone's classes; the pyramid starts from the weights of its own classifier
            (`advcam_attr.data.class_names`); None starts from random weights.
        class_offset: added to the file's classes; 1 for backbones whose class 0 is the background.
        trained: file of a trained net; None trains one.
        steps: updates; deeplab-pytorch: 20000.
        batch: images per update; of all ranks together ("batch 10" may mean 5 × 2 or 10 × 2 in deeplab-pytorch).
        grad_accum: forward passes per batch; their gradients are averaged.
        crop: training crop in pixels; COCO: 481.
        scales: scales; one is drawn for each image (the authors' issue 9; deeplab-pytorch: 0.5 to 1.5).
        loss: training loss; ``"balanced"`` is AdvCAM's, by class; ``"cross_entropy"`` is deeplab-pytorch's.
        optimizer: ``lr`` is the backbone's; the pyramid's weights have 10 times as much, its biases 20 times, without
            decay.
        ema_decay: decay of a moving average of weights; exponential; the average is saved. None for none.
        checkpoint_every: steps per checkpoint.
        test_scales: test scales; of the whole image; logits are averaged.
        test_flip: average over the mirror image, too.
        crf: CRF of predictions; its recipe; predictions pass it in a second copy; None for none.
    """

    backbone: Backbone = Backbone(RESNET101, stride=8)
    stride_in: StrideIn | None = None
    rates: tuple[int, ...] = (6, 12, 18, 24)
    msc: tuple[float, ...] = (0.5, 0.75)
    class_map: str | Path | None = None
    class_offset: int = 0
    trained: str | Path | None = None
    steps: PositiveInt = 30000
    batch: PositiveInt = 10
    grad_accum: PositiveInt = 1
    crop: PositiveInt = 321
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    loss: Literal["balanced", "balanced_clamped", "cross_entropy"] = "balanced"
    optimizer: Optimizer = Optimizer(2.5e-4, weight_decay=5e-4, lr_update_every=10)
    ema_decay: float | None = None
    checkpoint_every: PositiveInt = 1000
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    crf: str | None = "deeplab"

    def __post_init__(self) -> None:
        for name in ("scales", "test_scales"):
            if not getattr(self, name) or not all(0 < scale <= 16 for scale in getattr(self, name)):
                raise AdvCAMError(f"segmentation: {name} must lie between 0 and 16, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise AdvCAMError(f"segmentation: ema_decay must lie in [0, 1), got {self.ema_decay}; 0.999 is usual")
        if self.class_map is None and self.class_offset:
            raise AdvCAMError(f"segmentation: class_offset {self.class_offset} has no effect without class_map")
        if self.class_map is not None and self.trained is not None:
            raise AdvCAMError("segmentation: class_map starts a training, and trained needs none: give one of them")
        if self.crf is not None:
            lookup(self.crf, CRF_RECIPES, "CRF recipe")

    @property
    def crfs(self) -> tuple[str | None, ...]:
        """The CRF recipes of the predictions: none, and ``crf`` if given."""
        return (None, self.crf) if self.crf else (None,)
