"""Views of a sample, transforms of its maps, and their aggregation over the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.climbing.state import Views
from advcam_attr.heads import Activations


def _one(x: Tensor) -> Tensor:
    return x[:, None]


def _merge_one(maps: Tensor) -> Tensor:
    return maps[:, 0]


def _pair(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(-1)], dim=1)


def _merge_pair(maps: Tensor) -> Tensor:
    image, mirror = maps.unbind(1)
    return image + mirror.flip(-1)


def _merge_pair_by_minimum(maps: Tensor) -> Tensor:
    image, mirror = maps.unbind(1)
    return 2 * torch.minimum(image, mirror.flip(-1))


def _merge_pair_by_share(maps: Tensor) -> Tensor:
    positive = (maps.detach() > 0).sum((2, 3), keepdim=True).to(maps.dtype)
    return _merge_pair(maps * positive / positive.sum(1, keepdim=True).clamp_min(1))


#: The image alone.
SINGLE = Views(_one, _merge_one)

#: The image and its mirror image, perturbed as two images with one peak, step size and range; maps are summed.
FLIP_PAIR = Views(_pair, _merge_pair, mirrored=True)

#: `FLIP_PAIR`, but only what both views show counts: twice the smaller value of each cell.
FLIP_PAIR_AGREEMENT = Views(_pair, _merge_pair_by_minimum, mirrored=True)

#: `FLIP_PAIR`, each view weighted by its share of the pair's positive cells, as in the released code's Grad-CAM; a
#: base's ``accumulated`` maps have no such weights.
FLIP_PAIR_BY_SHARE = Views(_pair, _merge_pair_by_share, _merge_pair, mirrored=True)

VIEWS = {"none": SINGLE, "pair": FLIP_PAIR, "pair_agreement": FLIP_PAIR_AGREEMENT, "pair_by_share": FLIP_PAIR_BY_SHARE}


def signed(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """Return the maps unchanged."""
    return maps


def rectified(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """Drop negative evidence."""
    return maps.relu()


def released(maps: Tensor, acts: Activations, target: Tensor) -> Tensor:
    """Rectify, and divide by K⁺, the number of positive class weights.

    This is the released code's Grad-CAM in closed form, but for the share of the views (`FLIP_PAIR_BY_SHARE`); its λ
    counts in these units.
    """
    positive = (acts.class_weights(target) > 0).sum(1).clamp_min(1)
    return maps.relu() / positive[:, None, None].to(maps.dtype)


def add(total: Tensor | None, maps: Tensor) -> Tensor:
    """Sum the maps of the steps (Eq. 4)."""
    return maps if total is None else total + maps


def last(total: Tensor | None, maps: Tensor) -> Tensor:
    """Keep the last map only (Table XI)."""
    return maps


TRANSFORMS = {"signed": signed, "relu": rectified, "released": released}
AGGREGATES = {"sum": add, "last": last}
