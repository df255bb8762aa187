"""An image's class maps in; the labels that a dense CRF is sure of, for affinity networks to learn from, out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.refine.crf import CRFRecipe, DenseCRF, refine_labels, unary_from_scores
from advcam_attr.types import VOID, AdvCAMError, ClassMaps

#: Foreground and background thresholds of `ir_label`, by whose code they are; RIB's are those known for COCO.
LABEL_THRESHOLDS = {"irn": (0.30, 0.05), "advcam": (0.35, 0.15), "rib": (0.35, 0.17)}

#: The powers of PSA's background score: low, for what is surely foreground; high, for what is surely background.
ALPHAS = (4.0, 32.0)


def ir_label(
    maps: ClassMaps,
    image: Tensor,
    foreground: float = 0.35,
    background: float = 0.15,
    recipe: CRFRecipe | str = "irn",
) -> Tensor:
    """IRN's confident labels: foreground by a high threshold, background by a low one, undecided between.

    Seeds are cut from the maps at each threshold (a pixel is background where no map exceeds it) and refined by the
    CRF from hard labels, among the background and the image's classes. What the high threshold leaves as foreground is
    that class; what both leave as background is background; the rest is undecided.

    Args:
        maps: of the image; may be of no class, which makes all background.
        image: RGB, ``(3, H, W)`` uint8.
        foreground: the high threshold, 0.35 in AdvCAM's code, 0.30 in IRN's; see `LABEL_THRESHOLDS`.
        background: the low threshold, 0.15 in AdvCAM's code, 0.05 in IRN's.
        recipe: of the CRF.

    Returns:
        ``(H, W)`` uint8: 0, class + 1, or 255.

    Raises:
        AdvCAMError: maps of another size than the image, or thresholds that are not ``0 <= background <= foreground``.

    Example:
        >>> image = torch.tensor([0, 0, 120, 255, 255], dtype=torch.uint8).expand(3, 4, 5)
        >>> scores = torch.tensor([1.0, 0.9, 0.25, 0.05, 0.0]).expand(1, 4, 5)
        >>> ir_label(ClassMaps(classes=(6,), size=(4, 5), cam=scores[:, :1, :2], high_res=scores), image)[0]
        tensor([  7,   7, 255,   0,   0], dtype=torch.uint8)
    """
    if not 0 <= background <= foreground:
        raise AdvCAMError(
            f"ir_label: the background threshold {background} must lie between 0 and the foreground's, {foreground}"
        )
    high_res = _of_size(maps, image)
    labels = torch.tensor([0, *(c + 1 for c in maps.classes)], dtype=torch.uint8, device=high_res.device)
    crf = DenseCRF(image[None], recipe)
    sure, likely = (
        refine_labels(crf, labels[_with_background(high_res, threshold).argmax(0)][None], labels.tolist())[0]
        for threshold in (foreground, background)
    )
    return torch.where((sure == 0) & (likely != 0), VOID, sure)


def psa_scores(
    maps: ClassMaps, image: Tensor, alphas: tuple[float, ...] = ALPHAS, recipe: CRFRecipe | str = "psa"
) -> tuple[Tensor, ...]:
    """PSA's label scores: the maps beside a background score ``(1 - max_k map_k)^alpha``, after the CRF.

    A low power gives the background much room, a high one little: affinity labels take what is foreground by the
    former, and as background what is so by the latter.

    Args:
        maps: of the image; may be of no class, which makes all background.
        image: RGB, ``(3, H, W)`` uint8.
        alphas: the powers; 4 and 32 in PSA's code, 4 and 24 in SEAM's.
        recipe: of the CRF.

    Returns:
        For each power the scores ``(1 + K, H, W)`` float32, the background first; they sum to one over the labels.

    Raises:
        AdvCAMError: maps of another size than the image.

    Example:
        >>> image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        >>> maps = ClassMaps(classes=(6,), size=(2, 2), cam=torch.ones(1, 1, 1), high_res=torch.ones(1, 2, 2))
        >>> low, high = psa_scores(maps, image)
        >>> low[:, 0, 0].round(decimals=3)
        tensor([0., 1.])
    """
    high_res = _of_size(maps, image).clamp(0, 1)
    rest = 1 - _with_background(high_res, 0).amax(0, keepdim=True)
    crf = DenseCRF(image[None], recipe)
    return tuple(crf(unary_from_scores(torch.cat([rest**alpha, high_res])[None]))[0] for alpha in alphas)


def _of_size(maps: ClassMaps, image: Tensor) -> Tensor:
    """The image's full-size maps ``(K, H, W)``, on its device."""
    if maps.high_res.shape != (len(maps.classes), *image.shape[1:]):
        raise AdvCAMError(
            f"maps {tuple(maps.high_res.shape)} of {len(maps.classes)} classes do not fit their image of "
            f"{' x '.join(map(str, image.shape[1:]))}; make them again from this image"
        )
    return maps.high_res.to(image.device)


def _with_background(high_res: Tensor, level: float) -> Tensor:
    """A constant map before those of the classes: ``(K, H, W)`` to ``(1 + K, H, W)``."""
    return F.pad(high_res, (0, 0, 0, 0, 1, 0), value=level)
