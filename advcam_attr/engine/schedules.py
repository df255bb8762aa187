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


def set_rates(optimiser: Optimizer, factor: float) -> None:
    """Give each group its own initial learning rate (``initial_lr``) times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
