"""A dataclass of settings in; options of a command for all its values, and the settings that they give, out."""

from __future__ import annotations

from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, Namespace

from advcam_attr.cli.parser import Parser

Config = TypeVar("Config", bound=Any)


def add_config(parser: Parser, kind: type[Any], example: str) -> Parser:
    """Declare ``--config`` and every value of the settings as an option of its own; the parser."""
    parser.add_argument("--config", action=ActionConfigFile, help=f"YAML file of the values below: {example}")
    parser.add_class_arguments(kind, None)
    return parser


def config_of(options: Namespace, kind: type[Config]) -> Config:
    """The settings among a command's options."""
    values = Namespace(**{key: options[key] for key in kind.__dataclass_fields__})
    built = add_config(Parser(prog="advcam"), kind, "").instantiate(values)
    return kind(**{key: built[key] for key in kind.__dataclass_fields__})
