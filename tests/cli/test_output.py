"""What the terminal shows of hostile names: no control, bidirectional or line-breaking character is printed raw."""

from __future__ import annotations

import ast
import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from advcam_attr.cli import main as cli
from advcam_attr.reading import printable
from advcam_attr.runs.run_log import LOG, MULTILINE, PACKAGE, LineFormatter, run_log
from advcam_attr.tables.table import Table
from places import ROOT

NASTY = "a\x1b[2J\x07\x9b31m\u202egnp\u2028b\nadvcam: done\r"
SHOWN = r"a\x1b[2J\x07\x9b31m\u202egnp\u2028b\nadvcam: done\r"


def acting(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_printable_escapes_what_acts_and_keeps_letters():
    assert printable(NASTY) == SHOWN
    assert printable("\udcff") == r"\udcff"
    for text in ("plain ö 猫 ☃", "no\u00a0break", "می\u200cخواهم"):
        assert printable(text) == text


def test_a_log_line_is_one_line_unless_it_says_so(tmp_path):
    with run_log(tmp_path):
        PACKAGE.info(f"reading {NASTY}")
        PACKAGE.info(f"table\n{SHOWN}\x1b", extra=MULTILINE)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [line.partition("INFO ")[2] or line for line in lines] == [f"reading {SHOWN}", "table", SHOWN + r"\x1b"]
    record = logging.LogRecord("advcam_attr", logging.INFO, "", 0, "a\x1b", (), None)
    assert LineFormatter().format(record) == r"a\x1b"


def test_the_lines_of_tables_are_printable():
    assert acting(Table("t", ("method", "source"), ((NASTY, "here"),)).text()) == []
    assert len(Table("t", ("method", "source"), ((NASTY, "here"),)).text().splitlines()) == 3


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes")
def test_names_of_images_and_classes_are_shown_escaped(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    names = [f"{NASTY}.png".replace("/", ""), os.fsdecode(b"\xff\xfe.png"), f"{NASTY}broken.png"]
    for name in names[:2]:
        Image.new("RGB", (48, 48)).save(Path("plain.png"))
        os.rename("plain.png", f"photos/{name}")
    Path(f"photos/{names[2]}").write_text("none")
    Path("labels.txt").write_text("one\x1b[31m\ntwo\u202e\nthree\nfour\n")
    words = ["--model", "advcam_attr.pipelines.demo:small_net", "--labels", "labels.txt", "--input-size", "48"]
    assert cli.main(["attribute", "photos", "--steps", "1", "--target", "0", "--target", "1", *words]) == 2
    out, err = capsys.readouterr()
    assert acting(out + err) == []
    assert err.count("\n") == 1
    assert SHOWN in out
    assert r"\udcff\udcfe.png" in out
    assert len(out.splitlines()) == 5
    records = [json.loads(path.read_text()) for path in Path("advcam_out").glob("*.json")]
    assert {Path(record["image"]).name for record in records} == set(names[:2])
    assert cli.main(["attribute", "photos", f"{NASTY}", *words]) == 2
    assert acting("".join(capsys.readouterr())) == []


def test_the_command_line_prints_in_one_place():
    """Only `cli.output` prints, besides the flush that finds a closed pipe."""
    for path in (ROOT / "advcam_attr" / "cli").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = [node for node in calls if getattr(node.func, "id", "") == "print" and node.args]
        assert path.name == "output.py" or not printed, path
