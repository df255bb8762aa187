"""Freezing: norms with running statistics, and the modules before the first one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.strides import execution_order
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from typing_extensions import Self


def running_norms(net: nn.Module) -> list[nn.Module]:
    """Return the modules that normalize by running statistics (batch norms)."""
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


class FrozenStatistics(nn.Module):
    """A net whose norms with running statistics use them in training too, and never update them."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in running_norms(self):
            norm.eval()
        return self


def weight_owners(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if any(True for _ in module.parameters(recurse=False))]


def first_trained(backbone: Backbone, order: Mapping[str, int], within: str) -> int:
    """Return when ``backbone.train_from`` is first called in a net's forward; 0 if it is None.

    It names a module as the backbone does, e.g. ``"layer3"`` (``within`` the net), or a part of the net beside the
    backbone, e.g. ``"classifier"``; ``order`` is from `execution_order`.
    """
    names = {name.removeprefix(f"{within}."): name for name in order if name}
    if backbone.train_from is None:
        return 0
    if backbone.train_from not in names:
        raise AdvCAMError(
            f"{backbone.name} has no module {backbone.train_from!r} to train from{nearest(backbone.train_from, names)}"
        )
    return order[names[backbone.train_from]]


def freeze_before(net: nn.Module, order: Mapping[str, int], first: int) -> None:
    """Freeze all weights that are used before a position in the forward, in place."""
    for name in weight_owners(net):
        called = name
        while called not in order:  # part of a module that uses its weights itself
            called = called.rpartition(".")[0]
        if order[called] < first:
            for parameter in net.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)


def apply_train_from(net: nn.Module, backbone: Backbone, within: str, size: int) -> None:
    """Freeze what runs before ``backbone.train_from`` (see `first_trained`) for images of ``size`` pixels a side."""
    if backbone.train_from is not None:
        order = execution_order(net, size=size)
        freeze_before(net, order, first_trained(backbone, order, within))
