"""Seeded mutations of files: bytes, numbers, texts, and the parts of JSON, XML and line-based files."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

NUMBERS = (
    b"0", b"-1", b"1", b"2", b"255", b"256", b"65536", b"100000", b"2147483647", b"2147483648", b"-2147483649",
    b"4294967295", b"9223372036854775808", b"1e30", b"-1e30", b"1e999", b"NaN", b"Infinity", b"0.5", b"1" + b"0" * 400,
)  # fmt: skip

WORDS = (
    b"", b"\0", b"\n", b"\xff", b"\xef\xbb\xbf", b"..", b"../../x", b"/", b"null", b"true", b"'", b'"', b"%s", b"{}",
    b"\x1b[31m", b"&a;", b"*a", "é\u2028😀".encode(), b"x" * 5000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 2**31, 2**63, 10**400, -(10**30), 0.5, 1e30, float("nan"), float("inf"),
    "", "x", "\0", "a\nb", "../x", "/etc", "\x1b[0m", "\ud800", "x" * 3000, "1",
    [], {}, [[]], [None], {"": None}, [1, 2], ["a"], [1e30] * 6, [-1, -1, 5, 5, 3, 1],
    {"size": [12, 16], "counts": [-5, 197]}, {"size": [12, 16], "counts": "0" * 9},
    {"size": [12, 16], "counts": [192]}, {"size": [100000, 100000], "counts": [10**10]},
)  # fmt: skip


def flip(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def overwrite(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(content))
    value = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**16, 255, 10**6))
    form = rng.choice(("<b", "<h", ">h", "<i", ">i", "<q", ">q"))
    size = struct.calcsize(form)
    low = -(1 << 8 * size - 1)
    new = struct.pack(form, (value - low) % (1 << 8 * size) + low)
    return content[:place] + new + content[place + size :]


def insert(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(content) + 1)
    new = rng.choice((rng.choice(WORDS), rng.randbytes(rng.randint(1, 8))))
    return content[:place] + new + content[place:]


def delete(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice((1, 1, 2, 4, 16, 512)) :]


def truncate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return content[: rng.randrange(len(content))]


def duplicate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 8, 64, 512)))
    return content[:end] + content[start:end] * rng.choice((1, 1, 3, 50)) + content[end:]


def splice(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other) + 1) :]


def number(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return flip(content, rng, others)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(NUMBERS) + content[one.end() :]


def word(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"[\w./-]+", content))
    if not found:
        return flip(content, rng, others)
    one = rng.choice(found)
    new = rng.choice((rng.choice(WORDS), rng.choice(found)[0]))
    return content[: one.start()] + new + content[one.end() :]


def lines(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    rows = content.splitlines(keepends=True)
    place = rng.randrange(len(rows))
    row, kind = rows[place], rng.randrange(6)
    if kind == 0:
        del rows[place]
    elif kind == 1:
        rows[place:place] = [row] * rng.choice((1, 2, 30))
    elif kind == 2:
        rng.shuffle(rows)
    elif kind == 3:
        rows[place] = b"  " * rng.randint(1, 40) + row
    elif kind == 4:
        rows[place] = row.lstrip()
    else:
        rows[place] = rng.choice(
            (b"a: &a [*a]\n", b"x: &x\n", b"<<: *x\n", b"? [a]\n: 1\n", b"---\n", b"[" * 90 + b"\n")
        )
    return b"".join(rows)


def json_part(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace, delete, rename, nest or copy a random part of a JSON document, or of one line of JSON lines."""
    rows = content.split(b"\n") if b"}\n{" in content or b"]\n[" in content else [content]
    place = rng.randrange(len(rows))
    try:
        root = [json.loads(rows[place])]
    except (ValueError, RecursionError):
        return flip(content, rng, others)
    holders = [root]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [child for child in inner if isinstance(child, (dict, list)) and child]
    at = holders[0] if rng.random() < 0.05 else rng.choice(holders)
    key: Any = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    kind = rng.randrange(9)
    if kind == 0 and at is not root:
        del at[key]
    elif kind == 1 and isinstance(at, dict):
        at[rng.choice(("x", "", "a.b", "\0"))] = at.pop(key)
    elif kind == 2:
        for _ in range(rng.choice((1, 1, 5, 40))):
            at[key] = rng.choice(([at[key]], {"a": at[key]}))
    elif kind == 3:
        at[key] = rng.choice(holders[1:] or [None]) if at is root else json.loads(json.dumps(rng.choice(holders)))
    elif kind == 4 and isinstance(at, list):
        at *= rng.choice((2, 30))
    else:
        at[key] = rng.choice(VALUES)
    try:
        rows[place] = json.dumps(root[0]).encode()
    except (ValueError, RecursionError):  # a part that was put into itself
        return flip(content, rng, others)
    return b"\n".join(rows)


def xml_part(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Delete, repeat, nest or rename an element, or put a document type before the root."""
    found = list(re.finditer(rb"<(\w+)>.*?</\1>", content, re.DOTALL))
    if not found:
        return flip(content, rng, others)
    one, kind = rng.choice(found), rng.randrange(5)
    if kind == 0:
        new = b""
    elif kind == 1:
        new = one[0] * rng.choice((2, 30))
    elif kind == 2:
        deep = rng.choice((1, 40, 3000))
        new = b"<a>" * deep + one[0] + b"</a>" * deep
    elif kind == 3:
        new = one[0].replace(one[1], rng.choice(found)[1])
    else:
        return b'<!DOCTYPE a [<!ENTITY a "' + b"x" * 99 + b'">]>' + content
    return content[: one.start()] + new + content[one.end() :]


ANY: tuple[Mutation, ...] = (flip, flip, overwrite, insert, delete, truncate, duplicate, splice, number)
TEXT: tuple[Mutation, ...] = (number, number, word, word, lines, lines)


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Return a content after one to three mutations that suit it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not content:
            return rng.choice(WORDS)
        start = content[:64].lstrip()[:1]
        own: tuple[Mutation, ...] = ()
        if start in (b"{", b"["):
            own = (json_part, json_part, json_part, number, word)
        elif start == b"<":
            own = (xml_part, number, word, lines)
        elif content[:200].isascii() and b"\0" not in content[:200]:
            own = TEXT
        content = rng.choice(own if own and rng.random() < 0.7 else ANY)(content, rng, others)
    return content
