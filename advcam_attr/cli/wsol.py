"""``advcam wsol``: the stages of weakly supervised localization, from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.parser import Command, ConfigOptions, Group, Parser, several
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.seeds import SeedSummary
    from advcam_attr.pipelines.wsol.config import WSOLConfig

OPTIONS: ConfigOptions[WSOLConfig] = ConfigOptions("advcam_attr.pipelines.wsol.config:WSOLConfig", "configs/cub.yaml")


def _classifier(options: Namespace) -> None:
    from advcam_attr.pipelines.wsol import run as wsol

    for subject, result in wsol.train(OPTIONS.of(options)).items():
        if result.val_top1 is not None:
            print(f"{subject.name}, seed {subject.seed}: validation top-1 {100 * result.val_top1:.1f}")


def _add_map_options(parser: Parser) -> None:
    OPTIONS.options("data", "net", "name", "maps", "runtime")(parser)
    parser.add_argument("--overwrite", action="store_true", help="recompute all maps, whatever is in the folder")


def _maps(options: Namespace) -> None:
    from advcam_attr.pipelines.wsol import run as wsol

    progress = sys.stderr.isatty()
    _require_all(wsol.make_maps(OPTIONS.of(options), overwrite=options.overwrite, show_progress=progress))


def _evaluate(options: Namespace) -> None:
    from advcam_attr.pipelines.wsol import run as wsol

    wsol.evaluate(OPTIONS.of(options))


def _run(options: Namespace) -> None:
    from advcam_attr.pipelines.wsol import run as wsol

    _require_all(wsol.run(OPTIONS.of(options), show_progress=sys.stderr.isatty()))


def _require_all(summaries: Iterable[SeedSummary]) -> None:
    failed = [f"{id}: {reason}" for one in summaries for id, reason in one.failed]
    if failed:
        raise AdvCAMError(f"{len(failed)} maps could not be made: {several(failed)}")


GROUP = Group(
    "weakly supervised localization, stage by stage",
    {
        "classifier": Command(
            "train the classifiers on image labels",
            OPTIONS.options("data", "classifier", "trainings", "seeds", "runtime"),
            _classifier,
        ),
        "maps": Command("make maps of every image's class, by CAM and AdvCAM", _add_map_options, _maps),
        "evaluate": Command(
            "score the maps' boxes, beside the paper's tables", OPTIONS.options("data", "score", "runtime"), _evaluate
        ),
        "run": Command("run all stages", OPTIONS.options("data", "runtime"), _run),
    },
)
