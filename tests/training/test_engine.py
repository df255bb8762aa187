"""Training: steps worked out by hand, batches that do not depend on who reads them, checkpoints, logs and ranks."""

from __future__ import annotations

import random
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.training import checkpoint as checkpoints
from advcam_attr.training.checkpoint import random_states, read_training, restore, save_checkpoint, set_random_states
from advcam_attr.training.distributed import attempt, process_group
from advcam_attr.training.fit import RELEASED_MOMENTUM, Group, Training, fit, loss_scaler, poly, sgd
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.log import json_log, read_log, tensorboard_log
from advcam_attr.training.losses.classification import LOSSES
from advcam_attr.types import AdvCAMError

CPU = torch.device("cpu")


def one_weight(momentum: float = 0.5, decay: float = 0.5) -> Training:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    return Training(net, sgd([Group("all", net.parameters(), 0.1, decay)], momentum), loss_scaler())


def mean_logit(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.mean()


# --- steps ------------------------------------------------------------------------------------------------------------


def test_golden_steps():
    """x = 2 so dL/dw = 2. g0 = 2 + 0.5 · 1 = 2.5, w1 = 1 - 0.1 · 2.5; g1 = 2 + 0.5 · 0.75, with momentum 3.625."""
    training = one_weight()
    batch = torch.full((2, 1), 2.0), torch.zeros(2, 1)
    weights = []
    records = []
    for record in fit(training, [batch] * 2, mean_logit, poly(2, power=1.0)):
        weights.append(training.model.weight.item())
        records.append(record)
    assert weights == pytest.approx([0.75, 0.75 - 0.05 * 3.625])
    assert [r.step for r in records] == [0, 1]
    assert [r.loss for r in records] == pytest.approx([2.0, 1.5])
    assert [r.lr for r in records] == [(0.1,), (0.05,)]


def test_golden_poly():
    schedule = poly(10)
    assert schedule(0) == 1.0
    assert schedule(3) == pytest.approx(0.7254177)
    assert schedule(9) == pytest.approx(0.1258925)


def test_golden_loss():
    """log(1 + e^-1) for a hit of logit 1, log(1 + e^2) for a false alarm of logit 2, halved: the mean over classes."""
    loss = LOSSES["multilabel_soft_margin"](torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((0.3132617 + 2.1269280) / 2)


def test_the_released_momentum_is_the_weight_decay():
    assert RELEASED_MOMENTUM == 1e-4
    assert sgd([Group("all", nn.Linear(1, 1).parameters(), 0.1, 1e-4)]).param_groups[0]["momentum"] == 1e-4


def test_frozen_weights_are_in_no_group():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    groups = sgd([Group("all", net.parameters(), 0.1, 0.0), Group("none", [], 1.0, 0.0)]).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]
    assert [group["name"] for group in groups] == ["all", "none"]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_make_the_same_step(parts):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, generator=generator), torch.randint(0, 2, (8, 2), generator=generator).float())]
    results = []
    for accumulate in (1, parts):
        torch.manual_seed(1)
        net = nn.Linear(3, 2).double()
        training = Training(net, sgd([Group("all", net.parameters(), 0.5, 0.1)]), loss_scaler())
        (record,) = fit(training, [(batches[0][0].double(), batches[0][1])], LOSSES["multilabel_soft_margin"], poly(1),
                        grad_accum=accumulate)  # fmt: skip
        results.append((record.loss, net.weight.detach().clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-6)


def test_bfloat16_steps_are_near_those_of_float32():
    batch = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1)
    ends = []
    for autocast in (None, "bfloat16"):
        training = one_weight()
        list(fit(training, [batch] * 3, LOSSES["multilabel_soft_margin"], poly(3), autocast=autocast))
        assert training.model.weight.dtype == torch.float32
        ends.append(training.model.weight.item())
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)


def test_precisions_that_cannot_be_had():
    with pytest.raises(AdvCAMError, match="float16 training needs a GPU"):
        loss_scaler("float16", "cpu")


def test_a_loss_that_is_not_finite_stops_the_training():
    training = one_weight()
    batches = [(torch.ones(1, 1), torch.ones(1, 1)), (torch.full((1, 1), torch.nan), torch.ones(1, 1))]
    with pytest.raises(AdvCAMError, match="loss is nan at step 1; lower the learning rates"):
        list(fit(training, batches, mean_logit, poly(2)))
    assert training.model.weight.isfinite().all()


# --- batches ----------------------------------------------------------------------------------------------------------


class Noisy:
    """Items with random numbers of all three kinds."""

    def __init__(self, count: int = 10, broken: int | None = None) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == self.broken:
            raise AdvCAMError(f"cannot read image {index}")
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
        return torch.tensor([float(index), *drawn]), torch.zeros(1)


def read(steps=(0, 6), workers=0, seed=0, shard=ALONE, items=None, batch=4):
    items = items or Noisy()
    order = TrainingBatches(len(items), batch, seed=seed, steps=steps, shard=shard)
    return [images for images, _ in load_batches(items, order, seed=seed, workers=workers)]


