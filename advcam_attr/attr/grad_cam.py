"""Grad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.heads import Activations, at_least_float32


def target_gradient(acts: Activations, target: Tensor) -> Tensor:
    """Return the derivative of each target logit with respect to the features, ``(B, C, h, w)``, detached."""
    return acts.gradient(acts.logits.gather(1, target[:, None]))


class GradCAM(MapAttribution):
    """Grad-CAM (Selvaraju et al., ICCV 2017): channels weighted by their mean gradient, positive part.

    Works wherever there is a grid, token grids included. As a base of AdvCAM its channel weights carry no gradient
    (a stop-gradient, as in the released code): the climb's gradient goes through the features alone.

    Example:
        >>> import torch
        >>> from advcam_attr import GradCAM
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
        >>> GradCAM(net).attribute(torch.rand(1, 3, 8, 8), target=1, output="native").shape
        torch.Size([1, 1, 6, 6])
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        """Return the maps ``(B, h, w)``, not negative."""
        weights = target_gradient(acts, target).mean((2, 3))
        return at_least_float32(torch.einsum("bc,bchw->bhw", weights, acts.features).relu())
