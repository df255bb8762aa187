"""Classifiers as timm, torchvision or a user's factory builds them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from advcam_attr.networks.checkpoint import seeded
from advcam_attr.networks.loaded_model import LoadedModel, Preprocessing, Request
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

_NEED_WEIGHTS = "give --checkpoint FILE or --random-weights"

#: Arguments of `timm.create_model` that name files and addresses of weights.
_LOADING_ARGS = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "pretrained_model_args"}

#: Raised by constructors that reject their arguments.
_ARGUMENT_ERRORS = (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, KeyError)


class ModelArgsError(AdvCAMError):
    """Keyword arguments that a model's constructor rejects."""


def is_factory(spec: str) -> bool:
    return ":" in spec and "/" not in spec


def build(spec: str, request: Request) -> LoadedModel:
    """Build ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``."""
    source, _, name = spec.partition("/")
    if source == "timm" and name:
        return _from_timm(spec, name, request)
    if source == "torchvision" and name:
        return _from_torchvision(spec, name, request)
    if is_factory(spec):
        return _from_factory(spec, request)
    names = [f"timm/{n}" for n in _timm_names()] + [f"torchvision/{n}" for n in _torchvision_names()]
    close = [n for n in names if n.split("/")[1] == spec] or difflib.get_close_matches(spec, names)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise AdvCAMError(f"model {spec!r} is none of timm/NAME, torchvision/NAME and package.module:factory{hint}")


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _from_timm(spec: str, name: str, request: Request) -> LoadedModel:
    import timm
    from timm.data import resolve_data_config

    args = dict(request.args)
    if loading := sorted(_LOADING_ARGS & args.keys()):
        raise AdvCAMError(f"{spec} takes no {loading[0]} here, which would load other weights: give --checkpoint FILE")
    config = _timm_config(spec, name)
    fixed = bool(config.get("fixed_input_size"))
    if request.pretrained:
        _require_classes(spec, args, config.get("num_classes"))
        if not (config.get("url") or config.get("hf_hub_id") or config.get("file") or ":" in name):
            raise AdvCAMError(f"{spec} has no pretrained weights; {_NEED_WEIGHTS}")
        _require_hub(spec, config)
    if request.input_size and fixed:
        args.setdefault("img_size", request.input_size)
    with _construction(spec, request):
        model = timm.create_model(name, pretrained=request.pretrained, **args)
    img_size = args.get("img_size")
    data = resolve_data_config(
        {
            "mean": request.mean,
            "std": request.std,
            "input_size": request.input_shape,
            "img_size": img_size if isinstance(img_size, int) or img_size is None else int(img_size[0]),
        },
        pretrained_cfg=model.pretrained_cfg,
    )
    if data["input_size"][0] != 3 or args.get("in_chans", 3) != 3:
        raise AdvCAMError(f"{spec} takes images of {args.get('in_chans', data['input_size'][0])} channels; RGB has 3")
    num_classes = int(model.num_classes)
    names = _timm_class_names(model.pretrained_cfg, num_classes)
    return LoadedModel(spec, model, _from_data_config(data), names, "pretrained", fixed, num_classes)


def _require_classes(spec: str, args: Mapping[str, Any], published: int | None) -> None:
    if published and args.get("num_classes", published) != published:
        raise AdvCAMError(
            f"the pretrained weights of {spec} have {published} classes: with num_classes={args['num_classes']} its "
            f"classifier would be untrained; {_NEED_WEIGHTS}"
        )


