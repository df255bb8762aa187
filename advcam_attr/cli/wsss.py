"""``advcam wsss``: the stages of weakly supervised segmentation, from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from advcam_attr.cli.configured import Configured
from advcam_attr.cli.options import add_archive_options, path_of
from advcam_attr.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from advcam_attr.pipelines.wsss.config import WSSSConfig


def _load() -> type[WSSSConfig]:
    from advcam_attr.pipelines.wsss.config import WSSSConfig

    return WSSSConfig


CONFIGURED: Configured[WSSSConfig] = Configured(_load, "wsss", "configs/voc.yaml")


def _stage(run: Callable[[WSSSConfig, Namespace], int]) -> Callable[[Namespace], int]:
    def command(options: Namespace) -> int:
        return run(CONFIGURED.of(options), options)

    return command


def _classifier(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import stages as wsss

    result = wsss.train(config)
    if result.val_map is not None:
        print(f"validation mAP {100 * result.val_map:.1f}, loss {result.val_loss:.4f}")
    return 0


def _seeds(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import stages as wsss

    wsss.require_all(wsss.seeds(config, overwrite=options.overwrite, show_progress=sys.stderr.isatty()))
    return 0


def _add_refine_options(parser: Parser) -> None:
    CONFIGURED.add_options(parser)
    parser.add_argument("--method", choices=["irn", "psa"], help="in place of refine.method")
    parser.add_argument("--crf", action="store_true", help="put the seeds through a dense CRF, too: Table I's + CRF")
    parser.add_argument("--saliency", type=str, metavar="DIR", help="in place of refine.saliency: maps named as images")


def _refine(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import stages as wsss

    changes: dict[str, Any] = {"method": options.method, "saliency": options.saliency}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes |= {"crf": ("seeds",)} if options.crf else {}
    wsss.refine_seeds(replace(config, refine=replace(config.refine, **changes)))
    return 0


def _segment(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import stages as wsss

    wsss.segment_masks(config)
    return 0


def _evaluate(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss.score import evaluate

    evaluate(config)
    return 0


def _add_run_options(parser: Parser) -> None:
    CONFIGURED.add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="tell what is done and what is left, and do nothing")


def _run(config: WSSSConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsss import run as wsss_run

    if options.dry_run:
        print(wsss_run.plan_run(config))
    else:
        wsss_run.run(config, show_progress=sys.stderr.isatty())
    return 0


def _add_submission(parser: Parser) -> None:
    parser.add_argument(
        "predictions", metavar="DIR", help="of label maps: .../segmentation/advcam/predictions/test_crf"
    )
    parser.add_argument("--to", type=str, required=True, metavar="FILE", help="the archive, e.g. results.tgz")
    parser.add_argument("--competition", choices=["comp5", "comp6"], default="comp6",
                        help="comp5: of VOC's data alone; comp6: also of others (default: %(default)s)")  # fmt: skip
    add_archive_options(parser)


def _submission(options: Namespace) -> int:
    from advcam_attr.pipelines.wsss.submission import submit

    folder, archive = Path(options.predictions), Path(options.to)
    submit(folder, archive, path_of(options.list), path_of(options.images), options.competition)
    return 0


def _add_seed_options(parser: Parser) -> None:
    CONFIGURED.add_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="make all maps anew, whatever is in the folder")


def _add_export(parser: Parser) -> None:
    parser.add_argument("seeds", metavar="SEEDS", help="folder of one method's maps, e.g. runs/voc/seeds/advcam")
    parser.add_argument("--to", type=str, required=True, metavar="DIR", help="folder for one ID.npy an image")
    parser.add_argument("--format", choices=["irn", "psa"], default="irn", help="whose (default: %(default)s)")


def _export(options: Namespace) -> int:
    from advcam_attr.pipelines.wsss.stages import export_seeds

    export_seeds(Path(options.seeds), Path(options.to), options.format)
    return 0


def _add_import(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of IRN's or PSA's ID.npy files")
    parser.add_argument("--to", type=str, required=True, metavar="SEEDS", help="e.g. runs/theirs/seeds/advcam")


def _import(options: Namespace) -> int:
    from advcam_attr.pipelines.wsss.stages import import_seeds

    import_seeds(Path(options.folder), Path(options.to))
    return 0


GROUP = Group(
    "weakly supervised segmentation, stage by stage",
    {
        "classifier": Command("train the classifier on image labels", CONFIGURED.add_options, _stage(_classifier)),
        "seeds": Command("make localization maps of every image's classes", _add_seed_options, _stage(_seeds)),
        "refine": Command("make pseudo ground truth of the maps, by IRN or PSA", _add_refine_options, _stage(_refine)),
        "segment": Command(
            "train segmentation nets on it, label and score val", CONFIGURED.add_options, _stage(_segment)
        ),
        "evaluate": Command(
            "score all that there is, beside the paper's tables", CONFIGURED.add_options, _stage(_evaluate)
        ),
        "run": Command("all of these stages, from pictures to the paper's tables", _add_run_options, _stage(_run)),
        "submission": Command("pack label maps for PASCAL VOC's test server", _add_submission, _submission),
        "export": Command("write maps as IRN's or PSA's .npy files", _add_export, _export),
        "import": Command("read maps from IRN's or PSA's .npy files", _add_import, _import),
    },
)
