"""``advcam wsss``: the stages of weakly supervised segmentation, from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, Namespace

from advcam_attr.cli.parser import Command, Group, Parser, UsageError, fail

if TYPE_CHECKING:
    from advcam_attr.pipelines.wsss_config import WSSSConfig


def config_parser(parser: Parser) -> Parser:
    """Declare ``--config`` and every value of a `WSSSConfig` as an option of its own."""
    from advcam_attr.pipelines.wsss_config import WSSSConfig

    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of the values below: configs/voc.yaml")
    parser.add_class_arguments(WSSSConfig, None)
    return parser


def read_config(path: Path) -> WSSSConfig:
    """The configuration that a run folder keeps.

    Raises:
        AdvCAMError: the file is damaged.
    """
    from advcam_attr.types import AdvCAMError

    parser = config_parser(Parser(prog="advcam wsss"))
    try:
        return _config(parser.parse_path(str(path)))
    except (UsageError, ValueError, TypeError, KeyError) as error:
        raise AdvCAMError(f"{path} is damaged ({error}); run a stage again, with --config, to write it anew") from error


def _config(options: Namespace) -> WSSSConfig:
    """The values of a `WSSSConfig` among a command's options."""
    from advcam_attr.pipelines.wsss_config import WSSSConfig

    values = Namespace(**{key: options[key] for key in WSSSConfig.__dataclass_fields__})
    built = config_parser(Parser(prog="advcam wsss")).instantiate(values)
    return WSSSConfig(**{key: built[key] for key in WSSSConfig.__dataclass_fields__})


def _stage(run: Callable[[WSSSConfig, Namespace], int]) -> Callable[[Namespace], int]:
    def command(options: Namespace) -> int:
        return run(_config(options), options)

    return command


def _classifier(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines import wsss

    result = wsss.train(config)
    if result.val_map is not None:
        print(f"validation mAP {100 * result.val_map:.1f}, loss {result.val_loss:.4f}")
    return 0


def _seeds(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines import wsss

    summaries = wsss.seeds(config, overwrite=options.overwrite, show_progress=sys.stderr.isatty())
    failed = [f"{id}: {reason}" for one in summaries for id, reason in one.failed]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        return fail(f"{len(failed)} maps could not be made: {'; '.join(failed[:5])}{more}")
    return 0


def _add_refine_options(parser: Parser) -> None:
    config_parser(parser)
    parser.add_argument("--method", choices=["irn", "psa"], help="in place of refine.method")
    parser.add_argument("--crf", action="store_true", help="put the seeds through a dense CRF, too: Table I's + CRF")
    parser.add_argument("--saliency", type=str, metavar="DIR", help="in place of refine.saliency: maps named as images")


def _refine(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines import wsss

    changes: dict[str, Any] = {"method": options.method, "saliency": options.saliency}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes |= {"crf": ("seeds",)} if options.crf else {}
    wsss.refine_seeds(replace(config, refine=replace(config.refine, **changes)))
    return 0


def _evaluate(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines import wsss

    wsss.evaluate(config)
    return 0


def _add_seed_options(parser: Parser) -> None:
    config_parser(parser)
    parser.add_argument("--overwrite", action="store_true", help="make all maps anew, whatever is in the folder")


def _add_options(parser: Parser) -> None:
    config_parser(parser)


def _add_export(parser: Parser) -> None:
    parser.add_argument("seeds", metavar="SEEDS", help="folder of one method's maps, e.g. runs/voc/seeds/advcam")
    parser.add_argument("--to", type=str, required=True, metavar="DIR", help="folder for one ID.npy an image")
    parser.add_argument("--format", choices=["irn", "psa"], default="irn", help="whose (default: %(default)s)")


def _export(options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import export_seeds

    export_seeds(Path(options.seeds), Path(options.to), options.format)
    return 0


def _add_import(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of IRN's or PSA's ID.npy files")
    parser.add_argument("--to", type=str, required=True, metavar="SEEDS", help="e.g. runs/theirs/seeds/advcam")


def _import(options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import import_seeds

    import_seeds(Path(options.folder), Path(options.to))
    return 0


GROUP = Group(
    "weakly supervised segmentation, stage by stage",
    {
        "classifier": Command("train the classifier on image labels", _add_options, _stage(_classifier)),
        "seeds": Command("make localization maps of every image's classes", _add_seed_options, _stage(_seeds)),
        "refine": Command("make pseudo ground truth of the maps, by IRN or PSA", _add_refine_options, _stage(_refine)),
        "export": Command("write maps as IRN's or PSA's .npy files", _add_export, _export),
        "import": Command("read maps from IRN's or PSA's .npy files", _add_import, _import),
        "evaluate": Command("score the maps on masks, beside the paper's tables", _add_options, _stage(_evaluate)),
    },
)
