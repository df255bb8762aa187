"""Parsers of the command line: sub-commands that declare their options on first use, and one-line errors."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, get_args, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from advcam_attr.reading import parse_json, read_yaml
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.model import ModelChoice

C = TypeVar("C")

#: Stands for each of the names of a nested section, as in ``--refine.irn.KEY``.
_KEY = ".KEY"

MODEL_HELP = "timm/NAME, torchvision/NAME or package.module:factory"


class UsageError(AdvCAMError):
    """A command line or configuration file that does not parse."""


@dataclass(frozen=True)
class Command:
    """A command: its summary, what declares its options (importing nothing heavy), and what runs it."""

    help: str
    add_options: Callable[[Parser], None]
    run: Callable[[Namespace], int | None]


@dataclass(frozen=True)
class Group:
    """Commands below a common first word."""

    help: str
    commands: Mapping[str, Command | Group]


class _Formatter(HelpFormatter):
    """Help in two columns; long defaults of a configuration's values are shortened."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"max_help_position": 40, **kwargs})

    def add_argument(self, action: Action) -> None:
        if not is_hidden(action):
            super().add_argument(action)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if not hasattr(action, "hidden") or action.metavar == _KEY:
            return text
        default = textwrap.shorten(default_of(action), 60, placeholder=" ...)")
        return f"{text} {default}".rstrip()


class Parser(ArgumentParser):
    """A parser that declares the options of its command when it is first used, and raises `UsageError`."""

    def __init__(self, command: Command | Group | None = None, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        # jsonargparse would import the module of a value as {class_path: ...} before it rejects it
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["advcam_attr.pipelines"])
        self.children: dict[str, Parser] = {}
        self.config: type[Any] | None = None
        self._command = command

    def declared(self) -> Parser:
        """Return the parser itself with its sub-commands or options."""
        command, self._command = self._command, None
        if isinstance(command, Group):
            subcommands = self.add_subcommands(dest="command", metavar="COMMAND", title="commands", description=None)
            for name, child in command.commands.items():
                parser = self.children[name] = Parser(child, description=child.help)
                subcommands.add_subcommand(name, parser, help=child.help)
                parser.prog = f"{self.prog} {name}"
        elif command is not None:
            command.add_options(self)
            self.add_argument("--quiet", action="store_true", help="show warnings and results only")
            self.add_argument("--verbose", action="store_true", help="show debugging messages, too")
            text = "run this package.module:factory where a file names it; may be repeated"
            self.add_argument("--trust-factory", action="append", metavar="NAME", help=text)
        return self

    def parse_args(self, args: Sequence[str], *rest: Any, **kwargs: Any) -> Namespace:
        self.declared()
        self._check_words(args)
        return super().parse_args(args, *rest, **kwargs)

    def validate(self, namespace: Namespace, *rest: Any, **kwargs: Any) -> None:
        missing = [
            typed(a) for a in self._actions if a.required and not self.children and namespace.get(a.dest) is None
        ]
        if missing:
            needs = f"{self.prog.partition(' ')[2]} needs {' and '.join(missing)}"
            raise UsageError(needs + (", or --config FILE" if "--config" in self._option_string_actions else ""))
        super().validate(namespace, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message) from ex

    def check_keys(self, values: Mapping[str, Any], section: str = "") -> None:
        """Compare the keys of a configuration file with the known options."""
        known = {a.dest[len(section) :].partition(".")[0] for a in self._actions if a.dest.startswith(section)}
        for key, value in values.items():
            name = f"{section}{key}"
            if key not in known:
                raise UsageError(f"the configuration has no {name!r}{nearest(key, known)}")
            if name in self.groups:
                if not isinstance(value, Mapping):
                    raise UsageError(f"{name} is a section of keys and values, got {value!r}")
                self.check_keys(value, f"{name}.")

    def _check_words(self, words: Sequence[str]) -> None:
        if self.children and not words:
            raise UsageError(f"give a command: {', '.join(self.children)}; see {self.prog} --help")
        for word in words:
            if word == "--":
                return
            option = word.partition("=")[0]
            if option.startswith("--") and not self._knows(option):
                options = [o for a in self._actions if not is_hidden(a) for o in a.option_strings]
                raise UsageError(f"unknown option {option}{nearest(option, options)}")
            if self.children and not word.startswith("-"):
                if word not in self.children:
                    what = f"{self.prog} command".partition(" ")[2]
                    raise UsageError(f"unknown {what} {word!r}{nearest(word, self.children)}")
                return

    def _knows(self, option: str) -> bool:
        """Whether an option exists, or is an item of a dictionary or of an optional section."""
        containers = (o for o, a in self._option_string_actions.items() if a.dest not in self.groups)
        return option in self._option_string_actions or any(option.startswith(f"{o}.") for o in containers)


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
        if parser.config is not None:
            check_renamed(parser.config, values)
        parser.check_keys(values)
        super().__call__(parser, namespace, value, option_string)


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
            for action in parser._actions[first + 1 :]:
                section, *names = action.dest.split(".")
                _describe(parser, action, hidden=section not in ("run", "print_config", *sections) or len(names) > 1)
            if dry_run:
                text = "list what is done and what is left, and do nothing"
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
    text, keys = action.help or "", [a.dest for a in parser._actions if a.dest.startswith(f"{action.dest}.")]
    if action.dest == "print_config":
        text, action.metavar = "print the resulting configuration and exit", ""
    elif keys and action.dest in parser.groups:
        hidden = hidden or "." not in action.dest
        text = ", ".join(dict.fromkeys(key[len(action.dest) + 1 :].partition(".")[0] for key in keys))
        action.metavar = _KEY
    else:
        text = re.split(r"\.\s+(?=[A-Z])|;", " ".join(text.split()).replace("`", ""))[0].rstrip(".")
        action.metavar = action.metavar or "VALUE"
    action.help = text.replace("%", "%%")
    action.hidden = hidden  # type: ignore[attr-defined]


