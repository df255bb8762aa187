"""``.. cli::`` in; every command with its usage and options, from the parsers that run them, out."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from advcam_attr.cli.main import COMMANDS
from advcam_attr.cli.parser import Command, Group, Parser

#: What the parser library adds by itself, and that only tells about itself.
_HIDDEN = {"help", "print_config", "print_shtab", "version"}

#: ``(as it is typed, what it means)``.
Option = tuple[str, str]


def commands(
    tree: Mapping[str, Command | Group] = COMMANDS, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Command | Group]]:
    """Each command and group of commands, by the words that ask for it, the groups before their commands."""
    for name, command in tree.items():
        here = (*path, name)
        yield " ".join(here), command
        if isinstance(command, Group):
            yield from commands(command.commands, here)


def options_of(name: str, command: Command) -> list[Option]:
    """Every argument and option of a command."""
    parser = Parser(prog=f"advcam {name}", description=command.text)
    command.add_options(parser)
    shown = (a for a in parser._actions if a.dest not in _HIDDEN and a.help is not argparse.SUPPRESS)
    return [(_typed(action), _meaning(action, parser)) for action in shown if not _whole_part(action)]


def shared_options(name: str, group: Group) -> list[Option]:
    """The options that all commands of a group have which read a configuration: its values."""
    lists = [options_of(f"{name} {word}", c) for word, c in group.commands.items() if isinstance(c, Command)]
    lists = [options for options in lists if any(typed.startswith("--config") for typed, _ in options)]
    return [one for one in lists[0] if all(one in other for other in lists)] if len(lists) > 1 else []


def _whole_part(action: argparse.Action) -> bool:
    """Whether an option takes a file for one part of a configuration, beside options for its values."""
    return "ConfigLoad" in type(action).__name__


def _typed(action: argparse.Action) -> str:
    more = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"{action.metavar or action.dest}{more}"
    names = ", ".join(action.option_strings)
    if action.nargs == 0 or type(action).__name__ == "ActionYesNo":
        return names
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = action.metavar or choices or ("FILE" if action.dest == "config" else "VALUE")
    return f"{names} {' '.join(value) if isinstance(value, tuple) else value}{more}"


def _meaning(action: argparse.Action, parser: Parser) -> str:
    values = {key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS}
    text = action.help or ""
    with contextlib.suppress(ValueError):  # a per cent sign of a docstring's
        text %= values | {"prog": parser.prog}
    text = " ".join(text.split())
    told = "default" in text or not action.option_strings or action.default in ({}, argparse.SUPPRESS)
    if told or action.default is None or action.default is False:
        return text
    return f"{text} (default: {action.default})".strip()


class CommandLineReference(SphinxDirective):
    """A section a command; a configuration's values stand once, in the section of their group."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        shared: dict[str, list[Option]] = {}
        for name, command in commands():
            section = nodes.section(ids=[nodes.make_id(f"cli-{name}")], names=[f"cli {name}"])
            section += nodes.title("", "", nodes.literal("", f"advcam {name}"))
            self.state.document.note_implicit_target(section, section)
            section += nodes.paragraph("", command.text[:1].upper() + command.text[1:] + ".")
            if isinstance(command, Group):
                shared[name] = shared_options(name, command)
                if shared[name]:
                    section += nodes.paragraph("", "All commands of this group that take a configuration have these:")
                section += _listed(shared[name])
            else:
                group = name.rpartition(" ")[0]
                own = options_of(name, command)
                rest = [option for option in own if option not in shared.get(group, [])]
                section += _listed(rest)
                if len(rest) < len(own):
                    section += nodes.paragraph(
                        "", "", *_words(f"And the values of the configuration: `advcam {group}`.")
                    )
            sections.append(section)
        return sections


def _listed(options: list[Option]) -> list[nodes.Node]:
    listed = nodes.definition_list(classes=["options"])
    for typed, meaning in options:
        listed += nodes.definition_list_item(
            "",
            nodes.term("", "", nodes.literal("", typed)),
            nodes.definition("", nodes.paragraph("", "", *_words(meaning))),
        )
    return [listed] if options else []


def _words(text: str) -> list[nodes.Node]:
    """A text whose names stand in backticks."""
    parts = re.split(r"`+([^`]+)`+", text)
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("cli", CommandLineReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
