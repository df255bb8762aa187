"""``advcam wsss``: the stages of weakly supervised segmentation, from one configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from advcam_attr.cli.config_options import ConfigOptions
from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Group, Parser, add_archive_options, path_of

if TYPE_CHECKING:
    from advcam_attr.pipelines.wsss.config import WSSSConfig
    from advcam_attr.pipelines.wsss.run import Run

OPTIONS: ConfigOptions[WSSSConfig] = ConfigOptions("advcam_attr.pipelines.wsss.config:WSSSConfig", "configs/voc.yaml")


def _opened(options: Namespace, **refine: Any) -> Run:
    from advcam_attr.pipelines.wsss.run import Run

    config = OPTIONS.of(options)
    runtime = replace(config.runtime, overwrite=config.runtime.overwrite or options.get("overwrite", False))
    return Run(replace(config, refine=replace(config.refine, **refine), runtime=runtime))


def _classifier(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages

    result = stages.train(_opened(options))
    if result.val_map is not None:
        say(f"validation mAP {100 * result.val_map:.1f}, loss {result.val_loss:.4f}")


def _add_seed_options(parser: Parser) -> None:
    OPTIONS.options("data", "seeds", "runtime")(parser)
    parser.add_argument("--overwrite", action="store_true", help="recompute all maps: runtime.overwrite")


def _seeds(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages

    stages.seeds(_opened(options))


def _add_refine_options(parser: Parser) -> None:
    OPTIONS.options("data", "refine", "runtime")(parser)
    parser.add_argument("--method", choices=["irn", "psa"], help="in place of refine.method")
    parser.add_argument("--crf", action="store_true", help="refine the seeds by a dense CRF, too: Table I's + CRF")
    parser.add_argument("--saliency", type=str, metavar="DIR", help="in place of refine.saliency: maps named as images")


def _refine(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages

    changes: dict[str, Any] = {"method": options.method, "saliency": options.saliency}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes |= {"crf": ("seeds",)} if options.crf else {}
    stages.refine_seeds(_opened(options, **changes))


def _instances(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages

    stages.make_instances(_opened(options))


def _segment(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages

    stages.segment_masks(_opened(options))


def _evaluate(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss.score import evaluate

    say(evaluate(_opened(options)))


def _run(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss import stages
    from advcam_attr.pipelines.wsss.plan import progress

    run = _opened(options)
    if options.dry_run:
        say(*progress(run))
    elif (scores := stages.run_all(run)) is not None:
        say(scores)


def _add_submission(parser: Parser) -> None:
    text = "folder of label maps: .../segmentation/advcam/predictions/test_crf"
    parser.add_argument("predictions", metavar="DIR", help=text)
    parser.add_argument("--to", type=str, required=True, metavar="FILE", help="the archive, e.g. results.tgz")
    text = "comp5: trained on VOC's data alone; comp6: on other data, too (default: %(default)s)"
    parser.add_argument("--competition", choices=["comp5", "comp6"], default="comp6", help=text)
    add_archive_options(parser)


def _submission(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss.submission import submit

    folder, archive = Path(options.predictions), Path(options.to)
    submit(folder, archive, path_of(options.list), path_of(options.images), options.competition)


def _add_export(parser: Parser) -> None:
    parser.add_argument("seeds", metavar="SEEDS", help="folder of one method's maps, e.g. runs/voc/seeds/advcam")
    parser.add_argument("--to", type=str, required=True, metavar="DIR", help="folder for one ID.npy an image")
    parser.add_argument("--format", choices=["irn", "psa"], default="irn", help="(default: %(default)s)")


def _export(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss.stages import export_seeds

    export_seeds(Path(options.seeds), Path(options.to), options.format)


def _add_import(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of IRN's or PSA's ID.npy files")
    parser.add_argument("--to", type=str, required=True, metavar="SEEDS", help="e.g. runs/theirs/seeds/advcam")


def _import(options: Namespace) -> None:
    from advcam_attr.pipelines.wsss.stages import import_seeds

    import_seeds(Path(options.folder), Path(options.to))


GROUP = Group(
    "weakly supervised segmentation, stage by stage",
    {
        "classifier": Command(
            "train the classifier on image labels", OPTIONS.options("data", "net", "classifier", "runtime"), _classifier
        ),
        "seeds": Command("make localization maps of every image's classes", _add_seed_options, _seeds),
        "refine": Command("make pseudo masks of the maps, by IRN or PSA", _add_refine_options, _refine),
        "instances": Command(
            "make instance masks of the maps, by IRN's net",
            OPTIONS.options("data", "instances", "runtime"),
            _instances,
        ),
        "segment": Command(
            "train segmentation nets on the masks, predict and score val",
            OPTIONS.options("data", "segmentation", "runtime"),
            _segment,
        ),
        "evaluate": Command(
            "score all results, beside the paper's tables", OPTIONS.options("data", "score", "runtime"), _evaluate
        ),
        "run": Command(
            "run all stages, from images to the paper's tables",
            OPTIONS.options("data", "runtime", dry_run=True),
            _run,
        ),
        "submission": Command("pack label maps for PASCAL VOC's test server", _add_submission, _submission),
        "export": Command("write maps as IRN's or PSA's .npy files", _add_export, _export),
        "import": Command("read maps from IRN's or PSA's .npy files", _add_import, _import),
    },
)
