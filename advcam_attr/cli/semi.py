"""``advcam semi``: semi-supervised segmentation by CCT, from one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.configured import Configured
from advcam_attr.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from advcam_attr.pipelines.semi.config import SemiConfig


def _load() -> type[SemiConfig]:
    from advcam_attr.pipelines.semi.config import SemiConfig

    return SemiConfig


CONFIGURED: Configured[SemiConfig] = Configured(_load, "semi", "configs/semi_voc.yaml")


def _add_run_options(parser: Parser) -> None:
    CONFIGURED.add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="tell what is done and what is left, and do nothing")


def _train(options: Namespace) -> int:
    from advcam_attr.pipelines.semi.run import train

    train(CONFIGURED.of(options))
    return 0


def _evaluate(options: Namespace) -> int:
    from advcam_attr.pipelines.semi.run import evaluate

    evaluate(CONFIGURED.of(options))
    return 0


def _run(options: Namespace) -> int:
    from advcam_attr.pipelines.semi import run as semi_run

    config = CONFIGURED.of(options)
    if options.dry_run:
        print(semi_run.plan_run(config))
    else:
        semi_run.run(config)
    return 0


GROUP = Group(
    "semi-supervised segmentation by CCT",
    {
        "train": Command("train the net on images with true masks and others", CONFIGURED.add_options, _train),
        "evaluate": Command("label images and score them, beside the paper's table", CONFIGURED.add_options, _evaluate),
        "run": Command("both, one after the other", _add_run_options, _run),
    },
)