def _timm_config(spec: str, name: str) -> dict[str, Any]:
    """The published configuration of a name; empty for models of the hub, which have their own."""
    import timm

    if ":" in name:
        return {}
    if not timm.is_model(name):
        raise AdvCAMError(f"unknown model {spec!r}{nearest(name.split('.')[0], _timm_names())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a known architecture, but not this tag
        tags = timm.list_pretrained(name.split(".")[0] + ".*")
        raise AdvCAMError(f"unknown weights {spec!r}{nearest(name, tags)}") from error
    return config.to_dict() if config else {}


def _from_data_config(data: Mapping[str, Any]) -> Preprocessing:
    from timm.data import create_transform

    transform = create_transform(**data, is_training=False)
    return Preprocessing(transform, tuple(data["mean"]), tuple(data["std"]), tuple(data["input_size"][1:]))


def _timm_class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Names from the model's configuration, else ImageNet's if the number of classes is one of ImageNet's.

    With 1001 classes, the first is "background", as in TensorFlow's ImageNet models.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = config.get("label_names")
    if names and len(names) == num_classes:
        descriptions = config.get("label_descriptions") or {}
        return tuple(str(descriptions.get(n, n)) for n in names)
    background = num_classes == 1001
    subset = infer_imagenet_subset({"num_classes": num_classes - background})
    if subset is None:
        return None
    return ("background",) * background + tuple(ImageNetInfo(subset).label_descriptions())


# --- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _from_torchvision(spec: str, name: str, request: Request) -> LoadedModel:
    import torchvision

    if name not in _torchvision_names():
        raise AdvCAMError(f"unknown model {spec!r}{nearest(name, _torchvision_names())}")
    published = torchvision.models.get_model_weights(name)
    args = dict(request.args)
    num_classes = int(args.get("num_classes", 1000))
    if request.pretrained:
        weights = published.DEFAULT
        _require_classes(spec, {"num_classes": num_classes}, len(weights.meta["categories"]))
        cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
        if not cached.is_file() and not _answers(weights.url):
            raise unreachable(spec)
    else:  # a model built with default arguments takes the smallest of the published sizes
        weights = min(published, key=lambda w: w.transforms().crop_size[0])
    with _construction(spec, request):
        model = torchvision.models.get_model(name, weights=weights if request.pretrained else None, **args)
    changes: dict[str, Any] = {"mean": request.mean, "std": request.std}
    size = request.input_size or args.get("image_size")
    if size:
        own = weights.transforms()
        changes |= {"crop_size": size, "resize_size": round(own.resize_size[0] * size / own.crop_size[0])}
    transform = weights.transforms(**{k: v for k, v in changes.items() if v is not None})
    preprocessing = Preprocessing(transform, tuple(transform.mean), tuple(transform.std), (transform.crop_size[0],) * 2)
    categories = tuple(weights.meta["categories"])
    fixed = hasattr(model, "image_size") or name.startswith("maxvit")
    names = categories if len(categories) == num_classes else None
    return LoadedModel(spec, model, preprocessing, names, "pretrained", fixed, num_classes)


# --- a user's factory -------------------------------------------------------------------------------------------------


def _from_factory(spec: str, request: Request) -> LoadedModel:
    from timm.data import resolve_data_config

    with _importable(os.getcwd()):
        factory = _find(spec)
        model = factory if isinstance(factory, nn.Module) else _call(spec, factory, request.args)
    if not isinstance(model, nn.Module):
        raise AdvCAMError(f"{spec} returned {type(model).__name__}; a torch.nn.Module is needed")
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, Mapping) else {}
    names = getattr(model, "class_names", None) or config.get("label_names")
    own = getattr(model, "preprocess", None)
    if callable(own):
        preprocessing = _own_preprocessing(own, request)
    else:
        overrides = {"mean": request.mean, "std": request.std, "input_size": request.input_shape}
        defaults = {"interpolation": "bilinear", "crop_pct": 0.875}
        preprocessing = _from_data_config(resolve_data_config(overrides, pretrained_cfg={**defaults, **config}))
    fixed = bool(config.get("fixed_input_size"))
    return LoadedModel(spec, model, preprocessing, tuple(map(str, names)) if names else None, "factory", fixed)


def _own_preprocessing(transform: Callable[[Image.Image], Tensor], request: Request) -> Preprocessing:
    """A factory's own transform; its normalization is found among its steps."""
    if request.mean or request.std or request.input_size:
        raise AdvCAMError("the model has its own preprocess, so --mean, --std and --input-size do not apply")
    steps: Sequence[Any] = getattr(transform, "transforms", [transform])
    found = [s for s in steps if hasattr(s, "mean") and hasattr(s, "std")]
    if not found:
        return Preprocessing(transform, None, None, None)
    return Preprocessing(transform, tuple(map(float, found[-1].mean)), tuple(map(float, found[-1].std)), None)


def _find(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports is missing: the user needs the traceback
        raise AdvCAMError(f"no module named {error.name!r} for model {spec!r}: run where it can be imported") from error
    except (TypeError, ValueError) as error:
        raise AdvCAMError(f"{spec!r} does not read as package.module:factory") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise AdvCAMError(f"module {module_name} has no {attribute!r}{nearest(part, vars(module))}")
        found = getattr(found, part)
    if not _makes_models(found):
        kind = f"class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise AdvCAMError(f"{spec} is a {kind}; a function that returns a torch.nn.Module, or its class, is needed")
    return found


def _makes_models(found: Any) -> bool:
    """Whether an object is a module, a class of modules or a Python function; not a C function, as ``os.system``."""
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    inner = found.func if isinstance(found, functools.partial) else inspect.unwrap(found) if callable(found) else found
    return isinstance(found, nn.Module) or inspect.isfunction(inner) or inspect.ismethod(inner)


def _call(spec: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        raise ModelArgsError(f"{spec} does not take the arguments {dict(args)}: {error}") from error
    with seeded(0):
        return factory(**args)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


# --- weights ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _construction(spec: str, request: Request) -> Iterator[None]:
    """Make a model in a block: quiet, reproducible, and with rejected arguments and failed downloads in one line."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), seeded(0):
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        if not request.pretrained:
            raise
        raise unreachable(spec) from error
    except _ARGUMENT_ERRORS as error:
        if not request.args and not request.input_size:
            raise
        raise ModelArgsError(f"{spec} does not take the arguments {dict(request.args)}: {error}") from error
    finally:
        hub.setLevel(level)


def unreachable(spec: str) -> AdvCAMError:
    return AdvCAMError(f"the pretrained weights of {spec} cannot be downloaded (no network?); {_NEED_WEIGHTS}")


def _require_hub(spec: str, config: Mapping[str, Any]) -> None:
    """Ask the hub once: its client retries for most of a minute before it reports that there is no network."""
    import huggingface_hub
    from huggingface_hub import constants

    repository = config.get("hf_hub_id")
    if not repository or config.get("file"):
        return
    files = [config.get("hf_hub_filename") or "model.safetensors", "pytorch_model.bin"]
    cached = any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in files)
    if not cached and (constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)):
        raise unreachable(spec)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
