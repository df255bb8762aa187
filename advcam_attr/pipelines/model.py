"""The choice of a classifier, and its head at an image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from advcam_attr.heads import Head, HeadView
from advcam_attr.networks.load import load_model
from advcam_attr.networks.loaded_model import LoadedModel
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class ModelChoice:
    """A classifier and its weights; see `advcam_attr.networks.load_model`."""

    spec: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    random_weights: bool = False
    labels: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None

    def load(self) -> LoadedModel:
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "spec"}
        return load_model(self.spec, **options)


def head_at(
    view: HeadView, x: Tensor, spec: str, *, class_weights: bool = False, remedy: str = "try --input-size"
) -> Head:
    """Return a model's head for images of the size of ``x``, ``(3, H, W)``.

    Args:
        spec: the model's name in messages.
        class_weights: whether they are needed.
        remedy: for a model that does not take images of this size.
    """
    try:
        return (view.require if class_weights else view.inspect)(x[None])
    except AdvCAMError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason, pixels = " ".join(str(error).split()), " x ".join(map(str, x.shape[1:]))
        raise AdvCAMError(f"{spec} does not take images of {pixels} pixels ({reason}); {remedy}") from error
