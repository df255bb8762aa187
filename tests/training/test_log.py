"""Training logs: each step once, optional TensorBoard."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest

from advcam_attr.training.log import json_log, read_log
from advcam_attr.types import AdvCAMError


def test_each_step_is_recorded_once(tmp_path):
    path = tmp_path / "log.jsonl"
    with json_log(path) as log:
        for step in range(5):
            log.write({"step": step, "loss": step / 2})
    with path.open("a") as stream:
        stream.write('{"step": 5, "lo')
    with json_log(path, resume_at=3) as log:
        log.write({"step": 3, "loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read_log(path)] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(path.read_text().splitlines()) == 4
    with json_log(path):
        pass
    assert read_log(path) == []


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(AdvCAMError, match="TensorBoard is not installed"), json_log(path, tensorboard=tmp_path):
        pass
    stub = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    with json_log(path, 4, tmp_path) as log:
        log.write({"step": 4, "loss": 0.5, "lr": [0.1]})
    stub.SummaryWriter.assert_called_once_with(tmp_path, purge_step=4)
    writer = stub.SummaryWriter.return_value.__enter__.return_value
    writer.add_scalar.assert_called_once_with("loss", 0.5, 4)
    stub.SummaryWriter.return_value.__exit__.assert_called_once()


def test_a_log_that_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": \xff}\n')
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged: its byte 21 is no UTF-8 text; put a copy back, or"):
        read_log(path)
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged"), json_log(path, 1):
        pass
