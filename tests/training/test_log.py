"""Training logs: each step once, and further logs."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock, call

import pytest

from advcam_attr.training.log import json_log, read_log, require_logger
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


@pytest.mark.parametrize(("logger", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_packages_of_further_logs_are_optional(tmp_path, monkeypatch, logger, package):
    monkeypatch.setitem(sys.modules, package, None)
    for use in (lambda: require_logger(logger), lambda: json_log(tmp_path / "log.jsonl", logger=logger).__enter__()):
        with pytest.raises(AdvCAMError, match="is not installed; pip install "):
            use()
    assert not list(tmp_path.iterdir())
    require_logger("csv")
    require_logger(None)


def logged(path, logger) -> None:
    """Write two steps, and after a resume from the second one two more."""
    for first, last in ((0, 2), (1, 3)):
        with json_log(path, first, logger) as log:
            for step in range(first, last):
                log.write({"step": step, "loss": step + 0.5, "lr": [0.1, 1.0], "name": "text"})


def test_tensorboard_files(tmp_path, monkeypatch):
    stub = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    logged(tmp_path / "log.jsonl", "tensorboard")
    folder = tmp_path / "tensorboard" / "log"
    assert stub.SummaryWriter.call_args_list == [call(folder, purge_step=None), call(folder, purge_step=1)]
    scalars = stub.SummaryWriter.return_value.__enter__.return_value.add_scalar.call_args_list
    assert scalars[:4] == [call("loss", 0.5, 0), call("lr/0", 0.1, 0), call("lr/1", 1.0, 0), call("loss", 1.5, 1)]
    assert stub.SummaryWriter.return_value.__exit__.call_count == 2


def test_weights_and_biases_continue_a_run(tmp_path, monkeypatch):
    stub = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    logged(tmp_path / "net" / "log.jsonl", "wandb")
    first, second = stub.init.call_args_list
    assert first == second
    assert first.kwargs["resume"] == "allow"
    assert first.kwargs["name"].endswith("net/log")
    run = stub.init.return_value
    assert run.log.call_args_list[0] == call({"loss": 0.5, "lr/0": 0.1, "lr/1": 1.0}, step=0)
    assert [one.kwargs["step"] for one in run.log.call_args_list] == [0, 1, 1, 2]
    assert run.finish.call_count == 2


def test_csv_files_have_each_step_once(tmp_path):
    logged(tmp_path / "log.jsonl", "csv")
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["step,loss,lr/0,lr/1", "0,0.5,0.1,1.0", "1,1.5,0.1,1.0", "2,2.5,0.1,1.0"]


def test_a_log_that_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": \xff}\n')
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged: its byte 21 is no UTF-8 text; put a copy back, or"):
        read_log(path)
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged"), json_log(path, 1):
        pass
