"""``advcam inspect`` and ``advcam census``: what the heads of models allow."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.options import MODEL_HELP, add_model_options, model_choice
from advcam_attr.cli.parser import Command, Parser, fail


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

    from advcam_attr.heads import view
    from advcam_attr.networks.sources import is_factory
    from advcam_attr.pipelines.model import head_at
    from advcam_attr.report.inspection import inspection

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
