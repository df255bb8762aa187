"""Logits and labels in; a loss out. A table of names, and what losses may be besides a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

#: What a net gives, a tensor or several, and labels, to a scalar.
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class LossTerms:
    """A loss and what is told of it.

    Attributes:
        total: what is trained on, a scalar.
        parts: scalars by name, for the log; no gradient is taken of them.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


@runtime_checkable
class SteppedLoss(Protocol):
    """A loss that differs from step to step: ramps, annealed thresholds."""

    def at(self, step: int) -> Callable[[Any, Tensor], LossTerms]:
        """The loss of a step, from 0."""


#: Losses of multi-label classifiers: logits and labels ``(N, K)`` to a scalar, the mean over images.
LOSSES: dict[str, Loss] = {
    "multilabel_soft_margin": F.multilabel_soft_margin_loss,  # sigmoid cross-entropy, mean over classes (IRN)
}
