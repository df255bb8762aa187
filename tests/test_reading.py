"""Limits of reading: lengths, nesting, aliases, and what is no file."""

import os

import pytest
import yaml

from advcam_attr.reading import MAX_LINE, parse_json, read_bytes, read_json, read_lines, read_yaml
from advcam_attr.types import AdvCAMError


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 40 + "1" + "}" * 40, r'"\ud800"', r'{"\ud800": 1}', "[1,",
     "1" * 5000],
    ids=["unclosed", "deep", "deep objects", "surrogate", "surrogate key", "cut", "digits"],
)  # fmt: skip
def test_bad_json_is_a_value_error(content):
    with pytest.raises(ValueError):
        parse_json(content)
    with pytest.raises(ValueError):
        parse_json(content.encode())


def test_json_of_usual_depth_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"ä": [[[[[1, 2.5, null]]]]], "b": {}}', encoding="utf-8")
    assert read_json(path) == {"ä": [[[[[1, 2.5, None]]]]], "b": {}}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(97 + n)}: &{chr(97 + n)} [{', '.join(['*' + chr(96 + n)] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (BOMB, "more than 10000 values"),
        ("a: &a [*a]", "an alias within itself"),
        ("[" * 50_000, "nested more than"),
        ("a: {" * 40 + "}" * 40, "nested more than"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 2020-99-99", "month"),
        ("a: !!int []", "expected a scalar"),
        ("? [a]\n: 1", "unhashable"),
        ("a: [1,", "while parsing"),
    ],
)
def test_yaml_bombs_and_errors_are_one_line(tmp_path, content, word):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=word) as caught:
        read_yaml(path)
    assert not isinstance(caught.value, yaml.YAMLError)
    assert "\n" not in str(caught.value)


def test_aliases_of_usual_size_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_long_files_are_measured_first(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AdvCAMError, match="1099511627776 bytes; at most"):
        read_bytes(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is not a file"):
        read_bytes(tmp_path / "fifo")


@pytest.mark.parametrize("line", ["x" * (MAX_LINE + 1), "a\0b"], ids=["long", "NUL"])
def test_lists_have_short_lines_without_nul(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"\ufeff2007_000032\n{line}\n", encoding="utf-8")
    with pytest.raises(AdvCAMError, match=r"line 2 of the list .* NUL characters, or more than"):
        read_lines(tmp_path / "a.txt", "list")
    (tmp_path / "a.txt").write_text("\ufeff2007_000032\nb", encoding="utf-8")
    assert read_lines(tmp_path / "a.txt", "list") == ["2007_000032", "b"]
