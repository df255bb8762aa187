"""Checkpoints: reading weights without running code, and loading them into a model."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advcam_attr.networks.torch_file import ForeignPickleError, read_torch_file
from advcam_attr.tensor_files import read_tensors
from advcam_attr.types import AdvCAMError

#: Keys under which training scripts store the weights; plain weights come before averaged ones.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema",
)

#: A BatchNorm counter that old files lack and that no forward reads in eval mode.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file by key, wrappers removed, and the metadata of a safetensors file."""

    path: Path
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def floats(self, name: str) -> tuple[float, ...]:
        """Return the numbers in a metadata entry; KeyError or ValueError if there are none."""
        return tuple(float(v) for v in self.metadata[name].split())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file, or a torch file of plain weights, in its precision; no code of the file is run.

    Args:
        path: a file ending in ``.safetensors``, or any file that ``torch.save`` wrote from a state dict or from a
            dict with one under ``state_dict``, ``model`` or the like.

    Raises:
        AdvCAMError: the file is missing, damaged, a pickle of more than weights, or holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise AdvCAMError(f"no such checkpoint file: {path}")
    if path.suffix.lower() == ".safetensors":
        content, metadata = read_tensors(path)
    else:
        content, metadata = _read_torch(path), {}
    weights = {str(key): value for key, value in _unwrap(content).items() if isinstance(value, Tensor)}
    if not weights:
        raise AdvCAMError(f"checkpoint {path} holds no weights; save model.state_dict()")
    return Checkpoint(path, weights, metadata)


def _read_torch(path: Path) -> Any:
    try:
        return read_torch_file(path)
    except ForeignPickleError as error:
        raise AdvCAMError(
            f"checkpoint {path} is rejected: it is a pickle of more than plain weights, which could run code; "
            "save model.state_dict() alone, with torch.save or safetensors"
        ) from error
    except AdvCAMError as error:
        raise AdvCAMError(
            f"cannot read checkpoint {path}: neither safetensors (by its name) nor plain torch weights, or damaged"
        ) from error


def _unwrap(content: Any) -> Mapping[Any, Any]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return {}


def load_weights(model: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load the weights of a checkpoint into a model, named in errors, cast to the model's own precision.

    A prefix that all keys share and the model's do not (``module.``, ``_orig_mod.``, ``model.``) is removed. The model
    is left unchanged unless everything fits.

    Raises:
        AdvCAMError: keys are missing or unexpected, shapes differ, or weights are not finite; they are listed.
    """
    expected = model.state_dict()
    weights = without_prefix(checkpoint.weights, expected)
    missing = [key for key in expected if key not in weights and not key.endswith(_COUNTER)]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        problems = [f"{len(keys)} {kind} keys ({_few(keys)})" for kind, keys in kinds if keys]
        raise AdvCAMError(
            f"checkpoint {checkpoint.path} does not fit {name}: {' and '.join(problems)}; "
            "is it of another architecture, or does it need --model-args?"
        )
    reshaped = [key for key in weights if weights[key].shape != expected[key].shape]
    if reshaped:
        shapes = (f"{k} {tuple(weights[k].shape)} for {tuple(expected[k].shape)}" for k in reshaped)
        raise AdvCAMError(
            f"checkpoint {checkpoint.path} does not fit {name}: {len(reshaped)} shapes differ ({_few(shapes)})"
            + _class_count_advice([(weights[k].shape, expected[k].shape) for k in reshaped])
        )
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise AdvCAMError(f"checkpoint {checkpoint.path} is rejected: NaN or infinite weights in {_few(broken)}")
    model.load_state_dict(dict(weights), strict=False)


def without_prefix(weights: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """Return the weights without the prefixes that all keys share and no expected key starts with."""
    while True:
        first = {key.split(".", 1)[0] for key in weights}
        if len(first) > 1 or any("." not in key for key in weights):
            return weights
        prefix = first.pop() + "."
        if any(key.startswith(prefix) for key in expected):
            return weights
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}


def out_channels(weights: Mapping[str, Tensor], layer: str, default: int) -> int:
    """Return the number of output channels of a layer in a file; a default if the file lacks it."""
    kernel = weights.get(f"{layer}.weight")
    return len(kernel) if kernel is not None and kernel.ndim and kernel.numel() else default


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the random numbers of a block, e.g. new weights, from a seed; the global random state is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _class_count_advice(shapes: Iterable[tuple[torch.Size, torch.Size]]) -> str:
    counts = {found[0] for found, wanted in shapes if found[1:] == wanted[1:]}
    if len(counts) != 1:
        return ""
    found = counts.pop()
    return f"; if these are its classes, --model-args '{{\"num_classes\": {found}}}' makes room for {found}"


def _few(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit] + ["..."] * (len(names) > limit))
