"""A net and a place in its forward in; the same net, whose weights before that place take no gradient, out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError


def weight_owners(net: nn.Module) -> list[str]:
    """The names of the modules that have weights of their own.

    Example:
        >>> weight_owners(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        ['0']
    """
    return [name for name, module in net.named_modules() if any(True for _ in module.parameters(recurse=False))]


def place_of(module: str, order: Mapping[str, int], within: str, backbone: str) -> int:
    """When a module is first called in a net's forward, the module named as the backbone names it.

    Args:
        module: e.g. ``"layer3"``; or a part of the net beside the backbone, e.g. ``"classifier"``.
        order: when each module is called; from `advcam_attr.networks.strides.execution_order`.
        within: where the backbone lies in the net, e.g. ``"backbone"``.
        backbone: its name, for the message.

    Raises:
        AdvCAMError: no such module is called; the nearest are told.

    Example:
        >>> place_of("1", {"": 0, "backbone": 1, "backbone.0": 2, "backbone.1": 3}, "backbone", "timm/resnet18")
        3
    """
    names = {name.removeprefix(f"{within}."): name for name in order if name}
    if module not in names:
        raise AdvCAMError(f"{backbone} has no module {module!r} to train from{nearest(module, names)}")
    return order[names[module]]


def freeze_before(net: nn.Module, order: Mapping[str, int], first: int) -> None:
    """Take the gradient of all weights that are used before a place in the forward.

    Args:
        net: changed in place.
        order: when each module is called; from `advcam_attr.networks.strides.execution_order`.
        first: the place from which on weights are trained.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
        >>> freeze_before(net, {"": 0, "0": 1, "1": 2}, first=2)
        >>> [parameter.requires_grad for parameter in net.parameters()]
        [False, False, True, True]
    """
    for name in weight_owners(net):
        called = name
        while called not in order:  # part of a module that uses its weights itself
            called = called.rpartition(".")[0]
        if order[called] < first:
            for parameter in net.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)
