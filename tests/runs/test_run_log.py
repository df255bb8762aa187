"""The log of a run folder."""

from __future__ import annotations

import logging
import re

import pytest

from advcam_attr.runs.run_log import first_rank_logs, run_log
from advcam_attr.runs.sharding import Shard

logger = logging.getLogger("advcam_attr.somewhere")


def test_records_are_appended_once_with_times(tmp_path):
    logger.info("before")
    for message in ("first", "second"):
        with run_log(tmp_path / "run"), run_log(tmp_path / "run"):
            logger.info(message)
            logger.debug("detail")
    logger.info("after")
    lines = (tmp_path / "run/run.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["INFO first", "INFO second"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)


def test_an_error_ends_the_log(tmp_path):
    package = logging.getLogger("advcam_attr")
    before = package.level, list(package.handlers)
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / "run.log").read_text().endswith("ERROR KeyboardInterrupt: \n")
    assert (package.level, package.handlers) == before


def test_rejected_input_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), run_log(tmp_path / "run"):
        raise ValueError
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with run_log(tmp_path / "run"):
        logger.info("nothing")
    assert not (tmp_path / "run").exists()


def test_only_the_first_rank_logs(caplog):
    caplog.set_level(logging.INFO)
    for rank in (0, 1):
        with first_rank_logs(Shard(rank, 2)):
            logger.info(f"info {rank}")
            logger.warning(f"warning {rank}")
    assert caplog.messages == ["info 0", "warning 0", "warning 1"]
