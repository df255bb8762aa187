"""Grad-CAM and its family: maps of the features weighted by the derivative of one logit, and Eigen-CAM.

They work wherever there is a grid, token grids included. As bases of AdvCAM their weights carry no gradient (a
stop-gradient, as in the released code): the climb's gradient goes through the features alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.heads import Activations, at_least_float32


def target_gradient(acts: Activations, target: Tensor) -> Tensor:
    """Return the derivative of each target logit with respect to the features, ``(B, C, h, w)``, detached."""
    return acts.gradient(acts.logits.gather(1, target[:, None]))


def _weighted(acts: Activations, weights: Tensor) -> Tensor:
    """The positive part of the sum of channels by their weights ``(B, C)``."""
    weights = weights.to(acts.features.dtype)
    return at_least_float32(torch.einsum("bc,bchw->bhw", weights, acts.features).relu())


class GradCAM(MapAttribution):
    """Grad-CAM (Selvaraju et al., ICCV 2017): channels weighted by their mean derivative, positive part."""

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        return _weighted(acts, target_gradient(acts, target).mean((2, 3)))


class GradCAMPlusPlus(MapAttribution):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): ``w_k = sum_ij alpha_kij relu(g_kij)``, positive part of the sum.

    ``alpha = g² / (2 g² + sum_ab f g³)``, with the derivatives of exp(logit) as in that paper: for them the closed form
    holds, and their common factor cancels in alpha.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        gradient, features = at_least_float32(target_gradient(acts, target)), at_least_float32(acts.features.detach())
        square = gradient.square()
        below = 2 * square + features.sum((2, 3), keepdim=True) * square * gradient
        alpha = torch.where(below != 0, square / torch.where(below != 0, below, 1), 0)
        return _weighted(acts, (alpha * gradient.relu()).sum((2, 3)))


class LayerCAM(MapAttribution):
    """LayerCAM (Jiang et al., TIP 2021): ``relu(sum_k relu(g_kij) f_kij)``."""

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        return at_least_float32((target_gradient(acts, target).relu() * acts.features).sum(1).relu())


class HiResCAM(MapAttribution):
    """HiResCAM (Draelos and Carin, 2020): ``relu(sum_k g_kij f_kij)``, each cell with its own derivative.

    Where the head is exact it is the positive part of CAM divided by the number of cells.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        return at_least_float32((target_gradient(acts, target) * acts.features).sum(1).relu())


class XGradCAM(MapAttribution):
    """XGrad-CAM (Fu et al., BMVC 2020): ``w_k = sum_ij g_kij f_kij / sum_ij f_kij``, positive part of the sum.

    Channels whose features sum to zero have no weight.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        gradient, features = at_least_float32(target_gradient(acts, target)), at_least_float32(acts.features.detach())
        total = features.sum((2, 3))
        share = (gradient * features).sum((2, 3)) / torch.where(total != 0, total, 1)
        return _weighted(acts, torch.where(total != 0, share, 0))


class EigenCAM(MapAttribution):
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020): the projection of the features on their first principal direction.

    That is the first right singular vector of the matrix of cells by channels, not centred, as in the paper. Its sign
    makes the map's sum positive, and the positive part is returned. It does not depend on the class.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        cells = at_least_float32(acts.features.detach()).flatten(2).transpose(1, 2)  # (B, cells, C)
        direction = torch.linalg.svd(cells, full_matrices=False).Vh[:, 0]
        sign = (cells @ direction[:, :, None]).sum(1).sign()
        return _weighted(acts, torch.where(sign < 0, -direction, direction))
