"""``advcam inspect`` and ``advcam census``: what the heads of models allow."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.options import MODEL_HELP, add_model_options, model_choice
from advcam_attr.cli.parser import Command, Parser, fail
from advcam_attr.heads import Head
from advcam_attr.networks.load import LoadedModel


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("--layer", type=str, metavar="NAME", help="module whose output is mapped (default: found)")


def _inspect(options: Namespace) -> int:
    from advcam_attr.types import AdvCAMError

    errors = []
    for spec in options.models:
        try:
            print(_inspection(spec, options))
        except AdvCAMError as error:
            errors.append(str(error))
    return fail("; ".join(errors)) if errors else 0


def _inspection(spec: str, options: Namespace) -> str:
    """What there is to tell of one model."""
    import torch

    from advcam_attr.cli.inspect import inspection
    from advcam_attr.heads import view
    from advcam_attr.networks.sources import is_factory
    from advcam_attr.pipelines.model import head_at

    loaded = model_choice(spec, options, options.checkpoint is None and not is_factory(spec)).load()
    size = loaded.preprocessing.size or (224, 224)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return inspection(loaded, head_at(view(loaded.model, options.layer), image, spec))


def _add_census(parser: Parser) -> None:
    parser.add_argument("--out", type=str, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--filter", type=str, default="*", metavar="PATTERN", help="e.g. 'timm/resnet*'")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: %(default)s)")


def _census(options: Namespace) -> int:
    import timm
    import torchvision
    from tqdm import tqdm

    from advcam_attr.files import replacing
    from advcam_attr.heads.census import census, summary, write_markdown

    entries = list(tqdm(census(match=options.filter, jobs=options.jobs), unit="model", disable=None))
    for library, counts in summary(entries).items():
        print(f"{library}: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    if options.out is not None:
        versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}"
        with replacing(Path(options.out)) as file:
            write_markdown(entries, file, versions=versions)
    return 0


INSPECT = Command("tell what a model's head allows, without its weights", _add_inspect, _inspect)
CENSUS = Command("tell what the heads of all timm and torchvision classifiers allow", _add_census, _census)


_CAM = {
    "exact": "exact: the mean of a class's map plus a constant is its logit",
    "linearised": "linearised: the class weights are the derivative of the logit, for each image its own",
    "none": "there is none; --base grad_cam, layer_cam and grad_cam++ work on this grid",
}


def inspection(loaded: LoadedModel, head: Head) -> str:
    """Describe a model's head.

    Args:
        loaded: the model.
        head: what `advcam_attr.heads.HeadView.inspect` found.

    Returns:
        Several lines: head, layer, grid and stride, whether class activation maps are exact, and the input.
    """
    input_size, prepared = loaded.preprocessing.size, loaded.preprocessing
    size = "any size" if input_size is None else f"{input_size[0]} x {input_size[1]} pixels"
    if input_size is not None:
        size += (
            " only (other sizes need --input-size or --model-args)" if loaded.fixed_size else "; other sizes work too"
        )
    lines = {
        "head": f"{head.kind}, {head.classes} classes",
        "layer": f"{head.layer or 'between modules'} ({head.layout})",
        "grid": f"{head.grid[0]} x {head.grid[1]} cells of {head.channels} channels, "
        f"stride {head.stride[0]:g} x {head.stride[1]:g}",
        "CAM": _CAM[head.exactness],
        "input": size,
    }
    if prepared.mean is not None and prepared.std is not None:
        lines["normalised"] = f"mean {_numbers(prepared.mean)}, std {_numbers(prepared.std)}"
    if head.exactness != "exact":
        lines["note"] = head.note
    return "\n".join([loaded.name, *(f"  {name:<12}{text}" for name, text in lines.items())])


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
