"""Command lines in; calls of the pipelines, what they tell on the standard output, and exit codes out.

Nothing heavy is imported before a command runs, so that help and typing errors come at once. What a user can mend is
one line on the standard error and exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from advcam_attr.cli import analyze, attribute, data, demo, evaluate, report, semi, wsol, wsss
from advcam_attr.cli import inspect as inspecting
from advcam_attr.cli.parser import Command, CommandLine, Group, UsageError, fail

COMMANDS: dict[str, Command | Group] = {
    "attribute": attribute.COMMAND,
    "inspect": inspecting.INSPECT,
    "demo": demo.COMMAND,
    "census": inspecting.CENSUS,
    "data": data.GROUP,
    "wsss": wsss.GROUP,
    "semi": semi.GROUP,
    "wsol": wsol.GROUP,
    "evaluate": evaluate.GROUP,
    "analyze": analyze.COMMAND,
    "report": report.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        The exit code: 0, 2 for an error of the user, 130 when interrupted, 141 when nobody reads on (``| head``).
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it at its end
        return 141


def _run(argv: Sequence[str]) -> int:
    text = "AdvCAM: where an image classifier sees a class, beyond the obvious."
    try:
        command, options = CommandLine(COMMANDS, text, _version(), argv).parse()
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except UsageError as error:
        return fail(str(error))
    try:
        with _plain_log():
            return command.run(options)
    except KeyboardInterrupt:
        print("advcam: interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        from advcam_attr.types import AdvCAMError

        if not isinstance(error, AdvCAMError):
            raise
        return fail(str(error))


class _PlainHandler(logging.StreamHandler):
    """Write messages as plain lines; a closed pipe is the caller's to handle."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream.write(self.format(record) + self.terminator)
        self.flush()


@contextlib.contextmanager
def _plain_log() -> Iterator[None]:
    """Show the package's log on the standard output while a command runs."""
    package, handler = logging.getLogger("advcam_attr"), _PlainHandler(sys.stdout)
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def _nobody_reads() -> bool:
    """Whether it is the standard output that is closed, and not a pipe to a process of ours."""
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
