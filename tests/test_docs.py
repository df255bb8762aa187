"""Documentation: examples run, pages fetch nothing from other hosts, commands exist."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Pages whose Python blocks together are a program.
RUN = sorted(
    [
        *ROOT.glob("docs/howto/*.md"), *ROOT.glob("docs/coming_from/*.md"), ROOT / "docs/guides/index.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("quickstart", "choosing", "troubleshooting")),
    ]
)  # fmt: skip


@pytest.fixture
def extensions(monkeypatch):
    pytest.importorskip("sphinx", reason='pip install -e ".[docs]"')
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    assert blocks or page.stem == "index", f"{page} has no example"
    names: dict = {"__name__": f"page_{page.stem}"}
    monkeypatch.setitem(sys.modules, names["__name__"], type(sys)(names["__name__"]))
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_links_between_pages_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
            assert (page.parent / link).exists() or "examples/" in link, f"{page}: {link}"


def test_commands_of_the_documentation_exist():
    """Of every ``advcam`` line in a shell block, the words that name a command, and the configuration."""
    from advcam_attr.cli.main import COMMANDS
    from advcam_attr.cli.parser import Group

    checked = 0
    line = re.compile(r"(?:^|[$&|;(] *|-m )advcam(?:_attr)? +([a-z]+)(?: +([a-z]+)\b)?(.*)", re.M)
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(), re.S | re.M):
            for first, second, rest in line.findall(block):
                assert first in COMMANDS, f"{page}: advcam {first}"
                command = COMMANDS[first]
                assert not isinstance(command, Group) or second in command.commands, f"{page}: advcam {first} {second}"
                checked += 1
                for config in re.findall(r"--config (configs/\S+\.yaml)", rest):
                    assert (ROOT / config).is_file(), f"{page}: {config}"
    assert checked > 20


def test_every_analysis_has_its_command_and_image():
    from advcam_attr.pipelines.analyze.run import ANALYSES, listing

    page = (ROOT / "docs" / "analysis.md").read_text()
    assert listing() in page
    for name in ANALYSES:
        assert re.search(rf"advcam analyze (\w+,)*{name}[ ,]", page), f"no command of {name}"
        picture = f"images/analysis_{name}.png"
        assert f"({picture})" in page
        assert (ROOT / "docs" / picture).stat().st_size < 100_000, "images are small"


def test_notebooks_are_small_and_hold_no_local_paths():
    notebooks = sorted((ROOT / "examples").glob("*.ipynb"))
    assert notebooks
    for file in notebooks:
        text = file.read_text()
        assert len(text) < 400_000, f"{file.name} has {len(text)} characters; store smaller images"
        outputs = [out for cell in json.loads(text)["cells"] for out in cell.get("outputs", [])]
        assert not [out for out in outputs if out.get("name") == "stderr" or out["output_type"] == "error"], file.name
        assert not re.search(r'"/(?:home|root|tmp|work)/', text), file.name


@pytest.mark.parametrize(
    ("text", "suffix", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ".html", ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href="//fonts.example/css">', ".html", ["//fonts.example/css"]),
        ('<img srcset="a.png 1x, http://pictures.example/b.png 2x">', ".html", ["http://pictures.example/b.png 2x"]),
        ("<style>@import 'https://a.example/x.css';</style>", ".html", ["https://a.example/x.css"]),
        ("@font-face { src: url(https://a.example/x.woff2) }", ".css", ["https://a.example/x.woff2"]),
        ('import x from "https://a.example/x.mjs"', ".js", ["https://a.example/x.mjs"]),
        ('<a href="https://paper.example">paper</a><link rel="canonical" href="https://a.example">', ".html", []),
        ('<img src="images/demo.png"><script>let page = "https://a.example"</script>', ".html", []),
    ],
)
def test_requests_to_other_hosts_are_found(extensions, text, suffix, found):
    from offline import requests_of

    assert requests_of(text, suffix) == found


def test_the_reference_lists_all_commands_and_options(extensions):
    from cli_reference import commands, options_of

    listed = dict(commands())
    assert {"attribute", "wsss", "wsss seeds", "data check", "evaluate masks"} <= set(listed)
    assert ("--steps T", "steps of the climb (default: the recipe's)") in options_of("attribute", listed["attribute"])
    options = {name: [typed for typed, _ in options_of(name, listed[name])] for name in ("wsss seeds", "wsss run")}
    assert "--seeds.recipe VALUE" in options["wsss seeds"]
    assert "--overwrite" not in options["wsss run"]
