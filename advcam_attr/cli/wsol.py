"""``advcam wsol``: the stages of weakly supervised localization, from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from advcam_attr.cli.configured import Configured
from advcam_attr.cli.parser import Command, Group, Parser, fail

if TYPE_CHECKING:
    from advcam_attr.pipelines.seeds import SeedSummary
    from advcam_attr.pipelines.wsol.config import WSOLConfig


def _load() -> type[WSOLConfig]:
    from advcam_attr.pipelines.wsol.config import WSOLConfig

    return WSOLConfig


CONFIGURED: Configured[WSOLConfig] = Configured(_load, "wsol", "configs/cub.yaml")


def _stage(run: Callable[[WSOLConfig, Namespace], int]) -> Callable[[Namespace], int]:
    def command(options: Namespace) -> int:
        return run(CONFIGURED.of(options), options)

    return command


def _classifier(config: WSOLConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsol import run as wsol

    for subject, result in wsol.train(config).items():
        if result.val_top1 is not None:
            print(f"{subject.name}, seed {subject.seed}: validation top-1 {100 * result.val_top1:.1f}")
    return 0


def _maps(config: WSOLConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsol import run as wsol

    return _code(wsol.make_maps(config, overwrite=options.overwrite, show_progress=sys.stderr.isatty()))


def _evaluate(config: WSOLConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsol import run as wsol

    wsol.evaluate(config)
    return 0


def _run(config: WSOLConfig, options: Namespace) -> int:
    from advcam_attr.pipelines.wsol import run as wsol

    return _code(wsol.run(config, show_progress=sys.stderr.isatty()))


def _code(summaries: Iterable[SeedSummary]) -> int:
    failed = [f"{id}: {reason}" for one in summaries for id, reason in one.failed]
    if not failed:
        return 0
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    return fail(f"{len(failed)} maps could not be made: {'; '.join(failed[:5])}{more}")


def _add_map_options(parser: Parser) -> None:
    CONFIGURED.add_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="make all maps anew, whatever is in the folder")


GROUP = Group(
    "weakly supervised localization, stage by stage",
    {
        "classifier": Command("train the classifiers on image labels", CONFIGURED.add_options, _stage(_classifier)),
        "maps": Command("make maps of every image's class, by CAM and AdvCAM", _add_map_options, _stage(_maps)),
        "evaluate": Command(
            "score the maps' boxes, beside the paper's tables", CONFIGURED.add_options, _stage(_evaluate)
        ),
        "run": Command("all stages, one after the other", CONFIGURED.add_options, _stage(_run)),
    },
)
