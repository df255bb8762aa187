"""Look-up of objects by name, with suggestions for misspelt names."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from advcam_attr.types import AdvCAMError, UnknownOptionError

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

R = TypeVar("R")
T = TypeVar("T")


#: What options are called elsewhere (Captum, pytorch-grad-cam, torch-cam, attack libraries), by our name.
_MEANINGS = {
    "layer": "target_layer target_layers layers module conv_layer feature_layer layer_name",
    "steps": "n_steps num_steps n_iter num_iter iterations iters nb_iter max_iter",
    "step_rule": "eps epsilon alpha lr learning_rate step_size stepsize norm xi",
    "base": "method algorithm cam cam_type attribution explainer",
    "regularizers": "regularizer regularization lambda_ lam penalty weight_decay",
    "mask": "tau threshold score_th",
    "objective": "loss loss_fn criterion",
    "stop": "early_stop early_stopping patience",
    "scales": "scale sizes multi_scale",
    "flip": "flips hflip horizontal_flip tta aug_smooth",
    "clamp": "clip bounds clip_min clip_max",
    "autocast": "amp fp16 bf16 half precision dtype mixed_precision",
    "target": "targets category label labels class_idx class_index target_category class_",
    "inputs": "input input_tensor images image x img",
    "internal_batch_size": "batch_size perturbations_per_eval",
    "additional_forward_args": "forward_args extra_args",
    "normalize": "normalized normalise relu_attributions",
    "show_progress": "progress verbose progress_bar",
    "model": "net forward_func module_",
}
_MEANT = {other: name for name, others in _MEANINGS.items() for other in others.split()}


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that ``name`` resembles, in meaning (``n_steps`` is ``steps``) or in letters."""
    plain, word = {_plain(k): k for k in known if k}, _plain(name)
    if (meant := _MEANT.get(word)) in plain:
        return [plain[meant]]
    longer = sorted((k for k in plain if len(word) > 2 and k.startswith(word)), key=len)
    return [plain[k] for k in (longer or difflib.get_close_matches(word, plain, n=3, cutoff=0.6))[:3]]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for a misspelt name; if none is similar, all known names if few."""
    names = [k for k in known if k]
    close = similar(name, names)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; there are " + ", ".join(sorted(names)) if len(names) <= 20 else ""


def suggests_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that a keyword it does not have is an `UnknownOptionError` with suggestions."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = type(args[0]).__name__ if function.__name__ == "__init__" else function.__qualname__
        require_options(owner, kwargs, names)
        return function(*args, **kwargs)

    return checked


def require_options(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownOptionError` unless ``given`` are all known."""
    names = list(known)
    for name in given:
        if name not in names:
            raise UnknownOptionError(f"{owner} has no option {name!r}{nearest(name, names)}")


def lookup(value: Any, table: Mapping[str, T], what: str) -> T | Any:
    """Return ``table[value]`` for a name, and any other value itself.

    Raises:
        AdvCAMError: unknown name; the message suggests the nearest ones.
    """
    if not isinstance(value, str):
        return value
    if value not in table:
        raise AdvCAMError(f"unknown {what} {value!r}{nearest(value, table)}")
    return table[value]


def require_callable(value: Any, what: str) -> Callable[..., Any]:
    """Return ``value`` if it is callable; a `TypeError` otherwise."""
    if isinstance(value, type):
        raise TypeError(f"{what} must be an object: pass {value.__name__}(...), not the class")
    if not callable(value):
        raise TypeError(f"{what} must be a name or a callable, got {type(value).__name__} {value!r}")
    return value
