"""Bases of AdvCAM from other attributions: Captum's, and SEAM's class maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from captum.attr import Attribution, LayerAttribution
from torch import Tensor, nn

from advcam_attr.attr.attribution import MapFunction
from advcam_attr.attr.cam import CAM
from advcam_attr.heads import Activations, HeadView, at_least_float32
from advcam_attr.networks.seam import SEAM
from advcam_attr.types import AdvCAMError


class CaptumBase:
    """A base from a Captum attribution.

    Attributions of the input are summed over its channels as absolute values, those of a layer with their signs; both
    are averaged onto the map's grid. Captum returns detached attributions, so the base has a stop-gradient: terms of
    the objective that read the maps are constant, and only the logits are climbed.

    Args:
        attribution: its ``attribute(x, target=...)`` is called.
        **options: further keyword arguments of that call, e.g. ``n_steps=20``.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> from advcam_attr import AdvCAM
        >>> from advcam_attr.attr import CaptumBase
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
        ... )
        >>> base = CaptumBase(InputXGradient(net))
        >>> AdvCAM(net, base=base, steps=2).attribute(torch.rand(1, 3, 8, 8), target=1).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(self, attribution: Attribution, **options: Any) -> None:
        self.attribution, self.options = attribution, options

    def __repr__(self) -> str:
        return f"CaptumBase({type(self.attribution).__name__})"

    @classmethod
    def of(cls, kind: type[Attribution], view: HeadView) -> CaptumBase:
        """Return the base of an attribution class for the model of ``view`` (and its layer, if needed)."""
        if not issubclass(kind, LayerAttribution):
            return cls(kind(view.model))
        if view.layer is None:
            raise AdvCAMError(f"base {kind.__name__} needs layer=, the module that it attributes to")
        layer: nn.Module = view.model.get_submodule(view.layer)
        return cls(kind(view.model, layer))

    def __call__(self, acts: Activations, target: Tensor) -> Tensor:
        images = acts.x.detach().clone().requires_grad_()
        found = self.attribution.attribute(images, target=target, **self.options)
        found = found[0] if isinstance(found, tuple) else found
        if not isinstance(found, Tensor) or found.ndim != 4:
            got = getattr(found, "shape", found)
            raise AdvCAMError(f"base {self!r} must attribute to pixels or cells, (N, C, H, W), got {got}")
        of_input = found.shape[1:] == images.shape[1:]
        maps = (found.abs() if of_input else found).sum(1, keepdim=True).detach()
        return at_least_float32(F.adaptive_avg_pool2d(maps, acts.head.grid)[:, 0])


@dataclass(frozen=True)
class SEAMBase:
    """SEAM's class maps as a base of AdvCAM: climbed before its correlation module, summed after it.

    So did the paper's authors (their issue 8): the score is the mean of the map before the module and before any
    up-sampling, and the maps after the module are summed (Eq. 4). The module has no gradient, so the restricting term
    applies to the map before it. One forward gives both.
    """

    net: SEAM = field(repr=False)
    taps: ClassVar[tuple[str, ...]] = SEAM.taps
    needs_class_weights: ClassVar[bool] = True

    def __call__(self, acts: Activations, target: Tensor) -> Tensor:
        return CAM.maps(acts, target)

    def accumulated(self, acts: Activations, target: Tensor) -> Tensor:
        """Return the map after the correlation module, ``(B, h, w)``, without gradient."""
        conv4, conv5 = (F.relu(acts.taps[tap]) for tap in self.taps)
        maps = self.net.refine(self.net.fc8(acts.features), acts.x.to(conv4.dtype), conv4, conv5)
        return at_least_float32(maps[torch.arange(len(target), device=target.device), 1 + target])


def base_of(net: nn.Module) -> SEAMBase | MapFunction:
    """Return the base for a seed generator: `SEAMBase` for SEAM, the class map for others."""
    return SEAMBase(net) if isinstance(net, SEAM) else CAM.maps
