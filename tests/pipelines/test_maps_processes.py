"""Seeds when processes are killed, and when several share the work: the files are those of one quiet run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advcam_attr.pipelines.maps import make_seeds
from places import HELPERS
from seed_run import SETTINGS, random_data, small_classifier

RUN = HELPERS / "seed_run.py"


def environment() -> dict[str, str]:
    ours = str(RUN.parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {"PYTHONPATH": ours, "OMP_NUM_THREADS": "1"}


def start(pictures: Path, count: int, out: Path, *launcher: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, *launcher, str(RUN), str(pictures), str(count), str(out)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def results(out: Path) -> dict[str, bytes]:
    """All files of a run by name, but what a killed process had not finished writing."""
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file() and f.name[0] != "."}


def kill_when(process: subprocess.Popen[bytes], out: Path, files: int) -> None:
    """Kill -9 once so many maps are there, and a random moment has passed."""
    while process.poll() is None and len(list(out.glob("maps/[0-9]*"))) < files:
        time.sleep(0.002)
    time.sleep(random.random() * 0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def check_kills(folder: Path, count: int, kills: int) -> None:
    pictures, out = folder / "pictures", folder / "killed"
    data = random_data(pictures, count)
    make_seeds(small_classifier(), data, folder / "quiet", SETTINGS)
    wanted = results(folder / "quiet")
    for kill in range(kills):
        process = start(pictures, count, out)
        there = len(list(out.glob("maps/[0-9]*")))
        kill_when(process, out, there + random.randint(1, max(1, (count - there) // 2)))
        assert process.returncode == -signal.SIGKILL, f"kill {kill} came too late"
        left = results(out)
        assert 0 < len(left) < len(wanted)
        assert all(wanted[name] == content for name, content in left.items()), "what is there is whole"
    make_seeds(small_classifier(), data, out, SETTINGS)
    assert results(out) == wanted


def test_a_killed_run_goes_on_to_the_same_files(tmp_path):
    check_kills(tmp_path, 24, kills=1)


@pytest.mark.slow
def test_a_run_of_a_thousand_images_killed_three_times(tmp_path):
    check_kills(tmp_path, 1000, kills=3)


@pytest.mark.slow
def test_two_ranks_of_torchrun_equal_one(tmp_path):
    pictures = tmp_path / "pictures"
    make_seeds(small_classifier(), random_data(pictures, 16), tmp_path / "one", SETTINGS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(pictures, 16, tmp_path / "two", *launcher))
    assert results(tmp_path / "two") == results(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_rank_restarts_and_nothing_is_lost(tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "two"
    make_seeds(small_classifier(), random_data(pictures, 200), tmp_path / "one", SETTINGS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    process = start(pictures, 200, out, *launcher)
    while process.poll() is None and len(list(out.glob("maps/[0-9]*"))) < 20:
        time.sleep(0.005)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", RUN.name], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    finish(process)
    assert results(out) == results(tmp_path / "one")
