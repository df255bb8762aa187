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
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        weights = target_gradient(acts, target).mean((2, 3))
        return at_least_float32(torch.einsum("bc,bchw->bhw", weights, acts.features).relu())
