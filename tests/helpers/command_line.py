"""Commands of the command line, and their parsers, which are slow to make and made once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from advcam_attr.cli import main as cli
from advcam_attr.cli.parser import Command, Group, Parser

Words = tuple[str, ...]


def leaves(command: Command | Group | None = None, words: Words = ()) -> Iterator[tuple[Words, Command | Group | None]]:
    """Yield the words of every command and of every group, and what they name."""
    yield words, command
    for name, child in (cli.COMMANDS if command is None else getattr(command, "commands", {})).items():
        yield from leaves(child, (*words, name))


#: The words of every command.
COMMANDS = [words for words, command in leaves() if isinstance(command, Command)]


@cache
def declared(words: Words) -> Parser:
    """Return a command's own parser with its options."""
    command = dict(leaves())[words]
    assert isinstance(command, Command)
    return Parser(command, prog=" ".join(["advcam", *words])).declared()
