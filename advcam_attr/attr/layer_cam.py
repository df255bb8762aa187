"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.attr.grad_cam import target_gradient
from advcam_attr.heads import Activations, at_least_float32


class LayerCAM(MapAttribution):
    """LayerCAM (Jiang et al., TIP 2021): ``relu(sum_k relu(g_kij) f_kij)``.

    Weights carry no gradient when this is a base of AdvCAM.

    Example:
        >>> import torch
        >>> from advcam_attr import LayerCAM
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
        >>> LayerCAM(net, layer="0").attribute(torch.rand(1, 3, 8, 8), target=1, output="native").shape
        torch.Size([1, 1, 6, 6])
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        """Return the maps ``(B, h, w)``, not negative."""
        return at_least_float32((target_gradient(acts, target).relu() * acts.features).sum(1).relu())
