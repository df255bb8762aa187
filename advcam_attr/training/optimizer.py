"""Settings of SGD, which configurations read without importing torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advcam_attr.types import AdvCAMError

#: The momentum of the released optimizers of IRN and AdvCAM, which pass the weight decay, 1e-4, as the momentum. Their
#: learning rates fit it: with a momentum of 0.9 the steps would be ten times as long.
RELEASED_MOMENTUM = 1e-4


@dataclass(frozen=True)
class Optimizer:
    """Settings of SGD.

    Attributes:
        lr: initial learning rate of the backbone.
        head_lr: initial learning rate of new layers; None for ten times ``lr``.
        weight_decay: L2 penalty of the weights.
        momentum: without dampening.
        power: exponent of the poly schedule.
        nesterov: whether momentum is Nesterov's.
        lr_update_every: steps between two updates of the learning rates.
    """

    lr: float
    head_lr: float | None = None
    weight_decay: float = 1e-4
    momentum: float = 0.9
    power: float = 0.9
    nesterov: bool = False
    lr_update_every: int = 1

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr", "weight_decay", "momentum", "power"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise AdvCAMError(f"optimizer.{name} must be a number that is not negative, got {value}")
        if self.nesterov and not 0 < self.momentum < 1:
            raise AdvCAMError(f"optimizer.momentum must lie between 0 and 1 for Nesterov's, got {self.momentum}")
        if self.lr_update_every < 1:
            raise AdvCAMError(f"optimizer.lr_update_every must be at least 1, got {self.lr_update_every}")

    @property
    def head_rate(self) -> float:
        return 10 * self.lr if self.head_lr is None else self.head_lr
