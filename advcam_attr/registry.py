"""Look-up of objects by name, with suggestions for misspelt and foreign names."""

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

#: Names of one meaning, here, in configurations, and elsewhere: Captum, pytorch-grad-cam, torch-cam, attack libraries,
#: trainers. A name may have several.
_SYNONYMS = tuple(
    frozenset(names.split())
    for names in (
        "layer target_layer target_layers layers module conv_layer feature_layer layer_name",
        "steps n_steps num_steps n_iter num_iter iterations iters nb_iter max_iter max_iters adv_iter",
        "step_rule eps epsilon alpha lr learning_rate step_size stepsize norm xi",
        "lr learning_rate base_lr",
        "base method algorithm cam cam_type attribution explainer",
        "regularizers regularizer regularization lambda_ lam penalty",
        "weight_decay penalty wd wt_dec",
        "mask tau threshold score_th",
        "objective loss loss_fn criterion",
        "stop early_stop early_stopping patience",
        "scales scale sizes multi_scale",
        "flip flips hflip horizontal_flip tta aug_smooth",
        "clamp clip bounds clip_min clip_max",
        "autocast amp fp16 bf16 half precision dtype mixed_precision",
        "target targets category label class_idx class_index target_category class_",
        "labels class_names names",
        "inputs input input_tensor images image x img",
        "internal_batch_size batch_size perturbations_per_eval",
        "batch batch_size bs samples_per_gpu",
        "additional_forward_args forward_args extra_args",
        "normalize normalized normalise relu_attributions",
        "show_progress progress verbose progress_bar",
        "model name net arch architecture network forward_func module_",
        "recipe preset",
        "device gpu gpus cuda use_cuda accelerator",
        "workers num_workers n_workers jobs n_jobs threads",
        "out run out_dir output output_dir save_dir work_dir log_dir",
        "checkpoint weights ckpt pretrained load_from",
        "epochs num_epochs n_epochs max_epochs",
        "overwrite force",
        "seed random_seed manual_seed",
        "crop crop_size",
        "input_size size image_size img_size",
        "root data data_dir data_root dataset data_path voc12_root",
        "logger log tensorboard wandb",
    )
)


def similar(name: str, known: Iterable[str], deeper: Iterable[str] = ()) -> list[str]:
    """Return at most three known names that ``name`` resembles, in meaning (``n_steps`` is ``steps``) or in letters.

    Args:
        name: as given, maybe with the dashes of an option.
        known: names, maybe with sections, ``"a.b"``.
        deeper: further names, for those of the same meaning alone.
    """
    plain, word = {_plain(k): k for k in known if k}, _plain(name)
    meant = _same_meaning(word, plain.values()) or _same_meaning(word, deeper)
    if meant:
        return meant[:3]
    longer = sorted((k for k in plain if len(word) > 2 and k.startswith(word)), key=len)
    return [plain[k] for k in (longer or difflib.get_close_matches(word, plain, n=3, cutoff=0.6))[:3]]


def _same_meaning(word: str, known: Iterable[str]) -> list[str]:
    section, _, last = word.rpartition(".")
    means = (set() if section else {last}).union(*(names for names in _SYNONYMS if last in names))
    return [k for k in dict.fromkeys(known) if _plain(k).rpartition(".")[2] in means]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def nearest(name: str, known: Iterable[str], deeper: Iterable[str] = ()) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for a misspelt name; if none is similar, all known names if few."""
    names = [k for k in known if k]
    others = "; there are " + ", ".join(sorted(names)) if len(names) <= 20 else ""
    return close_to(name, names, deeper) or others


def close_to(name: str, known: Iterable[str], deeper: Iterable[str] = ()) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for a misspelt name; nothing if none is similar."""
    close = similar(name, known, deeper)
    return "; did you mean " + " or ".join(repr(c) for c in close) + "?" if close else ""


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
