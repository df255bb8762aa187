"""A configuration's dataclass in; the options of its values, and the configuration that options or a file give, out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from jsonargparse import ActionConfigFile, Namespace

from advcam_attr.cli.parser import Parser, UsageError

C = TypeVar("C")


class Configured(Generic[C]):
    """The command line of a configuration.

    Args:
        load: gives the dataclass; it is called when a command needs it, as its module may import much.
        command: the commands that take it, e.g. ``"wsol"``.
        example: a configuration file to name in the help.
    """

    def __init__(self, load: Callable[[], type[C]], command: str, example: str) -> None:
        self._load, self._command, self._example = load, command, example

    def add_options(self, parser: Parser) -> None:
        """Declare ``--config`` and every value of the configuration as an option of its own."""
        text = f"YAML file of the values below: {self._example}"
        parser.add_argument("--config", action=ActionConfigFile, help=text)
        parser.add_class_arguments(self._load(), None)

    def of(self, options: Namespace) -> C:
        """The configuration among a command's options."""
        kind: Any = self._load()
        names = [field.name for field in dataclasses.fields(kind)]
        built = self._parser().instantiate(Namespace(**{name: options[name] for name in names}))
        config: C = kind(**{name: built[name] for name in names})
        return config

    def read(self, path: Path) -> C:
        """The configuration that a run folder keeps.

        Raises:
            AdvCAMError: the file is damaged.
        """
        from advcam_attr.types import AdvCAMError

        try:
            return self.of(self._parser().parse_path(str(path)))
        except (UsageError, ValueError, TypeError, KeyError) as error:
            raise AdvCAMError(
                f"{path} is damaged ({error}); run a stage again, with --config, to write it anew"
            ) from error

    def _parser(self) -> Parser:
        parser = Parser(prog=f"advcam {self._command}")
        self.add_options(parser)
        return parser
