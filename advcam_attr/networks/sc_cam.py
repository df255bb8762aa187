"""SC-CAM: Chang et al., "Weakly-supervised semantic segmentation via sub-category exploration" (CVPR 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.resnet38 import ResNet38


class SCCAM(ResNet38):
    """ResNet-38 with SC-CAM's classifiers; parameters have the names of the authors' files.

    Sub-categories shape the features in training; neither scores nor maps depend on them. The published net, of the
    third round, has 10 for each of VOC's 20 classes; none is the net of the first round, whose one classifier is called
    ``fc8``.
    """

    def __init__(self, classes: int = 20, subcategories: int = 200, width: int = 64) -> None:
        super().__init__(width)
        self.dropout7 = nn.Dropout2d(0.5)
        if subcategories:
            self.fc8_20 = nn.Conv2d(64 * width, classes, 1, bias=False)
            self.fc8_200 = nn.Conv2d(64 * width, subcategories, 1, bias=False)
        else:
            self.fc8 = nn.Conv2d(64 * width, classes, 1, bias=False)

    @property
    def classifier(self) -> nn.Conv2d:
        return self.fc8_20 if hasattr(self, "fc8_20") else self.fc8

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores ``(N, K)`` of images ``(N, 3, H, W)``."""
        pooled = F.adaptive_avg_pool2d(self.dropout7(self.features(x).conv6), 1)
        return self.classifier(pooled).flatten(1)

    def class_maps(self, x: Tensor) -> Tensor:
        """Return the rectified class maps ``(N, K, h, w)`` of images ``(N, 3, H, W)``."""
        return F.relu(self.classifier(self.features(x).conv6))
