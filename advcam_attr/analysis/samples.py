"""Results over samples (image-class pairs): joining those of several climbs, and rounding them for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

T = TypeVar("T")


def concatenate(parts: Sequence[T]) -> T:
    """Join results of several climbs: frozen dataclasses, tensors with samples first, all other fields equal."""
    if not parts:
        raise AdvCAMError("there is nothing to analyze: no image has a class to climb")
    first: Any = parts[0]
    changes = {}
    for field in dataclasses.fields(first):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Tensor):
            changes[field.name] = torch.cat(values)
        elif any(value != values[0] for value in values):
            raise AdvCAMError(f"the climbs differ in {field.name}: {values[0]} and {values[-1]}")
    joined: T = dataclasses.replace(first, **changes)
    return joined


def rounded(values: Tensor, digits: int = 6) -> Any:
    """Return a tensor for JSON: nested lists of rounded numbers, None for what is not finite."""
    if values.ndim:
        return [rounded(value, digits) for value in values]
    number = float(values)
    return round(number, digits) if math.isfinite(number) else None
