"""How seeds are refined by IRN: what a user chooses in, checked, out; AdvCAM's, IRN's and RIB's choices by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advcam_attr.engine.fit import Precision
from advcam_attr.engine.optimiser import RELEASED_MOMENTUM
from advcam_attr.networks.irnet import IRNet, irnet
from advcam_attr.networks.irnet_file import load_irnet
from advcam_attr.networks.resnet_cam import IRN_BACKBONE
from advcam_attr.refine.confident import THRESHOLDS
from advcam_attr.refine.crf import RECIPES
from advcam_attr.refine.irn import TRAINING_RADIUS, WalkRecipe
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class IRNSettings:
    """How seeds are refined by IRN. The defaults are AdvCAM's released code's, whose training is IRN's.

    Attributes:
        foreground: 0.35 (IRN: 0.30); what a map must exceed to be surely of its class.
        background: 0.15 (IRN: 0.05); where no map exceeds it, all is surely background.
        crf: the recipe of the CRF that confident labels go through.
        walk: how the maps walk; their exponent is 1.5 (IRN: 1).
        backbone: ``torchvision/resnet50``, or ``timm/NAME``.
        model_args, checkpoint, random_weights, mean, std: of the backbone; see `advcam_attr.networks.irnet.irnet`.
        trained: a file of IRN's net that is trained already, ours or its authors'; then none is trained.
        radius: 10 cells, of pairs in training.
        epochs: 3; the rest of an epoch that fills no batch is dropped.
        batch: 32 images an update, whatever the number of ranks.
        crop: 512 pixels, the side of the square that is cut or padded.
        scales: 0.5 to 1.5, the range of the random factor by which images are resized before that.
        edge_lr: 0.1, of the edge branch.
        displacement_lr: 1.0, of the displacement branch, which masks do not depend on.
        weight_decay: 1e-4.
        momentum: 1e-4. The released optimiser passes the weight decay in the place of the momentum, and the learning
            rates fit that; with 0.9 they would be about ten times too high.
        power: 0.9, of the poly schedule.
        precision: ``float32``; ``bfloat16`` and ``float16`` (GPU only) are autocast, and not in IRN.
        seed: of the branches' weights, of order and augmentation.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        pad_to: 512 pixels, to which smaller images are padded, right and below, before the net sees them.
        workers: processes that read images in training, threads elsewhere; 0 reads them in between.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: make labels and masks anew, whatever is there; a training with other settings makes way.
    """

    foreground: float = THRESHOLDS["advcam"][0]
    background: float = THRESHOLDS["advcam"][1]
    crf: str = "irn"
    walk: WalkRecipe = WalkRecipe()
    backbone: str = IRN_BACKBONE
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    trained: str | Path | None = None
    radius: int = TRAINING_RADIUS
    epochs: int = 3
    batch: int = 32
    crop: int = 512
    scales: tuple[float, float] = (0.5, 1.5)
    edge_lr: float = 0.1
    displacement_lr: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = RELEASED_MOMENTUM
    power: float = 0.9
    precision: Precision = "float32"
    seed: int = 0
    checkpoint_every: int = 200
    pad_to: int = 512
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        lookup(self.crf, RECIPES, "CRF recipe")
        for name in ("epochs", "batch", "checkpoint_every", "pad_to"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"irn: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("edge_lr", "displacement_lr", "weight_decay", "momentum", "power", "workers"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"irn: {name} must be a number that is not negative, got {getattr(self, name)}")
        if not 0 <= self.background <= self.foreground <= 1:
            raise AdvCAMError(
                f"irn: the background threshold {self.background} must lie between 0 and the foreground's, which is "
                f"{self.foreground} and at most 1"
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

    def make_net(self) -> IRNet:
        """IRN's net: the trained one, or one to be trained.

        Raises:
            AdvCAMError: it cannot be made; see `irnet` and `load_irnet`.
        """
        if self.trained is not None:
            return load_irnet(self.trained)[0]
        return irnet(
            self.backbone,
            model_args=self.model_args,
            checkpoint=self.checkpoint,
            random_weights=self.random_weights,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
        )


def _named(name: str, exponent: float, background: float) -> IRNSettings:
    foreground, low = THRESHOLDS[name]
    return IRNSettings(foreground, low, walk=WalkRecipe(exponent=exponent, background=background))


#: By whose code they are. AdvCAM's thresholds for COCO were not released; RIB's are the nearest that are known.
SETTINGS: dict[str, IRNSettings] = {
    "advcam": _named("advcam", 1.5, 0.25),
    "irn": _named("irn", 1.0, 0.25),
    "rib": _named("rib", 1.3, 0.27),
    "rib_coco": _named("rib", 1.3, 0.22),
}
