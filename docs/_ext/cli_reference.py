"""The directive ``cli``: a section for each command, with its options as its parser declares them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from advcam_attr.cli.main import COMMANDS
from advcam_attr.cli.parser import Command, Group, Parser, default_of, is_hidden


def commands(
    tree: Mapping[str, Command | Group] = COMMANDS, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Command | Group]]:
    """Yield each command and group by its words, groups before their commands."""
    for name, command in tree.items():
        here = (*path, name)
        yield " ".join(here), command
        if isinstance(command, Group):
            yield from commands(command.commands, here)


def options_of(name: str, command: Command) -> list[tuple[str, str]]:
    """Return the arguments and options that the help of a command shows, each with its meaning."""
    parser = Parser(command, prog=f"advcam {name}").declared()
    shown = [a for a in parser._actions if a.dest != "help" and not is_hidden(a)]
    return [(_typed(action), _meaning(action)) for action in shown]


def _typed(action: argparse.Action) -> str:
    more = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"{action.metavar}{more}"
    names = ", ".join(action.option_strings)
    if action.nargs == 0 or action.metavar == "" or type(action).__name__ == "ActionYesNo":
        return names
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    return f"{names} {action.metavar or choices or action.dest.upper()}{more}"


def _meaning(action: argparse.Action) -> str:
    text = " ".join((action.help or "").split()) % {"default": action.default}
    return f"{text} {default_of(action)}".strip() if hasattr(action, "hidden") else text


class CommandLineReference(SphinxDirective):
    """A section a command."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name, command in commands():
            section = nodes.section(ids=[nodes.make_id(f"cli-{name}")], names=[f"cli {name}"])
            section += nodes.title("", "", nodes.literal("", f"advcam {name}"))
            self.state.document.note_implicit_target(section, section)
            section += nodes.paragraph("", command.help[:1].upper() + command.help[1:] + ".")
            if isinstance(command, Command):
                section += _option_list(options_of(name, command))
            sections.append(section)
        return sections


def _option_list(options: list[tuple[str, str]]) -> nodes.definition_list:
    items = nodes.definition_list(classes=["options"])
    for typed, meaning in options:
        term = nodes.term("", "", nodes.literal("", typed))
        items += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", "", *_text(meaning))))
    return items


def _text(text: str) -> list[nodes.Node]:
    """Return a text as nodes, with the names in backticks as literals."""
    parts = re.split(r"`+([^`]+)`+", text)
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("cli", CommandLineReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
