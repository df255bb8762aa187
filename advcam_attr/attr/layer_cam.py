"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.attr.grad_cam import target_gradient
from advcam_attr.heads import Activations, at_least_float32


class LayerCAM(MapAttribution):
    """LayerCAM (Jiang et al., TIP 2021): ``relu(sum_k relu(g_kij) f_kij)``.

    Weights carry no gradient when this is a base of AdvCAM.
    """

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        return at_least_float32((target_gradient(acts, target).relu() * acts.features).sum(1).relu())
