"""Atomic writing of files."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path

import pytest

from advcam_attr.files import append_to, remove_leftovers, replacing, write_bytes, write_json
from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.config import recorded_config
from advcam_attr.runs import run_log as run_log_module
from advcam_attr.runs.run_log import PACKAGE, run_log
from advcam_attr.training.log import json_log
from advcam_attr.types import AdvCAMError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"mIoU": 0.5})
    with pytest.raises(AdvCAMError) as caught, replacing(path) as file:  # noqa: PT012
        file.write_text("half")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert str(caught.value) == (
        f"cannot write {path} ({os.strerror(errno.EDQUOT)}): make room or choose another folder, and run it again"
    )
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(AdvCAMError, match=r"cannot write .*folder"):
        write_json(tmp_path / "folder", {})
    with pytest.raises(KeyError), replacing(path):
        raise KeyError
    assert path.read_text() == '{\n "mIoU": 0.5\n}\n'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "scores.json"]


def test_leftovers_are_removed_by_name_process_and_age(tmp_path):
    with replacing(tmp_path / "a.pt") as file:
        mine = file.name
        file.touch()
    (tmp_path / "a.pt").unlink()
    ended = mine.replace(f"-{os.getpid()}-", "-99999999-")
    elsewhere = mine.replace(mine[: len(".advcam-") + 8], ".advcam-00000000")
    others = [".hidden", f".{'0a' * 16}.pt", ".advcam-notes", f"{ended}.b.c", ended[1:]]
    for name in (mine, ended, elsewhere, *others):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {mine, elsewhere, *others}
    remove_leftovers(tmp_path, older_than=50)
    assert {file.name for file in tmp_path.iterdir()} == {*others}
    remove_leftovers(tmp_path / "none")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match=r"cannot write .*scores.json \(disk full: .*\): make room"):
        write_json(tmp_path / "scores.json", {})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_appended_behind_a_link(tmp_path):
    (tmp_path / "precious").write_text("")
    (tmp_path / "run.log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="run"):
        append_to(tmp_path / "run.log")
    with run_log(tmp_path):
        PACKAGE.info("a line")
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_first_error_of_a_full_disk_is_the_one_reported(tmp_path, monkeypatch, capsys):
    """The log cannot be written, nor can the configuration be restored: what failed first is what is said."""
    runs = [Backbone("timm/one"), Backbone("timm/two")]
    with recorded_config(tmp_path, runs[0]):
        pass
    monkeypatch.setattr(run_log_module, "append_to", lambda path: Path("/dev/full").open("a"))  # noqa: SIM115

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(AdvCAMError, match=r"maps.safetensors \(disk full"), recorded_config(tmp_path, runs[1]):  # noqa: PT012
        PACKAGE.info("a line")
        monkeypatch.setattr(Path, "write_bytes", full)
        write_bytes(tmp_path / "maps.safetensors", b"maps")
    assert capsys.readouterr().err == ""


def test_a_full_log_is_one_error(tmp_path):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        close = flush

    with pytest.raises(AdvCAMError, match=r"log.jsonl \(disk full"), json_log(tmp_path / "log.jsonl") as log:  # noqa: PT012
        stream, log.stream = log.stream, Full()
        stream.close()
        log.write({"step": 0})
