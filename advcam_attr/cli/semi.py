"""``advcam semi``: semi-supervised segmentation by CCT, from one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.config_options import ConfigOptions
from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Group

if TYPE_CHECKING:
    from advcam_attr.pipelines.semi.config import SemiConfig
    from advcam_attr.pipelines.semi.run import SemiRun

OPTIONS: ConfigOptions[SemiConfig] = ConfigOptions(
    "advcam_attr.pipelines.semi.config:SemiConfig", "configs/semi_voc.yaml"
)


def _opened(options: Namespace) -> SemiRun:
    from advcam_attr.pipelines.semi.run import SemiRun

    return SemiRun(OPTIONS.of(options))


def _train(options: Namespace) -> None:
    _opened(options).train()


def _evaluate(options: Namespace) -> None:
    _opened(options).evaluate()


def _run(options: Namespace) -> None:
    run = _opened(options)
    if options.dry_run:
        say(run.plan())
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
        "run": Command("run both stages", OPTIONS.options("data", "runtime", dry_run=True), _run),
    },
)
