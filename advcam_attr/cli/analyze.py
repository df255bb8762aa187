"""``advcam analyze``: the paper's analyses, as figures and numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from advcam_attr.cli.attribute import add_climb_options, overrides_of, settings_of
from advcam_attr.cli.output import say
from advcam_attr.cli.parser import MODEL_HELP, Command, Parser, numbers
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.data.samples import SegmentationData
    from advcam_attr.pipelines.maps import MapSettings

#: How many toy scenes are looked at unless another number is given: as images, and as a data set with masks.
_TOY_IMAGES, _TOY_DATA = 12, 60


def _add_options(parser: Parser) -> None:
    parser.usage = "%(prog)s NAME [IMAGE...] [options]"
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of --list, or several between commas")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files and folders of them")
    parser.add_argument("--list", action="store_true", help="list all analyses")
    text = "folder of the results (default: analysis, or RUN/analysis)"
    parser.add_argument("--out", type=str, metavar="DIR", help=text)
    group = parser.add_argument_group("data")
    group.add_argument("--demo", action="store_true", help="analyse toy scenes with the net of advcam demo, offline")
    group.add_argument("--model", type=str, metavar="MODEL", help=MODEL_HELP)
    group.add_argument("--run", type=str, metavar="RUN", help="run folder of advcam wsss: its data, net and recipe")
    group.add_argument("--data", type=str, metavar="DIR", help="data set with masks, whose classes are the model's")
    group.add_argument("--kind", choices=["voc", "coco"], default="voc", help="of data set (default: %(default)s)")
    group.add_argument("--split", type=str, default="train", help="images that are scored (default: %(default)s)")
    group.add_argument("--first", type=int, metavar="N", help="only the first N images")
    group = parser.add_argument_group("analyses of images")
    group.add_argument("--at", type=int, nargs="+", metavar="t", help="steps whose images are shown (default: five)")
    group.add_argument("--perplexity", type=float, metavar="P", help="of t-SNE (default: 30, or less for few images)")
    text = "extent of a loss landscape, in the input's units (default: %(default)s)"
    group.add_argument("--reach", type=float, default=0.1, metavar="D", help=text)
    group.add_argument("--seed", type=int, default=0, help="of t-SNE and random directions (default: %(default)s)")
    group = parser.add_argument_group("analyses of masks")
    group.add_argument("--sweep", type=int, nargs="+", metavar="T", help="numbers of steps (default: ten or less)")
    group.add_argument("--lambdas", type=float, nargs="+", metavar="λ", help="also these weights of the restriction")
    group.add_argument("--taus", type=float, nargs="+", metavar="τ", help="also these shares of the restricted peak")
    group.add_argument("--xis", type=float, nargs="+", metavar="ξ", help="also these sizes of a step")
    add_climb_options(parser)


def _run(options: Namespace) -> int:
    from advcam_attr.pipelines.analyze import run as analyze

    if options.list:
        say(analyze.listing())
        return 0
    if options.name is None:
        raise AdvCAMError("analyze needs NAME: see advcam analyze --list")
    if options.first is not None and options.first < 1:
        raise AdvCAMError(f"--first takes a number above 0, got {options.first}")
    names = analyze.parse_names(options.name)
    if names[0] in analyze.IMAGE_ANALYSES:
        _analyze_images(names, options)
    else:
        _analyze_data(names, options)
    return 0


def _analyze_images(names: tuple[str, ...], options: Namespace) -> None:
    from advcam_attr.data.images import expand_images
    from advcam_attr.pipelines.analyze import run as analyze
    from advcam_attr.pipelines.analyze.images import ImageOptions

    at = None if options.at is None else tuple(options.at)
    chosen = ImageOptions(at, options.perplexity, options.reach, seed=options.seed)
    out, name = Path(options.out or "analysis"), options.name
    if options.saliency is not None or options.run is not None or options.data is not None:
        given = next(o for o in ("saliency", "run", "data") if options[o] is not None)
        raise AdvCAMError(f"{name} takes image files and a --model (or --demo), not --{given}")
    if options.demo:
        count = options.first or _TOY_IMAGES
        analyze.analyze_toy_images(names, count, out, settings_of(options, "demo"), chosen)
        return
    if not options.images or options.model is None:
        raise AdvCAMError(f"{name} needs image files and a --model, or --demo")
    images = expand_images(options.images)[: options.first]
    analyze.analyze_files(names, images, out, settings_of(options, options.model), chosen)


def _analyze_data(names: tuple[str, ...], options: Namespace) -> None:
    from advcam_attr.data.masks import SaliencyFolder
    from advcam_attr.pipelines.analyze import run as analyze
    from advcam_attr.pipelines.analyze.seeds import SeedOptions
    from advcam_attr.pipelines.maps import MapSettings
    from advcam_attr.runs.runtime import Runtime

    given = [o for o in ("run", "data", "demo") if options[o]]
    if len(given) != 1 or options.images:
        raise AdvCAMError(f"{options.name} needs masks: give --run RUN, --data DIR with a --model, or --demo")
    swept = {"steps": options.sweep, "weights": options.lambdas, "thresholds": options.taus, "sizes": options.xis}
    given_values: dict[str, Any] = {name: tuple(values) for name, values in swept.items() if values is not None}
    chosen = SeedOptions(**given_values)
    settings = MapSettings(
        recipe=options.recipe,
        overrides={name: part for name, part in overrides_of(options).items() if name != "scales"},
        base=options.base,
        layer=options.layer,
        scales=numbers(options.scales) or (1.0,),
        saliency=None if options.saliency is None else SaliencyFolder(Path(options.saliency)),
        batch=options.batch_size,
        runtime=Runtime(device=options.device),
    )
    out = Path(options.out or ("analysis" if options.run is None else f"{options.run}/analysis"))
    if options.demo:
        count = options.first or _TOY_DATA
        analyze.analyze_toy_data(names, count, out, settings, chosen)
        return
    net, data, settings = (_of_run if options.run else _of_data)(options, settings)
    data = replace(data, samples=data.samples[: options.first])
    analyze.analyze_data(names, net, data, out, settings, chosen)


def _of_run(options: Namespace, settings: MapSettings) -> tuple[Any, SegmentationData, MapSettings]:
    from advcam_attr.attr.adapters import base_of
    from advcam_attr.cli.wsss import OPTIONS
    from advcam_attr.pipelines.config import config_of
    from advcam_attr.pipelines.wsss.run import Run
    from advcam_attr.pipelines.wsss.stages import seed_net

    config = OPTIONS.read(config_of(Path(options.run)))
    run = Run(replace(config, run=options.run))
    data = run.split(config.data.score)
    net, mean, std = seed_net(run, data)
    return (
        net,
        data,
        replace(
            settings,
            recipe=config.seeds.recipe,
            overrides={**config.seeds.overrides, **settings.overrides},
            base=base_of(net) if config.net.generator else config.seeds.base,
            scales=numbers(options.scales) or config.seeds.scales,
            mean=mean,
            std=std,
        ),
    )


def _of_data(options: Namespace, settings: MapSettings) -> tuple[Any, SegmentationData, MapSettings]:
    from advcam_attr.pipelines.config import MaskedData

    if options.model is None:
        raise AdvCAMError(f"{options.name} needs a --model whose classes are those of --data")
    data = MaskedData(options.data, options.kind).read(options.split)
    loaded = settings_of(options, options.model).model.load()
    prepared = loaded.preprocessing
    if prepared.mean is None or prepared.std is None:
        raise AdvCAMError(f"the normalization of {options.model} is unknown: give --mean and --std")
    return loaded.model, data, replace(settings, mean=tuple(prepared.mean), std=tuple(prepared.std))


COMMAND = Command("the paper's analyses, as figures and numbers", _add_options, _run)
