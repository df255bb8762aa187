"""Commands in; a parser of their command lines, and its errors in the words of users, out."""

from __future__ import annotations

import re
import sys
from argparse import HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace


class UsageError(Exception):
    """A command line that cannot be understood."""


class Parser(ArgumentParser):
    """A parser whose errors are one line, with the nearest option for a misspelt one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message) from ex


@dataclass(frozen=True)
class Command:
    """What can be asked for by one word.

    Attributes:
        text: what it does, for the help.
        add_options: declares its options.
        run: does it, given the options; returns the exit code.
    """

    text: str
    add_options: Callable[[Parser], None]
    run: Callable[[Namespace], int]


@dataclass(frozen=True)
class Group:
    """Commands that a word of their own goes before."""

    text: str
    commands: Mapping[str, Command]


def fail(message: str) -> int:
    """Tell an error of the user in one line; the exit code."""
    print(f"advcam: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


class CommandLine:
    """A tree of commands and a command line in; what it asks for out.

    Options are declared of the command that is asked for alone, as that may import what others need not wait for.

    Args:
        commands: by name.
        description: for the help.
        version: what ``--version`` prints.
        argv: the command line.
    """

    def __init__(
        self, commands: Mapping[str, Command | Group], description: str, version: str, argv: Sequence[str]
    ) -> None:
        self.argv = list(argv)
        self._commands: dict[tuple[str, ...], Command] = {}
        self._parsers: dict[tuple[str, ...], Parser] = {}
        top = self._add((), Parser(prog="advcam", description=description))
        top.add_argument("--version", action="version", version=version)
        self._add_commands((), commands)

    def parse(self) -> tuple[Command, Namespace]:
        """The command that is asked for, and its options.

        Raises:
            UsageError: it cannot be understood; the message is one line for users.
            SystemExit: help or the version was asked for, and printed.
        """
        path = self._path()
        try:
            options = self._parsers[path].parse_args(self.argv[len(path) :])
        except UsageError as error:
            raise UsageError(self._explain(str(error))) from error
        except UnicodeDecodeError as error:
            raise UsageError("the configuration is not UTF-8 text") from error
        return self._commands[path], options

    def _add(self, path: tuple[str, ...], parser: Parser) -> Parser:
        self._parsers[path] = parser
        return parser

    def _add_commands(self, path: tuple[str, ...], commands: Mapping[str, Command | Group]) -> None:
        subcommands = self._parsers[path].add_subcommands(dest="command", metavar="COMMAND")
        for name, command in commands.items():
            here = (*path, name)
            parser = self._add(here, Parser(prog=" ".join(("advcam", *here)), description=command.text))
            if isinstance(command, Command):
                self._commands[here] = command
                if self.argv[: len(here)] == list(here):
                    command.add_options(parser)
            subcommands.add_subcommand(name, parser, help=command.text)
            parser.prog = " ".join(("advcam", *here))
        for name, command in commands.items():
            if isinstance(command, Group):
                self._add_commands((*path, name), command.commands)

    def _path(self) -> tuple[str, ...]:
        """The words that the command line begins with and that name a command."""
        path: tuple[str, ...] = ()
        for word in self.argv:
            if (*path, word) not in self._parsers:
                break
            path = (*path, word)
        return path

    def _below(self, path: tuple[str, ...]) -> list[str]:
        return [known[-1] for known in self._parsers if len(known) == len(path) + 1 and known[: len(path)] == path]

    def _explain(self, message: str) -> str:
        """A parser's message in the words of the command line."""
        message = " ".join(message.split())
        path = self._path()
        parser, known = self._parsers[path], self._below(path)
        here = " ".join(("advcam", *path))
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            name = unknown[1].split("=")[0]
            close = get_close_matches(name, [o for a in parser._actions for o in a.option_strings], n=1)
            return f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else f"; see {here} --help")
        if choice := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            word = choice[2]
            if choice[1].startswith("-"):
                return f"{choice[1]} takes one of {choice[3]}, got {word!r}"
            close = get_close_matches(word, known, n=1)
            asked = " ".join((*path, "command")) if path else "command"
            return f"unknown {asked} {word!r}; " + (
                f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            )
        if "command" in message and "expected" in message and known:
            return f"give a command: {', '.join(known)}; see {here} --help"
        if missing := re.match(r"the following arguments are required: (.+)", message):
            names = missing[1].split(", ")
            or_config = ", or --config FILE" if "--config" in parser._option_string_actions else ""
            return " ".join(path) + " needs " + " and ".join(_as_typed(name, parser) for name in names) + or_config
        if missing := re.match(r'Parser key "config": File does not exist: (.+)', message):
            return f"no such configuration: {missing[1]}"
        if unknown := re.match(r"Option '([\w.]+)' is not accepted", message):
            name = unknown[1].split(".")[0]
            close = get_close_matches(name, {a.dest.split(".")[0] for a in parser._actions}, n=1)
            return f"the configuration has no part {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        if unknown := re.match(r"Group '([\w.]+)' does not accept option '(\w+)'", message):
            known = [a.dest.rsplit(".", 1)[-1] for a in parser._actions if a.dest.startswith(unknown[1] + ".")]
            close = get_close_matches(unknown[2], known, n=1)
            return f"{unknown[1]} has no value {unknown[2]!r}; " + (
                f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            )
        if wrong := re.match(r'Parser key "([\w.]+)"[^:]*: (?:Expected an? (.+?)\. )?Got value: (.*)', message):
            kind = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'dict'>": "JSON, {...}"}
            name = _as_typed(wrong[1], parser)
            return f"{name} takes {kind.get(wrong[2], wrong[2])}, got {wrong[3]}"
        return message


def _as_typed(name: str, parser: Parser) -> str:
    """An argument's name as users type it."""
    action = next((a for a in parser._actions if a.dest == name), None)
    if action is None:
        return name
    return action.option_strings[0] if action.option_strings else str(action.metavar)
