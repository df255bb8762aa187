"""Class activation mapping."""

from __future__ import annotations

from torch import Tensor

from advcam_attr.attr.attribution import MapAttribution
from advcam_attr.heads import Activations


class CAM(MapAttribution):
    """Class activation map (Zhou et al., CVPR 2016; Eq. 2 of the paper): ``CAM_c = sum_k w_ck f_k``.

    For exact heads the mean of the map plus a constant is the logit. Negative evidence stays in the map.

    Example:
        >>> import torch
        >>> from advcam_attr import CAM
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.rand(1, 3, 8, 8)
        >>> cam = CAM(net).attribute(x, target=1, output="native")
        >>> torch.allclose(cam.mean() + net[3].bias[1], net(x)[0, 1])
        True
    """

    needs_class_weights = True

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        """Return the maps ``(B, h, w)``; class weights carry no gradient (for exact heads they have none)."""
        return acts.class_map(target)
