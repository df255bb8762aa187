"""Defaults of CCT nets, which configurations read without importing torch."""

from __future__ import annotations

from typing import Literal

#: The released code's backbone: a ResNet-50 whose stem is three 3 × 3 convolutions to 64, 64 and 128 channels.
DEEP_BASE = "deepbase_resnet50"

#: Statistics of the backbone's batch norms.
Norms = Literal["trained", "frozen"]

#: The released configuration's numbers of decoders, 30 in all.
AUXILIARY = {
    "vat": 2,
    "dropout": 6,
    "cutout": 6,
    "context_mask": 2,
    "object_mask": 2,
    "feature_drop": 6,
    "feature_noise": 6,
}
