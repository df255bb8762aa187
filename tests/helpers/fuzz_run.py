"""Runs the cases of a fuzzed reader in a forked process, with limits on memory and time.

A failing case is run alone, with its traceback, by ``python tests/helpers/fuzz_run.py READER NUMBER``.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from advcam_attr.types import AdvCAMError
from fuzz_mutations import mutated

#: Memory that a case may take beyond what the process has, in bytes; seconds of CPU for a case; silence of all cases.
MEMORY, SECONDS, SILENCE = 3 << 29, 5.0, 240.0

#: Where the files are: a disk is slower than most readers.
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

#: What an error's message never holds.
FORBIDDEN = ("Traceback", 'File "', "\n", "\r")


@dataclass(frozen=True)
class Layer:
    """What is mutated beneath checksums, lengths and compression: the parts of a file, and a file of such parts."""

    unpack: Callable[[bytes], Sequence[bytes]]
    pack: Callable[[Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        name: in reports.
        modules: of the package, whose reading it covers.
        seeds: contents of sound files by their paths in a folder; the first folder's others stay sound.
        read: reads a folder of such files; may raise `AdvCAMError` only.
        targets: the paths that are mutated; all by default.
        layer: half of the mutations are made beneath it.
        share: one in so many of the others' cases: it is slow.
    """

    name: str
    modules: tuple[str, ...]
    seeds: Callable[[], Sequence[Mapping[str, bytes]]]
    read: Callable[[Path], object]
    targets: tuple[str, ...] = ()
    layer: Layer | None = None
    share: int = 1


class _TooSlowError(BaseException):
    pass


def _too_slow(*_: object) -> NoReturn:
    raise _TooSlowError(f"more than {SECONDS} seconds")


class Cases:
    """The numbered cases of a reader in a folder."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder = reader, folder
        self.seeds = [dict(seed) for seed in reader.seeds()]
        self.written: dict[str, bytes] = {}

    def write(self, files: Mapping[str, bytes]) -> None:
        for name in [name for name in self.written if name not in files]:
            (self.folder / name).unlink()
            del self.written[name]
        for name, content in files.items():
            if self.written.get(name) != content:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                self.written[name] = content

    def check_seeds(self) -> None:
        """Read all sound files."""
        for seed in self.seeds:
            self.write(seed)
            self.reader.read(self.folder)

    def prepare(self, number: int) -> None:
        """Write the files of a case."""
        rng = random.Random(f"{self.reader.name} {number}")
        files = dict(rng.choice(self.seeds))
        name = rng.choice([name for name in files if not self.reader.targets or name in self.reader.targets])
        others = [seed[name] for seed in self.seeds if name in seed]
        layer = self.reader.layer
        if layer is not None and rng.random() < 0.5:
            parts = list(layer.unpack(files[name]))
            place = rng.randrange(len(parts))
            parts[place] = mutated(parts[place], rng, [part for other in others for part in layer.unpack(other)])
            files[name] = layer.pack(parts)
        else:
            files[name] = mutated(files[name], rng, others)
        self.write(files)

    def problem(self) -> str | None:
        """Read the files as they are; return what is wrong about it."""
        try:
            self.reader.read(self.folder)
        except AdvCAMError as error:
            message = str(error)
            if any(word in message for word in FORBIDDEN) or len(message) > 2000 or not message:
                return f"a message of several lines, or too long: {message[:300]!r}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-3:]
            places = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where)
            return f"{type(error).__name__}: {str(error)[:200]!r} at {places}"
        return None


def run(reader: Reader, numbers: range) -> list[str]:
    """Run cases in a forked process and return the problems, each with the number of its case."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        return _run(Cases(reader, Path(folder) / "files"), numbers, Path(folder) / "problems")


def _run(cases: Cases, numbers: range, report: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases.check_seeds()
    shared = mmap.mmap(-1, 8)
    gc.collect()
    child = os.fork()
    if child == 0:
        _child(cases, numbers, shared, report)
    status = _wait(child, shared)
    problems = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    if status != 0:
        place = struct.unpack("<q", shared[:8])[0]
        why = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
        problems.append(f"case {place}: the process ended ({why})")
    return [f"{cases.reader.name} {problem}" for problem in problems]


def _wait(child: int, shared: mmap.mmap) -> int:
    seen, since = b"", time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if shared[:8] != seen:
            seen, since = shared[:8], time.monotonic()
        elif time.monotonic() - since > SILENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _child(cases: Cases, numbers: range, shared: mmap.mmap, report: Path) -> NoReturn:
    code = 1
    try:
        warnings.simplefilter("ignore")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)  # libraries print about damaged files
        limit_memory()
        signal.signal(signal.SIGPROF, _too_slow)
        found = 0
        for number in numbers:
            shared[:8] = struct.pack("<q", number)
            cases.prepare(number)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                problem = cases.problem()
            except _TooSlowError as error:
                problem = str(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if problem:
                found += 1
                with report.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"case {number}: {problem}\n")
                if found == 20:
                    break
        code = 0
    finally:
        os._exit(code)


def limit_memory() -> None:
    """Limit this process to `MEMORY` more than it has, where the system says how much that is."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + MEMORY,) * 2)


def main(name: str, number: str) -> None:
    from fuzz_readers import READERS

    (reader,) = (reader for reader in READERS if reader.name == name)
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(reader, Path(folder))
        cases.prepare(int(number))
        limit_memory()
        for path, content in cases.written.items():
            sys.stdout.write(f"{path} {content[:2000]!r}\n")
        result: Any = reader.read(Path(folder))
        sys.stdout.write(f"{str(result)[:2000]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
