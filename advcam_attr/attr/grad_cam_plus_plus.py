"""Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.attr.grad_cam import target_gradient
from advcam_attr.heads import Activations, at_least_float32


class GradCAMPlusPlus(MapAttribution):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): ``w_k = sum_ij alpha_kij relu(g_kij)``, positive part of the sum.

    ``alpha = g² / (2 g² + sum_ab f g³)``, with the derivatives of exp(logit) as in that paper: for them the closed form
    holds, and their common factor cancels in alpha. Weights carry no gradient when this is a base of AdvCAM.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        gradient, features = at_least_float32(target_gradient(acts, target)), at_least_float32(acts.features.detach())
        square = gradient.square()
        below = 2 * square + features.sum((2, 3), keepdim=True) * square * gradient
        alpha = torch.where(below != 0, square / torch.where(below != 0, below, 1), 0)
        weights = (alpha * gradient.relu()).sum((2, 3)).to(acts.features.dtype)
        return at_least_float32(torch.einsum("bc,bchw->bhw", weights, acts.features).relu())
