"""``advcam report``: an HTML report of a run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.parser import Command, Parser, path_of


def _add_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of advcam attribute, wsss, semi, wsol or analyze")
    parser.add_argument("--out", type=str, metavar="FILE", help="the report (default: RUN/report.html)")
    parser.add_argument("--limit", type=int, default=500, metavar="N", help="most images shown (default: %(default)s)")


def _run(options: Namespace) -> None:
    from advcam_attr.report.run import write_report

    write_report(Path(options.run), path_of(options.out), options.limit)


COMMAND = Command("write a run's report as one self-contained HTML file", _add_options, _run)
