"""The few shared dataclasses, and the letters in which every tensor's shape is written.

N images, R rows (one row is one image and one class), V views of a row (1, or 2 for an image and its
mirror image), B = R·V views in a batch, K classes, C channels, H, W the image, h, w the map's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class AdvCAMError(ValueError):
    """Input that cannot be used; its message is one line that names the input and the fix."""


@dataclass(frozen=True)
class ClimbStep:
    """What one climbing step saw; all tensors are detached.

    Attributes:
        index: 0 for the clean image, then 1, 2, ...
        x: the climbed images, ``(R, V, C, H, W)``, float32.
        logits: the class scores at ``x``, ``(R, V, K)``.
        maps: the base attribution at ``x``, its views brought back and summed, ``(R, h, w)``.
        objective: what the step climbs, ``(R,)``.
        climbing: which rows had not reached their end before this step, ``(R,)``, bool: their maps count; the others
            stand still.
    """

    index: int
    x: Tensor
    logits: Tensor
    maps: Tensor
    objective: Tensor
    climbing: Tensor
