"""The saliency rule of pseudo masks: pixels on which labels and saliency disagree are ambiguous."""

from __future__ import annotations

from torch import Tensor

from advcam_attr.types import VOID, AdvCAMError


def ambiguous(labels: Tensor, saliency: Tensor, threshold: float = 0.5) -> Tensor:
    """Mark as void (255) the foreground that is not salient and the background that is (paper, section 4.5).

    Args:
        labels: ``(..., H, W)`` integers, 0 the background; 255 stays 255.
        saliency: of the same shape, from 0 to 1.
        threshold: above which a pixel is salient. The paper does not give it; 0.5 is this package's choice.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, 0, 7, 7]], dtype=torch.uint8)
        >>> ambiguous(labels, torch.tensor([[0.1, 0.9, 0.2, 0.8]]))
        tensor([[  0, 255, 255,   7]], dtype=torch.uint8)
    """
    if labels.shape != saliency.shape:
        raise AdvCAMError(
            f"saliency map {tuple(saliency.shape)} and label map {tuple(labels.shape)} differ in size; resize the first"
        )
    if saliency.numel() and not 0 <= float(saliency.min()) <= float(saliency.max()) <= 1:
        raise AdvCAMError(
            f"saliency must lie in 0..1, got {float(saliency.min()):g} to {float(saliency.max()):g}; "
            "divide 8-bit maps by 255"
        )
    return labels.masked_fill((labels > 0) != (saliency > threshold), VOID)
