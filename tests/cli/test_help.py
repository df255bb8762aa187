"""Help of every command: its own options in groups, with defaults, at once, and with or without docstring-parser."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import SUPPRESS

import pytest
import yaml

from advcam_attr.cli.config_options import SHORT
from advcam_attr.cli.parser import KEY, is_hidden
from command_line import COMMANDS, declared, leaves

#: The sections that the help of a stage shows, besides the run's own values.
SECTIONS = {
    "wsss classifier": "data net classifier runtime",
    "wsss seeds": "data seeds runtime",
    "wsss refine": "data refine runtime",
    "wsss instances": "data instances runtime",
    "wsss segment": "data segmentation runtime",
    "wsss evaluate": "data score runtime",
    "wsss run": "data runtime",
    "semi train": "data net training runtime",
    "semi evaluate": "data predict runtime",
    "semi run": "data runtime",
    "wsol classifier": "data classifier runtime",
    "wsol maps": "data net maps runtime",
    "wsol evaluate": "data score runtime",
    "wsol run": "data runtime",
}

WALK = """
import contextlib, io, sys, time
if {hidden}:
    sys.modules["docstring_parser"] = None
from advcam_attr.cli.main import main
for words in {words}:
    start, out = time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*words, "--help"]) == 0, words
    assert time.process_time() - start < 1.5, words
    assert "torch" not in sys.modules, words
    for markup in ("`", ":class:", ":mod:", "==SUPPRESS==", "%("):
        assert markup not in out.getvalue(), (words, markup)
    lines = out.getvalue().splitlines()
    assert len(lines) <= 75, (words, len(lines))
    assert lines[0].startswith(" ".join(["usage: advcam", *words])), words
"""


@pytest.mark.parametrize("hidden", [False, True], ids=["docstring-parser", "no docstring-parser"])
def test_help_of_every_command(hidden):
    """In a process of its own: with the interpreter's start, each takes less than 1.5 seconds of the processor."""
    words = [list(words) for words, _ in leaves()]
    command = [sys.executable, "-c", WALK.format(hidden=hidden, words=words)]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_own_options_in_groups_with_defaults(words):
    parser = declared(words)
    shown = [action for action in parser._actions if not is_hidden(action)]
    for action in shown:
        text, default = parser._get_formatter()._expand_help(action), action.default
        assert text, action.dest
        if isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != SUPPRESS:
            assert "(default: " in text, action.dest
    sections = {action.dest.partition(".")[0] for action in shown if "." in action.dest or action.metavar == KEY}
    assert sections == set(SECTIONS.get(" ".join(words), "").split())
    loose = next(group for group in parser._action_groups if group.title == "options")
    assert len([action for action in loose._group_actions if not is_hidden(action)]) <= 12, "options without a group"


@pytest.mark.parametrize("words", SECTIONS)
def test_print_config_prints_and_stops(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--run", "r", "--data.root", "here", "--seed", "7", "--logger", "csv", "--print_config"]
    with pytest.raises(SystemExit) as stopped:
        declared(tuple(words.split())).parse_args(argv)
    assert stopped.value.code == 0
    runtime = yaml.safe_load(capsys.readouterr().out)["runtime"]
    assert {name: runtime[long.rpartition(".")[2]] for name, long in SHORT.items()} == {"--seed": 7, "--logger": "csv"}


def test_commands_that_draw_numbers_have_a_seed():
    """All but those that only read, and ``attribute``, whose random weights are always the same."""
    seeded = {" ".join(words) for words in COMMANDS if "--seed" in declared(words)._option_string_actions}
    assert seeded == {*SECTIONS, "analyze", "demo"}
