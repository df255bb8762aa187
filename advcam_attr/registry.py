"""A name, a number or an object in; the object out. The one place where strings become parts of a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from advcam_attr.types import AdvCAMError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for a misspelt name, or the known ones where none is near."""
    names = [k for k in known if k]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; there are " + ", ".join(sorted(names)[:20]) + (", ..." if len(names) > 20 else "")


def lookup(value: Any, table: Mapping[str, T], what: str) -> T | Any:
    """``value`` itself, or what ``table`` holds under it if it is a name.

    Raises:
        AdvCAMError: no such name; the nearest ones are told.
    """
    if not isinstance(value, str):
        return value
    if value not in table:
        raise AdvCAMError(f"unknown {what} {value!r}{nearest(value, table)}")
    return table[value]


def require_callable(value: Any, what: str) -> Callable[..., Any]:
    """``value`` if it can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{what} must be a name or a callable, got {type(value).__name__} {value!r}")
    return value
