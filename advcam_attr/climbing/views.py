"""Images in; the views of each row, and one map a row from the maps of its views, out."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.climbing.state import Views


def _one(x: Tensor) -> Tensor:
    return x[:, None]


def _merge_one(maps: Tensor) -> Tensor:
    return maps[:, 0]


def _pair(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(-1)], dim=1)


def _merge_pair(maps: Tensor) -> Tensor:
    image, mirror = maps.unbind(1)
    return image + mirror.flip(-1)


def _merge_pair_by_share(maps: Tensor) -> Tensor:
    lit = (maps.detach() > 0).sum((2, 3), keepdim=True).to(maps.dtype)
    return _merge_pair(maps * lit / lit.sum(1, keepdim=True).clamp_min(1))


#: The image alone.
SINGLE = Views(_one, _merge_one)

#: The image and its mirror image, climbed as two images that share peak, step size and range; maps are summed.
FLIP_PAIR = Views(_pair, _merge_pair)

#: `FLIP_PAIR`, each view weighted by its share of the pair's positive cells, as in the released code's Grad-CAM. Maps
#: that are accumulated in place of the Grad-CAM have no such weights.
FLIP_PAIR_BY_SHARE = Views(_pair, _merge_pair_by_share, _merge_pair)

VIEWS = {"none": SINGLE, "pair": FLIP_PAIR, "pair_by_share": FLIP_PAIR_BY_SHARE}
