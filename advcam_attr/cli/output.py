"""What the command line prints: texts whose control characters, which names of files may hold, are escapes."""

from __future__ import annotations

import sys

from advcam_attr.reading import printable


def say(*parts: object) -> None:
    """Print texts of one or more lines, one below the other."""
    for part in parts:
        print(*map(printable, str(part).split("\n")), sep="\n")


def say_error(message: str) -> None:
    """Print an error as one line on the standard error."""
    print(f"advcam: {printable(' '.join(message.split()))}", file=sys.stderr)
