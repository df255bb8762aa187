"""Runs that are killed, repeated or shared by ranks, and the files that are compared after them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from advcam_attr.training import train as training
from places import HELPERS, ROOT

#: As a process of another machine left it, without and with the suffix of a file.
LEFTOVER = ".advcam-00000000-1-000000000000"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}"}


class Killed(BaseException):
    """As if the process ended here."""


@contextmanager
def killed_at_step(step: int) -> Iterator[None]:
    """Kill the training in the block after so many of its steps are logged."""
    fit = training.fit

    def killed(*args, **options):
        records = fit(*args, **options)
        yield from itertools.islice(records, step)
        next(records, None)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", killed)
        with pytest.raises(Killed):
            yield


def contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """Return all files by path, without checkpoints, whose archives hold names of temporary files."""
    files = (file for file in sorted(folder.glob(pattern)) if file.is_file() and file.name != "checkpoint.pt")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def write_times(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def run_script(script: Path, *argv: object, ranks: int = 1, **variables: str) -> str:
    """Run a script in a process, or under ``torchrun`` in several, and return its standard output."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=2"]
    command = [sys.executable, *(launcher if ranks > 1 else ()), str(script), *map(str, argv)]
    done = subprocess.run(command, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