def test_batches_depend_on_the_seed_alone():
    state = random_states(CPU)
    first = read()
    assert all(torch.equal(a, b) for a, b in zip(first, read(workers=2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[3:], read(steps=(3, 6)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, read(seed=1), strict=True))
    after = random_states(CPU)
    assert torch.equal(state["torch"], after["torch"])
    assert torch.equal(state["numpy"][1], after["numpy"][1])
    assert state["python"] == after["python"]


def test_epochs_show_each_image_once_in_another_order_and_with_other_noise():
    batches = torch.stack(read(steps=(0, 4), batch=5)).reshape(2, 10, 4)
    assert [sorted(epoch[:, 0].tolist()) for epoch in batches] == [list(range(10))] * 2
    assert batches[0, :, 0].tolist() != batches[1, :, 0].tolist()
    noise = [epoch[epoch[:, 0].argsort()][:, 1:] for epoch in batches]
    assert not bool((noise[0] == noise[1]).any())
    assert len(noise[0].unique(dim=0)) == 10


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch(world):
    alone = read()
    shares = [read(shard=Shard(rank, world)) for rank in range(world)]
    for step, batch in enumerate(alone):
        together = torch.cat([share[step] for share in shares])
        assert {len(share[step]) for share in shares} == {4 // world}
        assert torch.equal(together[together[:, 0].argsort()], batch[batch[:, 0].argsort()])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_cannot_be_read_is_one_line(workers):
    with pytest.raises(AdvCAMError) as caught:
        read(items=Noisy(broken=3), workers=workers)
    assert str(caught.value) == "cannot read image 3"


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """A net that draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.dropout(x, 0.5, self.training))


def dropping() -> Training:
    torch.manual_seed(0)
    net = Dropping()
    return Training(net, sgd([Group("all", net.parameters(), 0.5, 1e-2)], 0.9), loss_scaler())


def batches_from(step: int):
    order = TrainingBatches(10, 4, seed=0, steps=(step, 6))
    return ((x, torch.ones(len(x), 3)) for x, _ in load_batches(Noisy(), order, seed=0))


def run(training: Training):
    return fit(training, batches_from(training.step), LOSSES["multilabel_soft_margin"], poly(6))


def test_a_training_goes_on_bit_by_bit(tmp_path):
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
        second.model.layer.weight.data.zero_()
        content = read_training(tmp_path / "checkpoint.pt")
        assert content["config"] == {"seed": 0}
        restore(second, content)
        assert before + [record.loss for record in run(second)] == losses
        for name, value in whole.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], value)


def test_random_states_come_back():
    state = random_states(CPU)
    draws = [(float(torch.rand(())), float(np.random.rand()), random.gauss(0, 1)) for _ in range(3)]  # noqa: NPY002
    set_random_states(state, CPU)
    assert draws == [(float(torch.rand(())), float(np.random.rand()), random.gauss(0, 1)) for _ in range(3)]  # noqa: NPY002


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
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


def test_checkpoints_that_cannot_be_used(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, one_weight(), {})
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(AdvCAMError, match=r"cannot read the checkpoint .*remove it to start anew"):
            read_training(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(AdvCAMError, match="is not a checkpoint of a training"):
        read_training(path)
    path.write_bytes(whole)
    with pytest.raises(AdvCAMError, match="is of another net"):
        restore(dropping(), read_training(path))


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"config": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(AdvCAMError, match="cannot read the checkpoint"):
        read_training(tmp_path / "checkpoint.pt")


# --- logs -------------------------------------------------------------------------------------------------------------


def test_records_are_not_doubled(tmp_path):
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
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(AdvCAMError, match="TensorBoard is not installed"), tensorboard_log(tmp_path):
        pass
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            written.append("closed")

        def add_scalar(self, *arguments):
            written.append(arguments)

    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    with tensorboard_log(tmp_path, 4) as log:
        log.write({"step": 4, "loss": 0.5, "lr": [0.1]})
    assert written == [(tmp_path, 4), ("loss", 0.5, 4), "closed"]


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_attempts_do_not_meet():
    names = {attempt({"TORCHELASTIC_RUN_ID": run, "TORCHELASTIC_RESTART_COUNT": n}) for run in "ab" for n in "012"}
    assert len(names) == 6


def test_ranks_that_cannot_meet_are_told(monkeypatch):
    with process_group(ALONE, CPU, {}):
        pass
    with pytest.raises(AdvCAMError, match="MASTER_ADDR is not set"), process_group(Shard(1, 2, 1), CPU, {}):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cuda, env = torch.device("cuda", 0), {"LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(AdvCAMError, match="2 ranks on this machine need a GPU each, and there are 1"):
        process_group(Shard(1, 2, 1), cuda, env).__enter__()


def test_a_log_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": \xff}\n')
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged: its byte 21 is no UTF-8 text; put a copy back, or"):
        read_log(path)
    with pytest.raises(AdvCAMError, match=r"log\.jsonl is damaged"), json_log(path, 1):
        pass
