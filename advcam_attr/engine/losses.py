"""Logits and labels in; a loss out. A table of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

#: What a net gives, a tensor or several, and labels, to a scalar.
Loss = Callable[[Any, Tensor], Tensor]

#: Losses of multi-label classifiers: logits and labels ``(N, K)`` to a scalar, the mean over images.
LOSSES: dict[str, Loss] = {
    "multilabel_soft_margin": F.multilabel_soft_margin_loss,  # sigmoid cross-entropy, mean over classes (IRN)
}
