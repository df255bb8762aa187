"""A published seed generator in; what AdvCAM climbs, restricts and accumulates on it, out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.attr.attribution import MapFunction
from advcam_attr.attr.cam import CAM
from advcam_attr.heads import Activations, at_least_float32
from advcam_attr.networks.seam import SEAM


@dataclass(frozen=True)
class SEAMBase:
    """SEAM's class maps as a base of AdvCAM: climbed and restricted before its correlation module, summed after it.

    So did the paper's authors (their issue 8): the score is the mean of the map before the module and before any
    up-sampling, and the maps after the module are summed (Eq. 4). The module has no gradient, so the restricting term
    can only hold the map before it. All of it comes from one forward.

    Attributes:
        net: the net that is attributed.

    Example:
        >>> import torch
        >>> from advcam_attr import AdvCAM
        >>> from advcam_attr.attr.generators import SEAMBase
        >>> from advcam_attr.networks.seam import SEAM
        >>> net = SEAM(classes=3, width=1).eval()
        >>> advcam = AdvCAM(net, base=SEAMBase(net), recipe="official_wrn38", scales=1.0)
        >>> advcam.attribute(torch.rand(1, 3, 40, 64), target=2, output="native").shape
        torch.Size([1, 1, 5, 8])
    """

    net: SEAM = field(repr=False)
    taps: ClassVar[tuple[str, ...]] = SEAM.taps
    needs_class_weights: ClassVar[bool] = True

    def __call__(self, acts: Activations, target: Tensor) -> Tensor:
        """The map before the correlation module, ``(B, h, w)``, on the graph."""
        return CAM.maps(acts, target)

    def accumulated(self, acts: Activations, target: Tensor) -> Tensor:
        """The map after the correlation module, ``(B, h, w)``, without gradient."""
        conv4, conv5 = (F.relu(acts.taps[tap]) for tap in self.taps)
        maps = self.net.refine(self.net.fc8(acts.features), acts.x.to(conv4.dtype), conv4, conv5)
        return at_least_float32(maps[torch.arange(len(target), device=target.device), 1 + target])


def base_of(net: nn.Module) -> SEAMBase | MapFunction:
    """The base with which AdvCAM is applied to a seed generator: `SEAMBase` for SEAM, the class map for all others."""
    return SEAMBase(net) if isinstance(net, SEAM) else CAM.maps
