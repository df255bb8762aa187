"""SEAM: Wang et al., "Self-supervised Equivariant Attention Mechanism" (CVPR 2020).

Parameters have the names of the authors' files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.resnet38 import ResNet38

#: Cells of a block of the affinity matrix, an image: 16 MB in float32.
_BLOCK = 1 << 22


class ClassMapPair(NamedTuple):
    """SEAM's class maps, ``(N, 1 + K, H, W)``, the background first.

    They are the classifier's, signed, and those after the pixel correlation module ("cam_rv"), in [0, 1].
    """

    cam: Tensor
    refined: Tensor


class SEAM(ResNet38):
    """ResNet-38 with SEAM's classifier and pixel correlation module.

    The scores of the K foreground classes are the spatial means of their maps *before* the correlation module and
    before any upsampling. The background's score is left out: it has no image label.
    """

    def __init__(self, classes: int = 20, width: int = 64) -> None:
        super().__init__(width)
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(64 * width, 1 + classes, 1, bias=False)
        self.f8_3 = nn.Conv2d(8 * width, 64, 1, bias=False)
        self.f8_4 = nn.Conv2d(16 * width, 128, 1, bias=False)
        self.f9 = nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores ``(N, K)`` of the foreground classes of images ``(N, 3, H, W)``."""
        pooled = F.adaptive_avg_pool2d(self.dropout7(self.features(x).conv6), 1)
        return self.fc8(pooled).flatten(1)[:, 1:]

    def class_maps(self, x: Tensor) -> ClassMapPair:
        """Return both kinds of class maps of images ``(N, 3, H, W)``, at the images' size (align_corners=True)."""
        conv4, conv5, conv6 = self.features(x)
        cam = self.fc8(self.dropout7(conv6))
        refined = self.refine(cam, x, conv4, conv5)
        size = (x.shape[2], x.shape[3])
        return ClassMapPair(_resized(cam, size), _resized(refined, size))

    @torch.no_grad()
    def refine(self, cam: Tensor, x: Tensor, conv4: Tensor, conv5: Tensor) -> Tensor:
        """Apply the pixel correlation module to maps ``(N, 1 + K, h, w)``, the background first, without gradients.

        The result is the `normalised` maps, each cell the mean of all cells, weighted by their correlation, which is of
        the images ``(N, 3, H, W)`` and the trunk's features ``(N, C, h, w)``.
        """
        grid = (cam.shape[2], cam.shape[3])
        parts = [_resized(x, grid), F.relu(self.f8_3(conv4)), F.relu(self.f8_4(conv5))]
        return correlated(normalised(cam), self.f9(torch.cat(parts, 1)))


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def normalised(cam: Tensor) -> Tensor:
    """Return SEAM's maps as the correlation module reads them: peaks near 1, one foreground class a cell, a background.

    Each map ``(N, 1 + K, h, w)`` is rectified and divided by its own peak, whether or not the image shows the class; in
    each cell all foreground classes but the strongest become 0, and the background, whose own values are ignored, is
    one minus the strongest.
    """
    peaks = cam.relu().amax((2, 3), keepdim=True) + 1e-5
    foreground = ((cam - 1e-5).relu() / peaks)[:, 1:]
    strongest = foreground.amax(1, keepdim=True)
    return torch.cat([1 - strongest, foreground.masked_fill(foreground < strongest, 0)], 1)


def correlated(maps: Tensor, embedding: Tensor) -> Tensor:
    """Return each cell's mean over all cells, weighted by the rectified cosine of their embeddings: ``(N, K, h, w)``.

    The matrix of all pairs of cells is computed in blocks of columns, to save memory.
    """
    values, cells = maps.flatten(2), embedding.flatten(2)
    cells = cells / (cells.norm(dim=1, keepdim=True) + 1e-5)
    parts = []
    for block in cells.split(max(1, _BLOCK // cells.shape[2]), dim=2):
        affinity = (cells.transpose(1, 2) @ block).relu()
        parts.append(values @ (affinity / (affinity.sum(1, keepdim=True) + 1e-5)))
    return torch.cat(parts, 2).unflatten(2, maps.shape[2:])
