"""A model's name in; the classifier with its weights, its preprocessing and its class names out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from advcam_attr.networks.backbone import channels
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.networks.sources import Preprocessing, Request, build, is_factory
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class LoadedModel:
    """A classifier, ready for use.

    Attributes:
        name: the specification it was loaded by.
        model: in eval mode, on the CPU, float32 (a factory's model stays where and as the factory made it).
        preprocessing: from the model's own data configuration.
        class_names: by index, or None where nobody knows them.
        weights: where they come from: ``"pretrained"``, ``"random"``, ``"factory"`` or the checkpoint's path.
        fixed_size: whether the model is published for images of one size only.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    weights: str
    fixed_size: bool

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB picture to the model's input, ``(3, H, W)``, float32."""
        return self.preprocessing.transform(image)

    def display(self, x: Tensor) -> Tensor:
        """Inputs ``(..., 3, H, W)`` to the pictures they show, in [0, 1].

        The normalisation is taken back; where nobody knows it, each picture is stretched from its darkest to its
        brightest value.
        """
        if self.preprocessing.mean is None or self.preprocessing.std is None:
            low, high = x.amin((-3, -2, -1), keepdim=True), x.amax((-3, -2, -1), keepdim=True)
            return (x - low) / (high - low).clamp_min(1e-12)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        return (x * std + mean).clamp(0, 1)


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
    """Load a classifier by name.

    Weights are the model's pretrained ones unless ``checkpoint`` or ``random_weights`` says otherwise; a factory makes
    its own. The normalisation is the one given here, else the one that a safetensors checkpoint notes as ``mean`` and
    ``std`` in its metadata, else the model's own. Random weights are the same in every call.

    Args:
        spec: ``timm/NAME``, ``torchvision/NAME``, or ``package.module:factory``, a callable that returns a module. A
            factory's model may bring ``preprocess`` (picture to tensor) or ``pretrained_cfg`` (as timm's models do),
            and ``class_names``; otherwise pictures are prepared as is usual for ImageNet.
        model_args: keyword arguments for the model or the factory.
        checkpoint: a safetensors file, or a torch file of plain weights.
        random_weights: leave the model as it is initialised.
        labels: a text file with one class name a line.
        mean, std: another normalisation, by channel or one number for all.
        input_size: another height and width in pixels.

    Returns:
        The model in eval mode, with all that is needed to use it.

    Raises:
        AdvCAMError: an unknown name (the nearest are told), arguments that the model refuses, weights that cannot be
            had, do not fit or are not finite, labels that do not match.

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
    file = None if checkpoint is None else read_checkpoint(checkpoint)
    names = None if labels is None else read_labels(labels)
    request = Request(
        args=dict(model_args or {}),
        pretrained=file is None and not random_weights,
        mean=channels("mean", mean) or _noted("mean", file),
        std=channels("std", std) or _noted("std", file),
        input_size=input_size,
    )
    built = build(spec, request)
    if names is not None and built.num_classes not in (None, len(names)):
        raise AdvCAMError(f"label file {labels} has {len(names)} names, but {spec} has {built.num_classes} classes")
    if file is not None:
        load_weights(built.model, file, spec)
    _require_finite(built.model, spec)
    origin = str(checkpoint) if file else "random" if random_weights else "factory" if factory else "pretrained"
    return LoadedModel(
        spec, built.model.eval(), built.preprocessing, names or built.class_names, origin, built.fixed_size
    )


def first_published(spec: str) -> Checkpoint:
    """The first ImageNet weights that torchvision published of a model, ``IMAGENET1K_V1``, which papers start from.

    Args:
        spec: ``torchvision/NAME``.

    Raises:
        AdvCAMError: they cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    start = get_model_weights(spec.partition("/")[2])["IMAGENET1K_V1"]
    try:
        return Checkpoint(Path(start.url), start.get_state_dict(progress=False, check_hash=True), {})
    except OSError as error:
        raise AdvCAMError(
            f"the pretrained weights of {spec} cannot be downloaded (no network?); give a checkpoint or random weights"
        ) from error


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the classes.

    Raises:
        AdvCAMError: the file is missing, empty, not text, or has an empty line between names.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except OSError as error:
        raise AdvCAMError(f"cannot read label file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AdvCAMError(f"label file {path} is not UTF-8 text with one class name a line") from error
    if not lines:
        raise AdvCAMError(f"label file {path} is empty; it needs one class name a line")
    if "" in lines:
        raise AdvCAMError(f"line {lines.index('') + 1} of label file {path} is empty; it needs one class name a line")
    return tuple(lines)


def _noted(what: str, checkpoint: Checkpoint | None) -> tuple[float, ...] | None:
    """The normalisation that a checkpoint's metadata notes as numbers between spaces, if it does."""
    try:
        values = [float(v) for v in checkpoint.metadata[what].split()] if checkpoint else None
        return channels(what, values)
    except (KeyError, ValueError):
        return None


def _require_finite(model: nn.Module, spec: str) -> None:
    broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if broken:
        raise AdvCAMError(f"{spec} has NaN or infinite weights, first in {broken[0]}; give other weights")
