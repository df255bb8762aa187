"""Parsers of the command line: sub-commands that declare their options on first use, and one-line errors."""

from __future__ import annotations

import functools
import re
import textwrap
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from advcam_attr.reading import parse_json
from advcam_attr.registry import close_to, nearest
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.pipelines.model import ModelChoice

#: Stands for each of the names of a nested section, as in ``--refine.irn.KEY``.
KEY = ".KEY"

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

    def _format_action_invocation(self, action: Action) -> str:
        text = super()._format_action_invocation(action)
        if action.metavar == KEY:
            return f"{typed(action)}{KEY} VALUE"
        return text.replace(f" {action.metavar},", ",") if len(action.option_strings) > 1 else text

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if not hasattr(action, "hidden") or action.metavar == KEY:
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
            for action in self._actions:
                _name_what_it_takes(action)
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
        action = self._option_string_actions.get(getattr(ex, "argument_name", None) or "")
        if action is not None:  # values of wrong types are named where they are checked: it is their number here
            message = f"{typed(action)} takes {'no value' if action.nargs == 0 else _taken(action) + '; none is given'}"
        raise UsageError(message) from ex

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices and action.option_strings:
            close = close_to(str(value), map(str, action.choices))
            raise UsageError(f"{typed(action)} takes {_taken(action)}; got {value!r}{close}")
        super()._check_value(action, value)

    def check_keys(self, values: Mapping[str, Any], section: str = "") -> None:
        """Compare the keys of a configuration file with the known options."""
        from advcam_attr.pipelines.option_types import check_section

        dests = [a.dest[len(section) :] for a in self._actions if a.dest.startswith(section)]
        known = {dest.partition(".")[0] for dest in dests}
        for key, value in values.items():
            name = f"{section}{key}"
            if key not in known:
                raise UsageError(f"there is no {name!r}{nearest(str(key), known, dests)}")
            if name in self.groups:
                if not isinstance(value, Mapping):
                    raise UsageError(f"{name} is a section of keys and values, got {value!r}")
                self.check_keys(value, f"{name}.")
            elif (action := self._option_string_actions.get(f"--{name}")) is not None:
                check_section(kind_of(action), value, name)

    def _check_words(self, words: Sequence[str]) -> None:
        if self.children and not words:
            raise UsageError(f"give a command: {', '.join(self.children)}; see {self.prog} --help")
        for word in words:
            if word == "--":
                return
            option = word.partition("=")[0]
            if option.startswith("--") and not self._knows(option):
                options = [o for a in self._actions if not is_hidden(a) for o in a.option_strings]
                others = self._option_string_actions
                raise UsageError(f"unknown option {option}{nearest(option, options, others)}")
            if option[2:] in self.groups:
                raise UsageError(f"{option} is a section of values: give {option}.KEY VALUE, or --config FILE")
            if self.children and not word.startswith("-"):
                if word not in self.children:
                    what = f"{self.prog} command".partition(" ")[2]
                    raise UsageError(f"unknown {what} {word!r}{nearest(word, self.children)}")
                return

    def _knows(self, option: str) -> bool:
        """Whether an option exists, or is an item of a dictionary or of an optional section."""
        containers = (o for o, a in self._option_string_actions.items() if a.dest not in self.groups)
        return option in self._option_string_actions or any(option.startswith(f"{o}.") for o in containers)


def _name_what_it_takes(action: Action) -> None:
    """Let an option's error name the option, its value and what it takes, in place of jsonargparse's report."""
    check = getattr(action, "_check_type", None)
    if check is None:
        return

    @functools.wraps(check)
    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        from advcam_attr.pipelines.option_types import mismatch

        try:
            return check(value, *args, **kwargs)
        except AdvCAMError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(mismatch(kind_of(action), value, typed(action))) from error

    action._check_type = checked  # type: ignore[attr-defined]


def kind_of(action: Action) -> Any:
    kind = getattr(action, "_typehint", str)
    return kind if action.nargs is None else list[kind]  # type: ignore[valid-type]


def _taken(action: Action) -> str:
    from advcam_attr.pipelines.option_types import takes

    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    kind = kind_of(action)
    return action.metavar if kind is str and isinstance(action.metavar, str) else takes(kind)


def default_of(action: Action) -> str:
    """Return the default of a configuration's value in brackets, or nothing if it has none."""
    default = action.default
    return "" if default in (None, {}, SUPPRESS) or default is False else f"(default: {default})"


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


def add_model_options(parser: Parser) -> Any:
    """Declare how a model is loaded, and return the group of these options."""
    group = parser.add_argument_group("model")
    text = """arguments of the model, e.g. '{"num_classes": 20}'"""
    group.add_argument("--model-args", type=dict[str, Any], default={}, metavar="JSON", help=text)
    group.add_argument("--checkpoint", type=str, metavar="FILE", help="weights: safetensors, or torch's plain weights")
    group.add_argument("--input-size", type=int, metavar="PIXELS", help="input size (default: the model's own)")
    for name in ("mean", "std"):
        text = f"{name} of the normalization: one or three numbers (default: the model's own)"
        group.add_argument(f"--{name}", type=float, nargs="+", metavar="X", help=text)
    return group


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
