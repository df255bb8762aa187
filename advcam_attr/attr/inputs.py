"""What a caller passes to ``attribute`` in; checked tensors, or an error that says what would do, out."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

_TARGETS = "an int, a list of N ints, or an int tensor of shape () or (N,)"


def check_images(inputs: Any) -> tuple[Tensor, bool]:
    """One image batch ``(N, C, H, W)``, detached, float32 (float64 stays), and whether it came in a tuple.

    Raises:
        TypeError: not a tensor or a 1-tuple of one.
        AdvCAMError: the wrong shape or type of numbers.
    """
    boxed = isinstance(inputs, tuple)
    if boxed:
        if len(inputs) != 1:
            raise AdvCAMError(
                f"inputs must be one tensor (N, C, H, W), got a tuple of {len(inputs)}: "
                "pass further ones in additional_forward_args"
            )
        (inputs,) = inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor (N, C, H, W), got {type(inputs).__name__}")
    if inputs.ndim == 3:
        raise AdvCAMError(f"inputs must be (N, C, H, W), got {tuple(inputs.shape)}: add a dimension with inputs[None]")
    if inputs.ndim != 4:
        raise AdvCAMError(f"inputs must be (N, C, H, W), got {tuple(inputs.shape)}")
    if not inputs.is_floating_point():
        raise AdvCAMError(f"inputs must be floating and normalised, got {inputs.dtype}: convert them as for the model")
    if inputs.numel() == 0:
        raise AdvCAMError(f"inputs are empty, {tuple(inputs.shape)}: pass at least one image")
    images = inputs.detach()
    if not bool(images.isfinite().all()):
        raise AdvCAMError("inputs have NaN or infinite values: look at how the images are read and normalised")
    return images if images.dtype == torch.float64 else images.float(), boxed


def check_targets(target: Any, count: int) -> list[int]:
    """One class index an image; negative ones count from the end.

    Args:
        target: as Captum accepts it: an int, a list of ints or of 1-tuples, a tensor; NumPy ints too.
        count: N.

    Raises:
        TypeError: not integers.
        AdvCAMError: none given, or the wrong number.
    """
    if target is None:
        raise AdvCAMError(f"target is missing: pass {_TARGETS}, e.g. model(inputs).argmax(1)")
    if isinstance(target, (Tensor, np.ndarray)):
        kind = target.dtype
        floating = target.is_floating_point() if isinstance(target, Tensor) else target.dtype.kind not in "iu"
        if floating or kind in (torch.bool, np.dtype(bool)):
            raise TypeError(f"target must be {_TARGETS}, got a tensor of {kind}")
        if target.ndim > 1:
            raise AdvCAMError(f"target must be {_TARGETS}, got shape {tuple(target.shape)} (one-hot? use .argmax(1))")
        indices = [int(t) for t in target.reshape(-1).tolist()]
        single = target.ndim == 0 or len(indices) == 1
    elif isinstance(target, (list, tuple)):
        indices = [_index(item) for item in target]
        single = len(indices) == 1
    else:
        indices, single = [_index(target)], True
    if single and len(indices) == 1:
        return indices * count
    if len(indices) != count:
        raise AdvCAMError(f"target has {len(indices)} classes for {count} images: pass one for each, or one for all")
    return indices


def _index(value: Any) -> int:
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool:
        return int(value)
    if isinstance(value, (bool, np.bool_, Tensor)):
        raise TypeError(f"target must be {_TARGETS}, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"target must be {_TARGETS}, got {type(value).__name__} {value!r}") from None


def in_range(indices: Sequence[int], classes: int, device: torch.device) -> Tensor:
    """Class indices as a tensor ``(N,)``, negative ones counted from the end.

    Raises:
        AdvCAMError: a class that the model lacks.
    """
    for index in indices:
        if not -classes <= index < classes:
            raise AdvCAMError(f"target {index} is not a class of the model: it has {classes}, 0 to {classes - 1}")
    return torch.tensor([index % classes for index in indices], device=device)


def check_background(saliency: Any, images: Tensor) -> Tensor | None:
    """Where a saliency map sees background, ``(N, H, W)``, bool.

    Args:
        saliency: foreground as bool or in [0, 1], at most 0.5 being background: (H, W), (1 or N, H, W) or
            (1 or N, 1, H, W), H × W being the images'.
        images: ``(N, C, H, W)``.

    Raises:
        TypeError: not a tensor.
        AdvCAMError: another shape or other values.
    """
    if saliency is None:
        return None
    if not isinstance(saliency, Tensor):
        raise TypeError(f"saliency must be a tensor, got {type(saliency).__name__}")
    maps = saliency.detach()
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    maps = maps[None] if maps.ndim == 2 else maps
    size, (count, _, height, width) = tuple(maps.shape), images.shape
    if maps.ndim != 3 or size[0] not in (1, count) or size[1:] != (height, width):
        raise AdvCAMError(
            f"saliency must be (1 or {count}, {height}, {width}) as the images are, got {tuple(saliency.shape)}"
        )
    if maps.dtype != torch.bool:
        if not maps.is_floating_point() or not bool(((maps >= 0) & (maps <= 1)).all()):
            raise AdvCAMError("saliency must be bool, or floating in [0, 1]: divide 8-bit maps by 255")
        maps = maps > 0.5
    return ~maps.expand(count, -1, -1).to(images.device)
