"""Maps in, maps out: what is done to a base's maps before they enter a climb, and how a climb's maps become one."""

from __future__ import annotations

from torch import Tensor

from advcam_attr.heads import Activations


def signed(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """As they are."""
    return maps


def rectified(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """Negative evidence is dropped."""
    return maps.relu()


def released(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """Rectified, and divided by K⁺, the number of positive class weights.

    This is the released code's Grad-CAM in closed form, but for the share of the views
    (`advcam_attr.climbing.views.FLIP_PAIR_BY_SHARE`); its λ counts in these units.
    """
    positive = (acts.class_weights(target) > 0).sum(1).clamp_min(1)
    return maps.relu() / positive[:, None, None].to(maps.dtype)


def add(total: Tensor | None, maps: Tensor) -> Tensor:
    """The sum over the steps (Eq. 4)."""
    return maps if total is None else total + maps


def last(total: Tensor | None, maps: Tensor) -> Tensor:
    """The last map only (Table XI)."""
    return maps


TRANSFORMS = {"signed": signed, "relu": rectified, "released": released}
AGGREGATES = {"sum": add, "last": last}
