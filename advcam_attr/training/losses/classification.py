"""Losses of classifiers, and the types that all losses share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

#: A net's output (a tensor or several) and labels to a scalar.
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class LossTerms:
    """A loss to minimise, and its unweighted terms by name, for the log."""

    total: Tensor
    parts: Mapping[str, Tensor]


@runtime_checkable
class SteppedLoss(Protocol):
    """A loss that depends on the step, e.g. by ramps or annealed thresholds."""

    def at(self, step: int) -> Callable[[Any, Tensor], LossTerms]:
        """Return the loss of a step, from 0."""


#: Losses of multi-label classifiers: logits and labels ``(N, K)`` to a scalar, the mean over images.
LOSSES: dict[str, Loss] = {
    "multilabel_soft_margin": F.multilabel_soft_margin_loss,  # sigmoid cross-entropy, mean over classes (IRN)
}
