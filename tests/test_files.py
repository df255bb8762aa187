"""Atomic writing of files."""

from __future__ import annotations

import errno
import os
import time

import pytest

from advcam_attr.files import remove_leftovers, replacing, write_json
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


def test_leftovers_are_removed_by_name_and_age(tmp_path):
    old, new, other = (tmp_path / name for name in (f".{'0a' * 16}.pt", f".{'1b' * 16}", ".hidden"))
    for file in (old, new, other):
        file.write_text("half")
    os.utime(old, (time.time() - 100,) * 2)
    os.utime(other, (time.time() - 100,) * 2)
    remove_leftovers(tmp_path, older_than=50)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [other]
    remove_leftovers(tmp_path / "none")
