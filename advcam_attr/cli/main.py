"""Entry point of the command line: parse, run, and turn errors of the user into one line and an exit code.

No torch is imported before a command runs, so help and usage errors are immediate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from jsonargparse import Namespace

from advcam_attr.cli import analyze, attribute, data, demo, evaluate, inspect, report, semi, wsol, wsss
from advcam_attr.cli.output import say_error
from advcam_attr.cli.parser import Command, Group, Parser, models_named
from advcam_attr.networks.trust import trusted_factories
from advcam_attr.runs.run_log import LineFormatter
from advcam_attr.types import AdvCAMError

COMMANDS: dict[str, Command | Group] = {
    "attribute": attribute.COMMAND,
    "inspect": inspect.COMMAND,
    "demo": demo.COMMAND,
    "data": data.GROUP,
    "wsss": wsss.GROUP,
    "semi": semi.GROUP,
    "wsol": wsol.GROUP,
    "evaluate": evaluate.GROUP,
    "analyze": analyze.COMMAND,
    "report": report.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (None: the process's), and return the exit code.

    0, 2 for an error of the user, 130 when interrupted, 141 when the reader of the output is gone.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it when it exits
        return 141


def top_parser() -> Parser:
    """Return the parser of all commands."""
    text = "Class attribution maps, pseudo masks and localization with AdvCAM."
    parser = Parser(Group(text, COMMANDS), prog="advcam", description=text)
    parser.add_argument("--version", action="version", version=_version())
    return parser


def _run(argv: Sequence[str]) -> int:
    try:
        command, options = _parse(argv)
        with trusted_factories(*models_named(argv)), _console_log(options):
            return command.run(options) or 0
    except SystemExit as done:  # --help, --version and --print_config
        return int(done.code or 0)
    except AdvCAMError as error:
        say_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130


def _parse(argv: Sequence[str]) -> tuple[Command, Namespace]:
    parser = top_parser()
    command: Command | Group = Group("", COMMANDS)
    options = parser.parse_args(argv)
    while isinstance(command, Group):
        name = options["command"]
        parser, command, options = parser.children[name], command.commands[name], options[name]
    return command, parser.instantiate(options)


class _ConsoleHandler(logging.StreamHandler):
    """Write messages as plain lines; the caller handles a closed pipe."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream.write(self.format(record) + self.terminator)
        self.flush()


@contextlib.contextmanager
def _console_log(options: Namespace) -> Iterator[None]:
    """Show the package's log on the standard output while a command runs."""
    package, handler = logging.getLogger("advcam_attr"), _ConsoleHandler(sys.stdout)
    handler.setFormatter(LineFormatter())
    handler.setLevel(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
    level = package.level
    package.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def _output_is_closed() -> bool:
    """Whether it is the standard output that is closed, not a pipe to a process of ours."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _version() -> str:
    from importlib import metadata

    try:
        return f"advcam {metadata.version('advcam_attr')}"
    except metadata.PackageNotFoundError:
        return "advcam (not installed)"
