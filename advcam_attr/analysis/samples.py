"""Results of single climbs in; one result over the rows of all of them, and numbers as JSON has them, out."""

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
    """Put the results of several climbs together: tensors one below the other, all else as the first has it.

    Args:
        parts: frozen dataclasses of one type, whose tensors have rows first.

    Raises:
        AdvCAMError: there is none, or the climbs differ in what belongs to no row (their steps, for one).

    Example:
        >>> from advcam_attr.analysis.score_curves import ScoreCurves
        >>> part = ScoreCurves((0.0, 1.0), torch.rand(2, 2), torch.rand(2, 2))
        >>> concatenate([part, part]).cam.shape
        torch.Size([4, 2])
    """
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
    merged: T = dataclasses.replace(first, **changes)
    return merged


def as_json(value: Any) -> Any:
    """A value as JSON can have it: no NaN or infinity, names and texts for what JSON does not know.

    Example:
        >>> as_json({"a": (1, float("nan")), 2: {"b": torch.add}})
        {'a': [1, None], '2': {'b': 'add'}}
    """
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else getattr(value, "__name__", repr(value))


def rounded(values: Tensor, digits: int = 6) -> Any:
    """A tensor as JSON has it, in nested lists of rounded numbers, None for what is not finite.

    Example:
        >>> rounded(torch.tensor([[0.5, float("nan")]]))
        [[0.5, None]]
    """
    if values.ndim:
        return [rounded(value, digits) for value in values]
    number = float(values)
    return round(number, digits) if math.isfinite(number) else None
