"""The values of a configuration as options, from a file and the command line."""

from __future__ import annotations

import dataclasses
import re
from argparse import Action
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from jsonargparse import ActionConfigFile, Namespace

from advcam_attr.cli.parser import KEY, Command, Parser, UsageError, kind_of
from advcam_attr.reading import read_yaml
from advcam_attr.types import AdvCAMError

C = TypeVar("C")

#: Short names of values that all stages share.
SHORT = {"--seed": "--runtime.seed", "--logger": "--runtime.logger"}


class _ConfigFile(ActionConfigFile):
    """The option ``--config``, whose file is checked for unknown keys before it is applied."""

    def __call__(self, parser: Parser, namespace: Namespace, value: str, option_string: str | None = None) -> None:
        from advcam_attr.pipelines.config import check_keys as check_renamed

        try:
            values = read_yaml(Path(value))
        except OSError as error:
            raise UsageError(f"no such configuration: {value} ({error.strerror})") from error
        except ValueError as error:
            raise UsageError(f"{value} is not a YAML file: {error}") from error
        if not isinstance(values, Mapping):
            raise UsageError(f"{value} holds no configuration: it takes KEY: VALUE lines")
        try:
            if parser.config is not None:
                check_renamed(parser.config, values)
            parser.check_keys(values)
            super().__call__(parser, namespace, value, option_string)
        except AdvCAMError as error:
            raise UsageError(f"{value}: {error}") from error


class ConfigOptions(Generic[C]):
    """``--config FILE`` and the values of a configuration as options; ``kind`` is its dataclass, ``module:name``."""

    def __init__(self, kind: str, example: str) -> None:
        self._kind, self._example = kind, example

    def options(self, *sections: str, dry_run: bool = False) -> Callable[[Parser], None]:
        """Return what declares ``--config`` and all values; the help shows ``run`` and these sections alone."""

        def add_options(parser: Parser) -> None:
            first = len(parser._actions)
            text = f"YAML file of these values and of the other stages', e.g. {self._example}"
            parser.add_argument("--config", action=_ConfigFile, metavar="FILE", help=text)
            parser.config = self._load()
            _evaluate_annotations(parser.config)
            parser.add_class_arguments(parser.config, None)
            parser.usage = "%(prog)s [--config FILE] [options]"
            for short, name in SHORT.items():
                action = parser._option_string_actions[name]
                action.option_strings = [*action.option_strings, short]
                parser._option_string_actions[short] = action
            for action in parser._actions[first + 1 :]:
                section, *names = action.dest.split(".")
                _describe(parser, action, hidden=section not in ("run", "print_config", *sections) or len(names) > 1)
            if dry_run:
                text = "check everything and list what is done and what is left, and do nothing"
                parser.add_argument("--dry-run", action="store_true", help=text)
            for name, group in parser.groups.items():
                group.title, group.description = (name if name[0].islower() else "run"), None
                if "." in name:  # a nested section is one line of its parent
                    parser.groups[name.rpartition(".")[0]]._group_actions.append(group._group_actions.pop(0))

        return add_options

    def of(self, options: Namespace) -> C:
        """Return the configuration among a command's parsed options."""
        kind = self._load()
        return kind(**{field.name: options[field.name] for field in dataclasses.fields(kind)})

    def read(self, path: Path) -> C:
        """Return the configuration that a run folder keeps."""
        parser = Parser(Command("", self.options(), lambda options: None), prog=f"advcam {path}")
        try:
            return self.of(parser.instantiate(parser.parse_args(["--config", str(path)])))
        except (AdvCAMError, TypeError) as error:
            raise AdvCAMError(
                f"{path} is damaged ({error}); run a stage again, with --config, to rewrite it"
            ) from error

    def _load(self) -> Any:
        module, _, name = self._kind.partition(":")
        return getattr(import_module(module), name)


def _evaluate_annotations(kind: type[Any]) -> None:
    """Evaluate the annotations of nested dataclasses; jsonargparse would run the TYPE_CHECKING imports of torch."""
    hints = get_type_hints(kind)
    kind.__init__.__annotations__.update(hints)
    for part in (part for hint in hints.values() for part in (hint, *get_args(hint))):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            _evaluate_annotations(part)


def _describe(parser: Parser, action: Action, hidden: bool) -> None:
    """Shorten the help of a configuration's value, and list the keys of a nested section in one line."""
    from advcam_attr.pipelines.option_types import choices_of, keys_of

    text, below = action.help or "", f"{action.dest}."
    keys = [a.dest[len(below) :].partition(".")[0] for a in parser._actions if a.dest.startswith(below)]
    if action.dest == "print_config":
        text, action.metavar = "print the resulting configuration and exit", ""
    elif keys and action.dest in parser.groups:
        hidden = hidden or "." not in action.dest
        text, action.metavar = ", ".join(dict.fromkeys(keys)), KEY
    elif optional := keys_of(kind_of(action)):
        text, action.metavar = ", ".join(optional), KEY
    else:
        text = re.split(r"\.\s+(?=[A-Z])|;", " ".join(text.split()).replace("`", ""))[0].rstrip(".")
        action.metavar = action.metavar or choices_of(kind_of(action)) or "VALUE"
    action.help = text.replace("%", "%%") or action.dest.rpartition(".")[2].replace(
        "_", " "
    )  # without docstring-parser
    action.hidden = hidden or action.dest.endswith(".help")  # type: ignore[attr-defined]
