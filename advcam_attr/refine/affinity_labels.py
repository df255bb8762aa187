"""Confident labels from class maps and a dense CRF, for affinity networks to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.refine.crf import CRFRecipe, DenseCRF, refine_labels, unary_from_scores
from advcam_attr.refine.recipes import ALPHAS
from advcam_attr.refine.recipes import LABEL_THRESHOLDS as LABEL_THRESHOLDS
from advcam_attr.refine.seeds import threshold_maps, with_background
from advcam_attr.types import VOID, AdvCAMError, ClassMaps


def ir_label(
    maps: ClassMaps,
    image: Tensor,
    foreground: float = 0.35,
    background: float = 0.15,
    recipe: CRFRecipe | str = "irn",
) -> Tensor:
    """Return IRN's confident labels: ``(H, W)`` uint8 with 0, class + 1, or 255 for undecided pixels.

    The seed of each threshold is refined by the CRF, from hard labels, among the background and the image's classes.
    Foreground at the high threshold is that class; background at both is background; the rest is undecided.

    Args:
        maps: of the image; without classes, all is background.
        image: RGB, ``(3, H, W)`` uint8.
        foreground: the high threshold, 0.35 in AdvCAM's code, 0.30 in IRN's; see `LABEL_THRESHOLDS`.
        background: the low threshold, 0.15 in AdvCAM's code, 0.05 in IRN's.
        recipe: of the CRF.
    """
    if not 0 <= background <= foreground:
        raise AdvCAMError(
            f"ir_label: the background threshold {background} must lie between 0 and the foreground's, {foreground}"
        )
    high_res = _checked(maps, image)
    crf, among = DenseCRF(image[None], recipe), (0, *(k + 1 for k in maps.classes))
    sure, likely = (
        refine_labels(crf, threshold_maps(high_res, maps.classes, threshold)[None], among)[0]
        for threshold in (foreground, background)
    )
    return torch.where((sure == 0) & (likely != 0), VOID, sure)


def psa_scores(
    maps: ClassMaps, image: Tensor, alphas: tuple[float, ...] = ALPHAS, recipe: CRFRecipe | str = "psa"
) -> tuple[Tensor, ...]:
    """Return PSA's label scores: the maps and a background score ``(1 - max_k map_k)^alpha``, after the CRF.

    Args:
        maps: of the image; without classes, all is background.
        image: RGB, ``(3, H, W)`` uint8.
        alphas: powers; 4 and 32 in PSA's code, 4 and 24 in SEAM's. The lower, the more background.
        recipe: of the CRF.

    Returns:
        For each power ``(1 + K, H, W)`` float32, the background first, which sum to one over the labels.
    """
    high_res = _checked(maps, image)
    crf = DenseCRF(image[None], recipe)
    return tuple(crf(unary_from_scores(with_background(high_res, alpha)[None]))[0] for alpha in alphas)


def _checked(maps: ClassMaps, image: Tensor) -> Tensor:
    if maps.high_res.shape != (len(maps.classes), *image.shape[1:]):
        raise AdvCAMError(
            f"maps {tuple(maps.high_res.shape)} of {len(maps.classes)} classes do not fit their image of "
            f"{' x '.join(map(str, image.shape[1:]))}; make them again from this image"
        )
    return maps.high_res.to(image.device)
