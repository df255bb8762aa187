"""Reading of bytes, text, JSON and YAML with limits on length and nesting.

Lengths are checked before a file is read, and nesting before a content is used; FIFOs and devices are not read.
"""

from __future__ import annotations

import gc
import json
import stat
import unicodedata
from pathlib import Path
from typing import Any

from advcam_attr.types import AdvCAMError

#: Largest files in bytes: text and records, configurations, and anything else (annotations of COCO, arrays).
MAX_TEXT, MAX_CONFIG, MAX_BYTES = 1 << 29, 1 << 18, 1 << 32

#: Most levels of nesting of JSON and YAML, most characters in a line of a list, most values of a configuration.
MAX_DEPTH, MAX_LINE, MAX_VALUES = 32, 1 << 16, 10_000


def printable(text: str) -> str:
    """Return a text without what a terminal acts on: control, bidirectional and line-breaking characters as escapes.

    Example:
        >>> printable("a\\x1b[2J\\n ö")
        'a\\\\x1b[2J\\\\n ö'
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _acts(c) else c for c in text)


def _acts(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u200c\u200d"  # joiners of letters


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it is missing, cannot be read, or is not a regular file.
        AdvCAMError: it has more than ``limit`` bytes.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(f"{path} is not a file")
    if about.st_size > limit:
        raise AdvCAMError(f"{path} has {about.st_size} bytes; at most {limit} are read")
    return path.read_bytes()


def read_text(path: Path, remedy: str) -> str:
    """Return the content of a UTF-8 text file; errors name the ``remedy``."""
    try:
        return read_bytes(path, MAX_TEXT).decode()
    except OSError as error:
        raise AdvCAMError(f"cannot read {path} ({error.strerror or 'it is not a file'}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise AdvCAMError(f"{path} is damaged: its byte {error.start} is no UTF-8 text; {remedy}") from error


def read_lines(path: Path, noun: str) -> list[str]:
    """Read the lines of a UTF-8 file, with or without a byte order mark; ``noun`` describes it in errors."""
    if not path.exists():
        raise AdvCAMError(f"no such {noun}: {path}")
    lines = read_text(path, f"the {noun} must be a text file").removeprefix("\ufeff").splitlines()
    for place, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE or "\0" in line:
            raise AdvCAMError(f"line {place} of the {noun} {path} has NUL characters, or more than {MAX_LINE}")
    return lines


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, limit))


def parse_json(content: str | bytes) -> Any:
    """Parse JSON without garbage collection, which takes 40 % of the time with millions of objects.

    Raises:
        ValueError: it is malformed, nested more than `MAX_DEPTH` levels, or has text that UTF-8 cannot hold.

    Example:
        >>> parse_json('{"sizes": [3, 4]}')
        {'sizes': [3, 4]}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: nested more than 32 levels
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        value = json.loads(content)
        _check_nesting(value)
        return value
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels") from error
    finally:
        if enabled:
            gc.enable()


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        for one in level:
            if type(one) is str:
                one.encode()
            elif type(one) is dict:
                "".join(one).encode()
        inner = (one.values() if type(one) is dict else one if type(one) is list else () for one in level)
        level = [child for children in inner for child in children if type(child) in (dict, list, str)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: plain values only, aliases counted as often as they expand.

    Raises:
        OSError, ValueError: as `read_bytes`; or the file is malformed, or exceeds `MAX_DEPTH` or `MAX_VALUES`.
    """
    import yaml

    text = read_bytes(path, MAX_CONFIG).decode()
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels")
        _count_values(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (TypeError, AttributeError, LookupError, OverflowError) as error:  # of values with a wrong explicit tag
        raise ValueError(f"a value that its tag does not fit: {error}") from error


def _count_values(node: Any, known: dict[int, int | None]) -> int:
    if id(node) not in known:
        known[id(node)] = None
        value = getattr(node, "value", ())
        children = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
        parts = [] if isinstance(value, str) else children
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    count = known[id(node)]
    if count is None or count > MAX_VALUES:
        raise ValueError("an alias within itself" if count is None else f"more than {MAX_VALUES} values")
    return count
