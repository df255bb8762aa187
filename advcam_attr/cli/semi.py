"""``advcam semi``: semi-supervised segmentation by CCT, from one configuration."""

from __future__ import annotations

from jsonargparse import Namespace

from advcam_attr.cli.configuration import add_config, config_of
from advcam_attr.cli.parser import Command, Group, Parser


def _add_options(parser: Parser) -> None:
    from advcam_attr.pipelines.semi_config import SemiConfig

    add_config(parser, SemiConfig, "configs/semi_voc.yaml")


def _add_run_options(parser: Parser) -> None:
    _add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="tell what is done and what is left, and do nothing")


def _train(options: Namespace) -> int:
    from advcam_attr.pipelines.semi_config import SemiConfig
    from advcam_attr.pipelines.semi_run import train

    train(config_of(options, SemiConfig))
    return 0


def _evaluate(options: Namespace) -> int:
    from advcam_attr.pipelines.semi_config import SemiConfig
    from advcam_attr.pipelines.semi_run import evaluate

    evaluate(config_of(options, SemiConfig))
    return 0


def _run(options: Namespace) -> int:
    from advcam_attr.pipelines import semi_run
    from advcam_attr.pipelines.semi_config import SemiConfig

    config = config_of(options, SemiConfig)
    if options.dry_run:
        print(semi_run.plan_run(config))
    else:
        semi_run.run(config)
    return 0


GROUP = Group(
    "semi-supervised segmentation by CCT",
    {
        "train": Command("train the net on images with true masks and others", _add_options, _train),
        "evaluate": Command("label images and score them, beside the paper's table", _add_options, _evaluate),
        "run": Command("both, one after the other", _add_run_options, _run),
    },
)
