"""``advcam inspect``: the heads of models and the CAM methods they support."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.output import say
from advcam_attr.cli.parser import MODEL_HELP, Command, Parser, add_model_options, model_choice
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.heads import Head
    from advcam_attr.networks.loaded_model import LoadedModel


def _add_options(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("--layer", type=str, metavar="NAME", help="module whose output is mapped (default: found)")


def _run(options: Namespace) -> None:
    errors = []
    for spec in options.models:
        try:
            say(_inspect(spec, options))
        except AdvCAMError as error:
            errors.append(str(error))
    if errors:
        raise AdvCAMError("; ".join(errors))


def _inspect(spec: str, options: Namespace) -> str:
    import torch

    from advcam_attr.heads import view
    from advcam_attr.networks.sources import is_factory
    from advcam_attr.pipelines.model import head_at

    loaded = model_choice(spec, options, options.checkpoint is None and not is_factory(spec)).load()
    size = loaded.preprocessing.size or (224, 224)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return inspection(loaded, head_at(view(loaded.model, options.layer), image, spec))


def inspection(loaded: LoadedModel, head: Head) -> str:
    """Return the lines that describe a model's head: layer, grid, stride, exactness of CAM, and the input."""
    prepared = loaded.preprocessing
    size = "any size"
    if prepared.size is not None:
        other = (
            " only (other sizes need --input-size or --model-args)" if loaded.fixed_size else "; other sizes work too"
        )
        size = f"{prepared.size[0]} x {prepared.size[1]} pixels{other}"
    lines = {"input": size}
    if prepared.mean is not None and prepared.std is not None:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (prepared.mean, prepared.std))
        lines["normalised"] = f"mean {mean}, std {std}"
    about = [*str(head).splitlines(), *(f"{name:<11} {text}" for name, text in lines.items())]
    return "\n".join([loaded.name, *(f"  {line}" for line in about)])


COMMAND = Command("describe a model's head and the CAM methods it supports; needs no weights", _add_options, _run)
