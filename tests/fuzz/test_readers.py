"""Damaged files of every kind: only `AdvCAMError`, of one line, within limits of memory and time.

A failing case is run alone by ``python tests/helpers/fuzz_run.py READER NUMBER``.
"""

from __future__ import annotations

import ast
import os
import re
import signal
from pathlib import Path

import pytest

import fuzz_run
from advcam_attr.types import AdvCAMError
from fuzz_readers import READERS
from fuzz_run import Reader, run

ROOT = Path(__file__).parents[2] / "advcam_attr"

EVERY = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


#: What reads or parses a file that the package did not just write.
READING = {
    "read_bytes", "read_text", "read_lines", "read_json", "read_yaml", "parse_json", "read_torch_file", "read_legacy",
    "unpickled", "read_npy", "open_image", "read_xml", "fromstring", "safe_open", "load_file", "read_tensors",
    "loads", "safe_load", "ZipFile", "TarFile", "GzipFile", "loadmat", "imread", "read_field",
}  # fmt: skip

#: Modules that call one of these names without reading a file of their own, and why.
OTHERS = {
    **dict.fromkeys(("pipelines/attribute", "pipelines/map_settings"), "parses what it has just made"),
    "pipelines/config": "the same; and keeps a file's bytes, to put them back",
    "pipelines/semi/training": "copies a file",
    "pipelines/wsss/classifier": "compares a file with what it would write",
    "runs/progress": "counts line breaks",
}


def calls_of(path: Path) -> set[str]:
    nodes = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}


def test_every_module_that_reads_is_in_the_table():
    covered = {module for reader in READERS for module in reader.modules} | OTHERS.keys()
    reading = {p.relative_to(ROOT).with_suffix("").as_posix(): calls_of(p) & READING for p in ROOT.rglob("*.py")}
    assert {module: calls for module, calls in reading.items() if calls and module not in covered} == {}
    assert {module for reader in READERS for module in reader.modules} <= reading.keys()


@EVERY
def test_two_hundred_mutations(reader: Reader):
    assert run(reader, range(min(200, 2000 // reader.share))) == []


@pytest.mark.slow
@EVERY
def test_ten_thousand_mutations(reader: Reader):
    assert run(reader, range(200, 10_000 // reader.share)) == []


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (lambda folder: [].pop(), "case 0: IndexError: 'pop from empty list' at fuzz_run.py"),
        (lambda folder: bytearray(1 << 36), "case 0: MemoryError"),
        (lambda folder: os.kill(os.getpid(), signal.SIGSEGV), r"case 0: the process ended \(SIGSEGV\)"),
        (lambda folder: [None for _ in iter(int, 1)], "case 0: more than 0.2 seconds"),
        (lambda folder: (_ for _ in ()).throw(AdvCAMError("x")), None),
    ],
    ids=["error", "memory", "crash", "time", "documented"],
)
def test_what_is_found(monkeypatch, read, word):
    """The harness itself: undocumented errors, memory, crashes and time are problems; AdvCAMError is none."""
    monkeypatch.setattr(fuzz_run, "SECONDS", 0.2)
    sound = [True]
    reader = Reader("any", (), lambda: [{"a": b"abc"}], lambda folder: sound.pop() if sound else read(folder))
    problems = run(reader, range(2))
    assert bool(problems) == (word is not None)
    assert word is None or re.search(word, problems[0])


def test_a_case_is_the_same_every_time(tmp_path):
    reader = next(reader for reader in READERS if reader.name == "images")
    for folder in (tmp_path / "a", tmp_path / "b"):
        fuzz_run.Cases(reader, folder).prepare(7)
    assert (tmp_path / "a" / "image").read_bytes() == (tmp_path / "b" / "image").read_bytes()
