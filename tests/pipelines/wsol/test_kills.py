"""A localization run that is killed again and again: its files are those of a run that was left alone, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")

from advcam_attr.cli.wsol import OPTIONS
from advcam_attr.pipelines.wsol.config import WSOLConfig
from advcam_attr.pipelines.wsol.run import WSOLRun
from run_tools import contents
from tiny_runs import WSOL
from tiny_wsol import write_cub

STEPS, METHODS, IMAGES = 8, 3, 6

#: What a kill waits for, by stage: a step of the training, a map, or a method's scores; as files and their number.
EVENTS: dict[str, tuple[str, int]] = {
    "training": ("boxes/cam/seed0/classifier/log.jsonl", STEPS),
    "maps": ("boxes/cam/seed0/maps/*/maps/*.safetensors", METHODS * IMAGES),
    "scores": ("boxes/cam/seed0/maps/*/boxes_all.safetensors", METHODS),
}


def birds(root: Path) -> Path:
    """Write a CUB of two classes: eight photographs to train on, six to score."""
    names = [(f"{n}", f"00{n % 2 + 1}.Bird/{n}.jpg", n % 2 + 1, int(n <= 8), "2.0 3.0 5.0 4.0") for n in range(1, 15)]
    folder, draw = write_cub(root, names), np.random.default_rng(0)
    for file in sorted(folder.rglob("*.jpg")):
        coarse = Image.fromarray(draw.integers(0, 256, (2, 4, 3), dtype=np.uint8))
        coarse.resize((20, 10), Image.Resampling.BICUBIC).save(file)
    return folder


def happened(folder: Path, event: str) -> int:
    pattern, _ = EVENTS[event]
    files = list(folder.glob(pattern))
    return sum(file.read_bytes().count(b"\n") for file in files) if event == "training" else len(files)


def run_in_child(config: WSOLConfig, folder: Path, due: Callable[[], bool] = lambda: False, late: float = 0) -> bool:
    """Run in a forked process, which imports nothing again; kill it some time after an event, and return whether."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            WSOLRun(config).run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while not due():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the run failed"
            return False
        time.sleep(0.005)
    time.sleep(late)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def results(folder: Path) -> dict[str, bytes]:
    """All files but the log, and what a killed process had not finished writing."""
    return {name: data for name, data in contents(folder).items() if not Path(name).name.startswith((".", "run.log"))}


def check_kills(folder: Path, kills: int) -> None:
    (folder / "wsol.yaml").write_text(WSOL.replace("CUB_200_2011", str(birds(folder))))
    config, draw, counts = OPTIONS.read(folder / "wsol.yaml"), random.Random(0), dict.fromkeys(EVENTS, 0)
    run_in_child(config, folder / "quiet")
    wanted, rounds = results(folder / "quiet"), 0
    assert {event: happened(folder / "quiet", event) for event in EVENTS} == {e: n for e, (_, n) in EVENTS.items()}
    while sum(counts.values()) < kills:
        out, rounds = folder / f"killed{rounds}", rounds + 1
        chosen = draw.choices([*EVENTS], weights=(5, 4, 1), k=kills - sum(counts.values()))
        for event in sorted(chosen, key=[*EVENTS].index):
            there, last = happened(out, event), EVENTS[event][1]
            if there < last:
                due, late = draw.randint(there + 1, last), draw.uniform(0, 0.02)
                counts[event] += run_in_child(config, out, lambda: happened(out, event) >= due, late)  # noqa: B023
        run_in_child(config, out)
        assert results(out) == wanted, f"round {rounds}, after {counts}"
        assert rounds < kills
    assert all(counts.values()), counts


@pytest.mark.slow
def test_twenty_kills_leave_the_same_files(tmp_path):
    check_kills(tmp_path, 20)
