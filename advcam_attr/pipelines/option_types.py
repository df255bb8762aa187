"""The types of configuration values: checks, and errors that say what a value takes."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from advcam_attr.registry import close_to, nearest
from advcam_attr.types import AdvCAMError

_TAKES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "null",
    Any: "a value",
    dict: "keys and values, as in '{key: 1}'",
    PositiveInt: "an integer above 0",
    NonNegativeInt: "an integer from 0 on",
    NonNegativeFloat: "a number from 0 on",
    ClosedUnitInterval: "a number from 0 to 1",
}


def takes(kind: Any) -> str:
    """Return what a value of a type is, in words.

    Example:
        >>> takes(tuple[int, int]), takes(Literal["cam", "advcam"] | None)
        ('a list of 2 values, each an integer', 'one of cam, advcam, or null')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        *texts, last = dict.fromkeys(map(takes, parts))
        return f"{' or '.join(texts)}{',' if any(',' in text for text in texts) else ''} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (tuple, list):
        count = "" if origin is list or Ellipsis in parts else f" of {len(parts)} values"
        return f"a list{count}, each {takes(parts[0])}"
    if origin is dict and parts[1] is not Any:
        return f"keys and values, each value {takes(parts[1])}"
    if dataclasses.is_dataclass(kind):
        return "a section of keys and values"
    return _TAKES.get(origin or kind) or str(getattr(kind, "__name__", kind))


def parsed(kind: Any, value: Any, name: str) -> Any:
    """Return a value of a configuration as its type; an `AdvCAMError` that says what ``name`` takes otherwise."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.parse_object({"value": value}).value
    except ArgumentError as error:
        raise AdvCAMError(mismatch(kind, value, name)) from error


def keys_of(kind: Any) -> tuple[str, ...]:
    """Return the keys of a section that may be absent; nothing for other types."""
    section = _section(kind)
    return () if section is None else tuple(get_type_hints(section))


def choices_of(kind: Any) -> str:
    """Return the names that an option takes as argparse writes them, ``{a,b}``; nothing for other types."""
    names = [] if get_origin(kind) in (tuple, list) else _names(kind)
    return f"{{{','.join(names)}}}" if names else ""


def check_section(kind: Any, value: Any, name: str) -> None:
    """Raise for keys that a section which may be absent does not have: jsonargparse would import a ``class_path``."""
    section = _section(kind)
    if section is None or value is None:
        return
    if not isinstance(value, Mapping):
        raise AdvCAMError(mismatch(kind, value, name))
    hints = get_type_hints(section)
    for key in value:
        if key not in hints:
            raise AdvCAMError(f"{name} has no {key!r}{nearest(str(key), hints)}")


def mismatch(kind: Any, value: Any, name: str) -> str:
    """Return the error of a value that is not of its type; it names the innermost value that does not fit."""
    if (key := getattr(value, "key", None)) is not None:  # jsonargparse's --SECTION.KEY of a section that may be absent
        value = {key: value.val}
    section = _section(kind)
    if section is not None and isinstance(value, (Mapping, Namespace)):
        hints = get_type_hints(section)
        try:
            check_section(kind, dict(value), name)
            for key, item in dict(value).items():
                parsed(hints[key], item, f"{name}.{key}")
        except AdvCAMError as error:
            return str(error)
    close = close_to(value, _names(kind)) if isinstance(value, str) else ""
    return f"{name} takes {takes(kind)}; got {value!r}{close}"


def _names(kind: Any) -> list[str]:
    parts = (kind, *get_args(kind))
    return [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]


def _section(kind: Any) -> Any:
    return next((part for part in (kind, *get_args(kind)) if dataclasses.is_dataclass(part)), None)
