"""How seeds are refined by PSA: what a user chooses in, checked, out; PSA's and SEAM's choices by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advcam_attr.engine.fit import Precision
from advcam_attr.networks.affinitynet import RESNET38, AffinityNet, affinity_net, load_affinity_net
from advcam_attr.networks.timm_trunk import Lowering
from advcam_attr.refine.confident import ALPHAS
from advcam_attr.refine.crf import RECIPES
from advcam_attr.refine.walk import LARGEST_RADIUS
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError

#: PSA's optimiser passes the weight decay in the place of the momentum, as IRN's does; its learning rate fits that.
RELEASED_MOMENTUM = 5e-4


@dataclass(frozen=True)
class PSASettings:
    """How seeds are refined by PSA. The defaults are those of PSA's released code.

    Attributes:
        backbone: ``resnet38``, or ``timm/NAME``.
        model_args: keyword arguments of a timm model.
        checkpoint: the trunk's weights before training; see `advcam_attr.networks.affinitynet.affinity_net`.
        random_weights: train from a trunk as it is initialised.
        trained: a file of an affinity net that is trained already; then none is trained.
        stride: pixels of a cell's side; 8.
        lowered_by: how a timm model's stride is lowered.
        width: of the head, and of ResNet-38; 64.
        alphas: 4 and 32, the powers of the background's score for what is surely foreground and surely background.
        crf: the recipe of the CRF that these scores go through.
        radius: 5 cells, of pairs, in training and in the walk; at most 32.
        epochs: 8; the rest of an epoch that fills no batch is dropped.
        batch: 8 images an update, whatever the number of ranks.
        crop: 448 pixels, the side of the square that is cut or padded; images are not rescaled.
        lr: 0.1, of the trunk; its biases have twice as much and the new layers ten times.
        weight_decay: 5e-4, but none of biases.
        momentum: 5e-4. The released optimiser passes the weight decay in the place of the momentum, and the learning
            rates fit that; with 0.9 they would be about ten times too high.
        power: 0.9, of the poly schedule.
        jitter: 0.3, 0.3, 0.3 and 0.1, of brightness, contrast, saturation and hue.
        precision: ``float32``; ``bfloat16`` and ``float16`` (GPU only) are autocast, and not in PSA.
        seed: of the new weights, of order, augmentation and dropout.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        alpha: 16, the power of the background's score that walks.
        beta: 8, the power of affinities.
        steps: 256, of the walk.
        workers: processes that read images in training, threads in the walk; 0 reads them in between.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: make masks and label scores anew, whatever is there; a training with other settings makes way.
    """

    backbone: str = RESNET38
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | Path | None = None
    random_weights: bool = False
    trained: str | Path | None = None
    stride: int = 8
    lowered_by: Lowering = "removal"
    width: int = 64
    alphas: tuple[float, float] = (ALPHAS[0], ALPHAS[1])
    crf: str = "psa"
    radius: int = 5
    epochs: int = 8
    batch: int = 8
    crop: int = 448
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = RELEASED_MOMENTUM
    power: float = 0.9
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    precision: Precision = "float32"
    seed: int = 0
    checkpoint_every: int = 200
    alpha: float = 16.0
    beta: float = 8.0
    steps: int = 256
    workers: int = 4
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        lookup(self.crf, RECIPES, "CRF recipe")
        for name in ("epochs", "batch", "crop", "checkpoint_every", "stride", "width"):
            if getattr(self, name) < 1:
                raise AdvCAMError(f"psa: {name} must be at least 1, got {getattr(self, name)}")
        numbers = ("lr", "weight_decay", "momentum", "power", "alpha", "beta", "steps", "workers")
        for name in numbers:
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise AdvCAMError(f"psa: {name} must be a number that is not negative, got {getattr(self, name)}")
        low, high = self.alphas
        if not 0 < low <= high:
            raise AdvCAMError(f"psa: of the powers alphas, the low one comes first, both above 0; got {self.alphas}")
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise AdvCAMError(f"psa: jitter must be four numbers from 0, the hue's at most 0.5, got {self.jitter}")
        if not 2 <= self.radius <= LARGEST_RADIUS:
            raise AdvCAMError(
                f"psa: the radius must be at least 2 and at most {LARGEST_RADIUS} cells, got {self.radius}"
            )

    def check_crop(self, stride: int) -> None:
        """Refuse crops in which a net of some stride finds no pairs of cells.

        Raises:
            AdvCAMError: with what would do.
        """
        if self.crop % stride or self.crop // stride < 2 * self.radius - 1:
            raise AdvCAMError(
                f"psa: a crop of {self.crop} pixels does not fit stride {stride} and radius {self.radius}; "
                f"give a multiple of {stride}, from {stride * (2 * self.radius - 1)} on"
            )

    def make_net(self) -> AffinityNet:
        """The affinity net: the trained one, or one to be trained.

        Raises:
            AdvCAMError: it cannot be made; see `affinity_net` and `load_affinity_net`.
        """
        if self.trained is not None:
            return load_affinity_net(self.trained)
        return affinity_net(
            self.backbone,
            model_args=self.model_args,
            checkpoint=self.checkpoint,
            random_weights=self.random_weights,
            stride=self.stride,
            lowered_by=self.lowered_by,
            width=self.width,
            seed=self.seed,
        )


#: By whose code they are; SEAM's differ from PSA's in five numbers.
SETTINGS: dict[str, PSASettings] = {
    "psa": PSASettings(),
    "seam": PSASettings(alphas=(4.0, 24.0), lr=0.01, alpha=6.0, steps=64),
}
