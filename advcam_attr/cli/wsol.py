"""``advcam wsol``: the stages of weakly supervised localization, from one configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.config_options import ConfigOptions
from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Group, several
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.maps import MapSummary
    from advcam_attr.pipelines.wsol.config import WSOLConfig
    from advcam_attr.pipelines.wsol.run import WSOLRun

OPTIONS: ConfigOptions[WSOLConfig] = ConfigOptions("advcam_attr.pipelines.wsol.config:WSOLConfig", "configs/cub.yaml")


def _opened(options: Namespace) -> WSOLRun:
    from advcam_attr.pipelines.wsol.run import WSOLRun

    return WSOLRun(OPTIONS.of(options))


def _classifier(options: Namespace) -> None:
    for net, result in _opened(options).train().items():
        if result.val_top1 is not None:
            say(f"{net.name}, seed {net.seed}: validation top-1 {100 * result.val_top1:.1f}")


def _maps(options: Namespace) -> None:
    _require_all(_opened(options).make_maps())


def _evaluate(options: Namespace) -> None:
    _opened(options).evaluate()


def _run(options: Namespace) -> None:
    from advcam_attr.pipelines.wsol.plan import progress

    run = _opened(options)
    if options.dry_run:
        say(*progress(run))
    else:
        _require_all(run.run())


def _require_all(summaries: Iterable[MapSummary]) -> None:
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
        "maps": Command(
            "make maps of every image's class, by CAM and AdvCAM",
            OPTIONS.options("data", "net", "name", "maps", "runtime"),
            _maps,
        ),
        "evaluate": Command(
            "score the maps' boxes, beside the paper's tables", OPTIONS.options("data", "score", "runtime"), _evaluate
        ),
        "run": Command("run all stages", OPTIONS.options("data", "runtime", dry_run=True), _run),
    },
)
