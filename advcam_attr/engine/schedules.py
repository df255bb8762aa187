"""A step in; the factor that learning rates are multiplied by, out."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer

Schedule = Callable[[int], float]


def poly(steps: int, power: float = 0.9, refresh: int = 1) -> Schedule:
    """The factor (1 - step / steps) ^ power, set before the update of each step (IRN's PolyOptimizer).

    Args:
        steps: of the whole training; the first is step 0.
        power: of the decay; 0.9 in IRN, PSA, SEAM and DeepLab.
        refresh: every how many steps the factor is computed anew; 10 in deeplab-pytorch, 1 elsewhere.

    Example:
        >>> schedule = poly(4, power=1.0)
        >>> [schedule(step) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [poly(4, power=1.0, refresh=2)(step) for step in range(4)]
        [1.0, 1.0, 0.5, 0.5]
    """
    return lambda step: float((1 - step // refresh * refresh / steps) ** power)


def step_decay(per_epoch: int, every: int, factor: float = 0.1) -> Schedule:
    """The factor by which the rates are lowered every so many epochs, before the epoch whose number they divide.

    With ``every=15``, epochs 1 to 14 have the first rate, 15 to 29 a tenth, and so on (Choe et al.).

    Args:
        per_epoch: steps of an epoch.
        every: epochs.
        factor: of each time.

    Example:
        >>> schedule = step_decay(per_epoch=1, every=2)
        >>> [round(schedule(step), 4) for step in range(5)]
        [1.0, 0.1, 0.1, 0.01, 0.01]
    """
    return lambda step: factor ** ((step // per_epoch + 1) // every)


def set_rates(optimiser: Optimizer, factor: float) -> None:
    """Give each group its own initial learning rate (``initial_lr``) times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
