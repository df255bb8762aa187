"""``advcam demo``: CAM and AdvCAM on toy scenes, offline."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.output import say
from advcam_attr.cli.parser import Command, Parser


def _add_options(parser: Parser) -> None:
    text = "folder of the table and the figure (default: %(default)s)"
    parser.add_argument("--out", type=str, default="demo", metavar="DIR", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of scenes and training (default: %(default)s)")


def _run(options: Namespace) -> None:
    from advcam_attr.pipelines.demo import DemoSettings, run_demo

    result = run_demo(Path(options.out), DemoSettings(seed=options.seed))
    say(result.table)
    say(f"table: {result.table_file}, figure: {result.figure_file} ({result.seconds:.0f} s)")


COMMAND = Command("train a small net on toy scenes and compare CAM with AdvCAM, offline", _add_options, _run)
