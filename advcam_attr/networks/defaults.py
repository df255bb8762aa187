"""Names and defaults of networks, which configurations read without importing torch."""

from __future__ import annotations

from typing import Literal

#: IRN's backbone.
IRN_BACKBONE = "torchvision/resnet50"

#: PSA's trunk, which SEAM and SC-CAM have too.
RESNET38 = "resnet38"

#: The paper's backbone of segmentation nets.
RESNET101 = "torchvision/resnet101"

#: The convolution of a bottleneck that has the stride: Caffe's or torchvision's.
StrideIn = Literal["1x1", "3x3"]

#: The backbone of CCT's released code: a ResNet-50 whose stem is three 3 × 3 convolutions to 64, 64 and 128 channels.
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
