"""Checkpoints: exact resumption, atomic writes, damaged files."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from advcam_attr.training import checkpoint as checkpoints
from advcam_attr.training.checkpoint import random_states, read_training, restore, save_checkpoint, set_random_states
from advcam_attr.training.fit import Group, Training, fit, loss_scaler, poly, sgd
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.losses.classification import LOSSES
from advcam_attr.types import AdvCAMError
from noisy_items import Noisy


def one_weight() -> Training:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    return Training(net, sgd([Group("all", net.parameters(), 0.1, 0.5)], 0.5), loss_scaler())


def dropping() -> Training:
    """A training that draws random numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    return Training(net, sgd([Group("all", net.parameters(), 0.5, 1e-2)], 0.9), loss_scaler())


def batches_from(step: int):
    order = TrainingBatches(10, 4, seed=0, steps=(step, 6))
    return ((x, torch.ones(len(x), 3)) for x, _ in load_batches(Noisy(), order, seed=0))


def run(training: Training):
    return fit(training, batches_from(training.step), LOSSES["multilabel_soft_margin"], poly(6))


def test_a_training_resumes_bit_by_bit(tmp_path):
    whole = dropping()
    losses = [record.loss for record in run(whole)]
    for stop in range(1, 6):
        first = dropping()
        before = [next(records).loss for records in [run(first)] for _ in range(stop)]
        save_checkpoint(tmp_path / "checkpoint.pt", first, {"seed": 0})
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        second = dropping()
        second.model[1].weight.data.zero_()
        content = read_training(tmp_path / "checkpoint.pt")
        assert content["config"] == {"seed": 0}
        restore(second, content)
        assert before + [record.loss for record in run(second)] == losses
        for name, value in whole.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], value)


def test_random_states_are_restored():
    def draws() -> list[tuple[float, float, float]]:
        return [(float(torch.rand(())), float(np.random.rand()), random.gauss(0, 1)) for _ in range(3)]  # noqa: NPY002

    state = random_states(torch.device("cpu"))
    expected = draws()
    set_random_states(state, torch.device("cpu"))
    assert draws() == expected


def test_checkpoints_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    training = one_weight()
    save_checkpoint(path, training, {})
    before = path.read_bytes()

    def full(content, file):
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    training.step = 7
    with pytest.raises(AdvCAMError, match=r"cannot write the checkpoint .*checkpoint\.pt; is the disk full\?"):
        save_checkpoint(path, training, {})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert path.read_bytes() == before


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_damaged_malicious_and_foreign_checkpoints(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    torch.save({"config": Evil()}, path)
    malicious = path.read_bytes()
    save_checkpoint(path, one_weight(), {})
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], malicious):
        path.write_bytes(content)
        with pytest.raises(AdvCAMError, match=r"cannot read the checkpoint .*remove it to start over"):
            read_training(path)
    assert "run" not in capsys.readouterr().out
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(AdvCAMError, match="is not a checkpoint of a training"):
        read_training(path)
    path.write_bytes(whole)
    with pytest.raises(AdvCAMError, match="is of another net"):
        restore(dropping(), read_training(path))
