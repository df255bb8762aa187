"""Progress bars and log lines."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from advcam_attr.runs import progress_bar as module
from advcam_attr.runs.progress_bar import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_line_every_30_seconds(caplog, clock):
    caplog.set_level(logging.INFO)
    with progress_bar(20, "seeds", initial=5) as bar:
        for _ in range(10):
            clock[0] += 10
            bar.update(loss=0.5)
    assert caplog.messages == [
        "seeds: 8 of 20 images, 0.1 images/s, 2 min left, loss 0.5",
        "seeds: 11 of 20 images, 0.1 images/s, 90 s left, loss 0.5",
        "seeds: 14 of 20 images, 0.1 images/s, 60 s left, loss 0.5",
    ]


def test_later_ranks_report_nothing(caplog, clock, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with progress_bar(2, "seeds") as bar:
        clock[0] += 40
        bar.update()
    assert caplog.messages == []


def test_a_bar_on_a_terminal_with_the_log_above_it(monkeypatch):
    terminal, package = Terminal(), logging.getLogger("advcam_attr")
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    package.addHandler(handler)
    try:
        with progress_bar(4, "training", "steps") as bar:
            bar.update(2, loss=0.25)
            logging.getLogger("advcam_attr.training").warning("a message")
            bar.update(2, loss=0.125)
        assert package.handlers[-1] is handler
    finally:
        package.removeHandler(handler)
    shown = terminal.getvalue()
    assert "training: 100%" in shown
    assert "4/4" in shown
    assert "loss=0.125" in shown
    assert "a message\n" in shown
