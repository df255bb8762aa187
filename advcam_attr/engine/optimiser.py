"""Groups of weights, each with its learning rate, in; an SGD optimiser out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD

#: The momentum that the released optimisers of IRN and AdvCAM have: they pass the weight decay, 1e-4, in the place of
#: the momentum. Their learning rates fit it: with a momentum of 0.9 the steps would be ten times as long.
RELEASED_MOMENTUM = 1e-4


@dataclass(frozen=True)
class Group:
    """Weights that are trained alike.

    Attributes:
        name: e.g. ``"backbone"``.
        parameters: of them, those that take no gradient are left out.
        lr: the learning rate that the schedule starts from.
        weight_decay: the factor of the weights in the gradient.
    """

    name: str
    parameters: Iterable[nn.Parameter]
    lr: float
    weight_decay: float


def sgd(groups: Sequence[Group], momentum: float = RELEASED_MOMENTUM, *, nesterov: bool = False) -> SGD:
    """An SGD optimiser; a group without trained weights is kept, empty, so that groups keep their places.

    Args:
        groups: in the order in which the optimiser has them.
        momentum: without dampening.
        nesterov: whether it is Nesterov's.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimiser = sgd([Group("classifier", layer.parameters(), lr=1.0, weight_decay=1e-4)])
        >>> optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["momentum"]
        (1.0, 0.0001)
    """
    return SGD(
        [
            {
                "params": [p for p in group.parameters if p.requires_grad],
                "name": group.name,
                "lr": group.lr,
                "initial_lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        lr=0.0,
        momentum=momentum,
        nesterov=nesterov,
    )
