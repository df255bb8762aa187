"""``advcam semi``: semi-supervised segmentation by CCT, from one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.parser import Command, ConfigOptions, Group, Parser

if TYPE_CHECKING:
    from advcam_attr.pipelines.semi.config import SemiConfig

OPTIONS: ConfigOptions[SemiConfig] = ConfigOptions(
    "advcam_attr.pipelines.semi.config:SemiConfig", "configs/semi_voc.yaml"
)


def _train(options: Namespace) -> None:
    from advcam_attr.pipelines.semi.run import SemiRun

    SemiRun(OPTIONS.of(options)).train()


def _evaluate(options: Namespace) -> None:
    from advcam_attr.pipelines.semi.run import SemiRun

    SemiRun(OPTIONS.of(options)).evaluate()


def _add_run_options(parser: Parser) -> None:
    OPTIONS.options("data", "runtime")(parser)
    parser.add_argument("--dry-run", action="store_true", help="list what is done and what is left, and do nothing")


def _run(options: Namespace) -> None:
    from advcam_attr.pipelines.semi.run import SemiRun

    run = SemiRun(OPTIONS.of(options))
    if options.dry_run:
        print(run.plan())
    else:
        run.run()


GROUP = Group(
    "semi-supervised segmentation by CCT",
    {
        "train": Command(
            "train on images with and without true masks",
            OPTIONS.options("data", "net", "training", "runtime"),
            _train,
        ),
        "evaluate": Command(
            "label images and score them, beside the paper's table",
            OPTIONS.options("data", "predict", "runtime"),
            _evaluate,
        ),
        "run": Command("run both stages", _add_run_options, _run),
    },
)
