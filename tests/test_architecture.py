"""Imports point down: the floors of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "advcam_attr"

FLOORS = {
    "types": 0, "registry": 0, "files": 0, "reading": 0, "pickles": 0, "tensor_files": 0,
    "heads": 1, "networks": 1, "data": 1, "refine": 1, "metrics": 1, "viz": 1, "tables": 1.5,
    "runs": 2, "training": 2, "climbing": 3, "attr": 4, "analysis": 5,
    "pipelines": 6, "report": 6, "cli": 7, "__main__": 8, "__init__": 4,
}  # fmt: skip


def unit(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in FLOORS else parts[0]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("advcam_attr"):
            inner = node.module.removeprefix("advcam_attr").removeprefix(".")
            found |= {f"{inner}.{name.name}".strip(".") for name in node.names}
        if isinstance(node, ast.Import):
            found |= {n.name.removeprefix("advcam_attr.") for n in node.names if n.name.startswith("advcam_attr.")}
    return found


def test_imports_point_down():
    upward, siblings = [], []
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for imported in imports_of(path):
            here, there = unit(module), unit(imported)
            if there not in FLOORS or here == there:
                continue
            if FLOORS[there] > FLOORS[here]:
                upward.append(f"{module} imports {imported}")
            elif FLOORS[there] == FLOORS[here] == 1:
                siblings.append(f"{module} imports {imported}")
    assert upward == []
    assert siblings == []


def test_every_module_says_what_it_is():
    for path in ROOT.rglob("*.py"):
        if path.stat().st_size:
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_unit_has_a_floor():
    units = {unit(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in ROOT.rglob("*.py")}
    assert units <= set(FLOORS), units - set(FLOORS)


def test_the_architecture_page_is_the_tree():
    """The tree in docs/architecture.md names every module, and no other."""
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    block = page.split("```")[1]
    shown, folder, parent = set(), "", ""
    for line in block.strip("\n").splitlines():
        words = line.replace("·", " ").split()
        if words[0].endswith("/"):
            parent, folder = (parent, parent + words[0]) if line.startswith(" ") else (words[0], words[0])
            words = words[1:]
        elif not line.startswith(" "):
            folder = ""
        shown |= {f"{folder}{word}" for word in words}
    modules = {path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py")}
    assert shown == {name for name in modules if not name.rsplit("/", 1)[-1].startswith("__")}


def test_files_and_names_are_short():
    """At most 400 lines a file, 60 characters a test's name."""
    tests = Path(__file__).parent
    for path in [*ROOT.rglob("*.py"), *tests.rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert not [name for name in re.findall(r"def (test_\w+)", text) if len(name) > 60], path


def test_no_decision_hangs_on_the_words_of_a_message():
    """No ``"..." in str(error)``, and no look into a head's note: exceptions and enums have types."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq):
                looked_at = {ast.unparse(part) for part in (node.left, *node.comparators)}
                words = [
                    t
                    for t in looked_at
                    if re.fullmatch(r"str\((e|ex|error)\)|(error|e)\.args.*|\w+\.(note|message)", t)
                ]
                assert not words, f"{path}: {ast.unparse(node)}"
