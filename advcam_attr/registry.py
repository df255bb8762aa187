"""Look-up of objects by name, with suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from advcam_attr.types import AdvCAMError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for a misspelt name, or the list of known names if none is near."""
    names = [k for k in known if k]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; there are " + ", ".join(sorted(names)[:20]) + (", ..." if len(names) > 20 else "")


def lookup(value: Any, table: Mapping[str, T], what: str) -> T | Any:
    """Return ``table[value]`` for a name, and any other value itself.

    Raises:
        AdvCAMError: unknown name; the message suggests the nearest ones.
    """
    if not isinstance(value, str):
        return value
    if value not in table:
        raise AdvCAMError(f"unknown {what} {value!r}{nearest(value, table)}")
    return table[value]


def require_callable(value: Any, what: str) -> Callable[..., Any]:
    """Return ``value`` if it is callable; a `TypeError` otherwise."""
    if isinstance(value, type):
        raise TypeError(f"{what} must be an object: pass {value.__name__}(...), not the class")
    if not callable(value):
        raise TypeError(f"{what} must be a name or a callable, got {type(value).__name__} {value!r}")
    return value
