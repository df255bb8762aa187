"""A backbone's classifier and which of its classes depict new ones in; the start of a new classifier out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from advcam_attr.types import AdvCAMError


class UnknownClassError(AdvCAMError):
    """A class that the backbone, or the new net, does not have."""


def known_weights(
    own: nn.Module, known: Mapping[int, Sequence[int]], classes: int, channels: int, backbone: str
) -> Tensor:
    """The mean weights of the known classes that depict each new class, less the mean of all known classes.

    Args:
        own: the backbone's classifier, a linear one on its last maps.
        known: for some of the new classes, the classes of ``own`` that depict them.
        classes: K, how many new classes there are.
        channels: C, of the last maps.
        backbone: its name, for messages.

    Returns:
        ``(K, C)``; zeros for classes that nothing depicts.

    Raises:
        UnknownClassError: classes that the backbone or the new net does not have.
        AdvCAMError: another classifier.

    Example:
        >>> own = nn.Linear(2, 3)
        >>> _ = own.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        >>> known_weights(own, {1: (0, 2)}, 2, 2, "timm/resnet18")
        tensor([[ 0.0000,  0.0000],
                [ 0.5000, -1.0000]])
    """
    if not isinstance(own, nn.Linear) or own.in_features != channels:
        raise AdvCAMError(f"{backbone} has no linear classifier on its last maps to take known classes from")
    start = torch.zeros(classes, channels)
    for new, depicting in known.items():
        wrong = [c for c in depicting if not 0 <= c < own.out_features]
        if wrong or not 0 <= new < classes:
            named = ", ".join(map(str, (wrong or [new])[:3])) + (
                f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            )
            raise UnknownClassError(
                f"{backbone} has {own.out_features} classes and the new net {classes}: there is no {named}"
            )
        if depicting:
            start[new] = (own.weight[list(depicting)].mean(0) - own.weight.mean(0)).detach()
    return start
