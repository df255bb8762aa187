"""``advcam report``: one HTML file of a run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from advcam_attr.cli.parser import Command, Parser


def _add_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of advcam attribute, wsss, semi, wsol or analyze")
    parser.add_argument("--out", type=str, metavar="FILE", help="the report (default: RUN/report.html)")
    parser.add_argument(
        "--limit", type=int, default=500, metavar="N", help="images shown, at most (default: %(default)s)"
    )


def _run(options: Namespace) -> int:
    from advcam_attr.report.run import write_report

    write_report(Path(options.run), None if options.out is None else Path(options.out), options.limit)
    return 0


COMMAND = Command("write a run's report, one HTML file that needs nothing else", _add_options, _run)