def default_of(action: Action) -> str:
    """Return the default of a configuration's value in brackets, or nothing if it has none."""
    return "" if action.default in (None, {}, False, SUPPRESS) else f"(default: {action.default})"


def is_hidden(action: Action) -> bool:
    """Return whether the help leaves an option out: it belongs to another stage or to a nested section."""
    return getattr(action, "hidden", False)


def typed(action: Action) -> str:
    """Return an option's name as it is typed."""
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def models_named(words: Sequence[str]) -> set[str]:
    """Return the models that a command line itself names, which are trusted; not those of its configuration file."""
    named = set()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in ("--model", "--trust-factory") or re.fullmatch(r"--.+\.(model|backbone\.name)", option):
            named.add(value if equals else following)
    return named


def add_model_options(parser: Parser) -> None:
    """Declare how a model is loaded."""
    text = """arguments of the model, e.g. '{"num_classes": 20}'"""
    parser.add_argument("--model-args", type=dict[str, Any], default={}, metavar="JSON", help=text)
    parser.add_argument("--checkpoint", type=str, metavar="FILE", help="weights: safetensors, or torch's plain weights")
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="input size (default: the model's own)")
    for name in ("mean", "std"):
        text = f"{name} of the normalization: one or three numbers (default: the model's own)"
        parser.add_argument(f"--{name}", type=float, nargs="+", metavar="X", help=text)


def add_archive_options(parser: Parser) -> None:
    """Declare what an archive for a test server is compared with."""
    parser.add_argument("--list", type=str, metavar="LIST", help="the images' ids: ImageSets/Segmentation/test.txt")
    parser.add_argument("--images", type=str, metavar="DIR", help="folder of the images, whose sizes are compared")


def model_choice(spec: str, options: Namespace, random_weights: bool, labels: str | None = None) -> ModelChoice:
    """Return the model that a specification and `add_model_options` name."""
    from advcam_attr.pipelines.model import ModelChoice

    return ModelChoice(
        spec,
        model_args=options.model_args,
        checkpoint=path_of(options.checkpoint),
        random_weights=random_weights,
        labels=path_of(labels),
        mean=numbers(options.mean),
        std=numbers(options.std),
        input_size=options.input_size,
    )


def path_of(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def parse_parts(items: Sequence[str] | None) -> dict[str, Any]:
    """Parse the parts of a recipe from ``KEY=VALUE`` items; values are JSON where they parse as such."""
    parts: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise AdvCAMError(f"--set takes KEY=VALUE, got {item!r}")
        try:
            parts[key] = parse_json(value)
        except ValueError:
            parts[key] = value
    return parts


def several(errors: Sequence[str]) -> str:
    """Join the first five messages and count the others."""
    return "; ".join(errors[:5]) + (f"; and {len(errors) - 5} more" if len(errors) > 5 else "")
