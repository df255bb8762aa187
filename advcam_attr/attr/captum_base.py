"""Any Captum attribution in; a base for AdvCAM out."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from captum.attr import Attribution, LayerAttribution
from torch import Tensor, nn

from advcam_attr.heads import Activations, HeadView, at_least_float32
from advcam_attr.types import AdvCAMError


class CaptumBase:
    """The maps of a Captum attribution, as a base.

    Attributions of the input are summed over its channels as absolute values; attributions of a layer are summed over
    its channels as they are. Either is averaged onto the map's grid. Captum returns detached attributions, so the base
    has a stop-gradient: terms of the objective which read the maps are constant, and only the logits are climbed.

    Args:
        attribution: what ``attribute(x, target=...)`` is called on.
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
        """The adapter of an attribution class, made for the model of ``view`` (and its layer, if it needs one).

        Raises:
            AdvCAMError: a layer attribution, and ``layer=`` was not given.
        """
        if not issubclass(kind, LayerAttribution):
            return cls(kind(view.model))
        if view.layer is None:
            raise AdvCAMError(f"base {kind.__name__} needs layer=, the module that it attributes to")
        layer: nn.Module = view.model.get_submodule(view.layer)
        return cls(kind(view.model, layer))

    def __call__(self, acts: Activations, target: Tensor) -> Tensor:
        """``(B, h, w)``, without gradient.

        Raises:
            AdvCAMError: the attribution is not one number a place.
        """
        images = acts.x.detach().clone().requires_grad_()
        found = self.attribution.attribute(images, target=target, **self.options)
        found = found[0] if isinstance(found, tuple) else found
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise AdvCAMError(f"base {self!r} does not attribute to places: it gave {getattr(found, 'shape', found)}")
        of_input = found.shape[1:] == images.shape[1:]
        maps = (found.abs() if of_input else found).sum(1, keepdim=True).detach()
        return at_least_float32(F.adaptive_avg_pool2d(maps, acts.head.grid)[:, 0])
