"""Classifiers by name, with weights, preprocessing and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from advcam_attr.networks.backbone import channels
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.networks.loaded_model import LoadedModel, Request
from advcam_attr.networks.sources import build, is_factory, unreachable
from advcam_attr.networks.trust import require_trusted
from advcam_attr.reading import read_lines
from advcam_attr.types import AdvCAMError, check_resized


def load_model(
    spec: str,
    *,
    model_args: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    labels: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
) -> LoadedModel:
    """Load a classifier by name, in eval mode, with its preprocessing and class names.

    Weights are the model's pretrained ones unless ``checkpoint`` or ``random_weights`` is given; a factory makes its
    own. The normalization is the one given here, else ``mean`` and ``std`` in the metadata of a safetensors checkpoint,
    else the model's own. Random weights are the same in every call.

    Args:
        spec: ``timm/NAME``, ``torchvision/NAME``, or ``package.module:factory``, a callable that returns a module. A
            factory's model may have ``preprocess`` (image to tensor) or ``pretrained_cfg`` (as timm's models do),
            and ``class_names``; otherwise images are prepared as is usual for ImageNet.
        model_args: keyword arguments for the model or the factory.
        checkpoint: a safetensors file, or a torch file of plain weights.
        random_weights: leave the model as initialized.
        labels: a text file with one class name a line.
        mean, std: another normalization, by channel or one number for all.
        input_size: another height and width in pixels.

    Raises:
        AdvCAMError: an unknown name (similar ones are listed), arguments that the model rejects, weights that cannot be
            downloaded, do not fit or are not finite, labels that do not match.

    Example:
        >>> loaded = load_model("torchvision/squeezenet1_1", random_weights=True)
        >>> loaded.preprocessing.size, loaded.class_names[1]
        ((224, 224), 'goldfish')
    """
    factory = is_factory(spec)
    if checkpoint is not None and random_weights:
        raise AdvCAMError("a checkpoint and random weights exclude each other: give one of the two")
    if factory and random_weights:
        raise AdvCAMError(f"random weights do not apply to {spec}: a factory makes its own; ask it by --model-args")
    if input_size is not None and input_size < 1:
        raise AdvCAMError(f"the input size must be positive, got {input_size}")
    check_resized(input_size or 1, input_size or 1, "lower the input size")
    file = None if checkpoint is None else read_checkpoint(checkpoint)
    names = None if labels is None else read_labels(labels)
    request = Request(
        args=dict(model_args or {}),
        pretrained=file is None and not random_weights,
        mean=channels("mean", mean) or (normalization_of(file, "mean") if file else None),
        std=channels("std", std) or (normalization_of(file, "std") if file else None),
        input_size=input_size,
    )
    loaded = build(spec, request)
    if names is not None and loaded.num_classes not in (None, len(names)):
        raise AdvCAMError(f"label file {labels} has {len(names)} names, but {spec} has {loaded.num_classes} classes")
    if file is not None:
        load_weights(loaded.model, file, spec)
    _require_finite(loaded.model.eval(), spec)
    origin = str(checkpoint) if file else "random" if random_weights else loaded.weights
    return replace(loaded, class_names=names or loaded.class_names, weights=origin)


def load_configured(spec: str, **options: Any) -> LoadedModel:
    """Load a classifier that a configuration or file names: `load_model`, for names that need no trust or have it.

    Raises:
        UntrustedFactoryError: see `advcam_attr.networks.trust`; other errors as of `load_model`.
    """
    require_trusted(spec)
    return load_model(spec, **options)


def first_published(spec: str) -> Checkpoint:
    """Return the first ImageNet weights that torchvision published of ``torchvision/NAME``, which papers start from."""
    from torchvision.models import get_model_weights

    start = get_model_weights(spec.partition("/")[2])["IMAGENET1K_V1"]
    try:
        return Checkpoint(Path(start.url), start.get_state_dict(progress=False, check_hash=True), {})
    except OSError as error:
        raise unreachable(spec) from error


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the classes."""
    lines = [line.strip() for line in read_lines(Path(path), "label file")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise AdvCAMError(f"label file {path} is empty; it needs one class name a line")
    if "" in lines:
        raise AdvCAMError(f"line {lines.index('') + 1} of label file {path} is empty; it needs one class name a line")
    return tuple(lines)


def normalization_of(checkpoint: Checkpoint, name: str) -> tuple[float, ...] | None:
    """Return ``mean`` or ``std`` from a checkpoint's metadata; None if it has no such numbers."""
    try:
        return channels(name, checkpoint.floats(name))
    except (KeyError, ValueError):
        return None


def _require_finite(model: nn.Module, spec: str) -> None:
    broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if broken:
        raise AdvCAMError(f"{spec} has NaN or infinite weights, first in {broken[0]}; give other weights")
