"""The seed classifier's training: results, resuming, frozen weights, and invalid input."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from advcam_attr.data.voc import read_voc
from advcam_attr.networks.cam_net import CAM_NET, cam_net
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.wsss import classifier
from advcam_attr.pipelines.wsss.classifier import ClassifierConfig, train_classifier
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.log import read_log
from advcam_attr.training.losses.classification import LOSSES
from advcam_attr.types import AdvCAMError
from classifier_run import CONFIG, OPTIMIZER, RUNTIME, TRAIN, VAL, Blobs, TinyCAM, blobs
from logs import record_log
from places import HELPERS
from run_tools import ENVIRONMENT, LEFTOVER, contents, killed_at_step, run_script, write_times


def use_blobs(monkeypatch):
    monkeypatch.setattr(classifier, "training_items", lambda data, config, net: Blobs(data, config))
    monkeypatch.setattr(classifier, "validation_items", lambda data, config, net: Blobs(data, config))


@pytest.fixture(autouse=True)
def _items(monkeypatch):
    use_blobs(monkeypatch)


def fit(config, net, train, val, out, **runtime):
    return train_classifier(config, net, train, val, out, replace(RUNTIME, **runtime))


def test_written_files(tmp_path):
    logged = record_log()
    result = fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        "classifier.safetensors", "classifier.json", "checkpoint.pt", "log.jsonl", "validation.jsonl", "training.json",
    }  # fmt: skip
    assert (result.steps, result.weights) == (10, tmp_path / "classifier.safetensors")
    report = json.loads((tmp_path / "classifier.json").read_text())
    assert report["classes"] == ["red", "green"]
    assert report["result"]["val_map"] == result.val_map
    assert report["config"]["optimizer"]["momentum"] == 1e-4
    assert len(result.val_ap) == 2
    assert 0.5 < result.val_map <= 1
    assert json.loads((tmp_path / "training.json").read_text())["settings"] == report["config"]
    steps = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in steps] == list(range(10))
    assert [record["lr"] for record in steps[:2]] == [[0.05, 0.5], [0.05 * 0.9**0.9, 0.5 * 0.9**0.9]]
    validation = read_log(tmp_path / "validation.jsonl")
    assert [(record["step"], record["epoch"]) for record in validation] == [(4, 1), (9, 2)]
    assert (result.val_loss, result.val_map) == (validation[1]["val_loss"], validation[1]["val_map"])
    assert list(result.val_ap) == validation[1]["val_ap"]
    assert result.train_loss == pytest.approx(sum(record["loss"] for record in steps[5:]) / 5)
    assert f"epoch 2: validation loss {result.val_loss:.4f}, mAP {100 * result.val_map:.1f}" in logged


def test_the_loss_falls_and_classes_are_learned(tmp_path):
    settings = replace(CONFIG, epochs=12, optimizer=replace(OPTIMIZER, lr=0.2, head_lr=2.0))
    result = fit(settings, TinyCAM(), blobs(40), VAL, tmp_path)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert result.train_loss < 0.7 * sum(losses[:5]) / 5
    assert result.val_map > 0.9


def test_frozen_weights_do_not_change(tmp_path):
    net = TinyCAM().train()
    net.backbone[6].eval()
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    fit(CONFIG, net, TRAIN, VAL, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in net.modules()] == modes
    after = load_file(tmp_path / "classifier.safetensors")
    assert {key: value.tolist() for key, value in after.items()} == {k: v.tolist() for k, v in net.state_dict().items()}
    same = {key for key, value in after.items() if torch.equal(value, before[key])}
    norms = {f"backbone.{n}.{k}" for n in (1, 4) for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert same == {f"backbone.{n}.{k}" for n in (0, 1) for k in ("weight", "bias")} | norms


def test_one_step_is_worked_out(tmp_path):
    """Momentum does nothing yet in the first step: w - lr · (gradient + decay · w), each group with its own rate."""
    settings = replace(CONFIG, epochs=1, batch=22, optimizer=replace(OPTIMIZER, weight_decay=0.1))
    net, twin = TinyCAM(), TinyCAM()
    for module in (net, twin):
        module.backbone[6] = nn.Identity()
    fit(settings, net, TRAIN, None, tmp_path)
    ((images, labels),) = load_batches(Blobs(TRAIN, settings), TrainingBatches(22, 22, seed=0, steps=(0, 1)), seed=0)
    probability = twin.eval()(images).sigmoid()
    loss = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    for name, weight in twin.named_parameters():
        if weight.requires_grad:
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            rate = 0.5 if name == "classifier.weight" else 0.05
            expected = weight - rate * (gradient + 0.1 * weight)
            assert torch.allclose(net.get_parameter(name), expected, atol=1e-6), name


def test_golden_anchor():
    """Twelve weights, each 1 away from its start: anchor * 12, and a gradient of 2 * anchor for each."""
    net, plain = TinyCAM(), LOSSES[CONFIG.loss]
    anchored = classifier.anchored(plain, net, 0.25)
    net.classifier.weight.data += 1
    zeros = torch.zeros(1, 2)
    loss = anchored(zeros, zeros)
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 12 + plain(zeros, zeros).item())
    assert torch.allclose(net.classifier.weight.grad, torch.full((2, 6, 1, 1), 0.5))


def test_an_anchor_keeps_the_weights_near_their_start(tmp_path):
    away = []
    for anchor in (0.0, 1.0):
        net = TinyCAM()
        start = net.classifier.weight.detach().clone()
        fit(replace(CONFIG, anchor=anchor), net, TRAIN, None, tmp_path / str(anchor))
        away.append(float((net.classifier.weight.detach() - start).norm()))
    assert 0 < away[1] < away[0] / 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of a training that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_blobs(patch)
        fit(CONFIG, TinyCAM(), TRAIN, VAL, out)
    return contents(out)


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (2, 3), (4, 3), (5, 100), (8, 3), (10, 3)])
def test_resumed_training_ends_with_the_same_bytes(tmp_path, whole, stop, every):
    with killed_at_step(stop):
        fit(replace(CONFIG, checkpoint_every=every), TinyCAM(), TRAIN, VAL, tmp_path)
    assert not (tmp_path / "classifier.json").exists()
    fit(replace(CONFIG, checkpoint_every=50), TinyCAM(), TRAIN, VAL, tmp_path)
    assert contents(tmp_path) == whole


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (f"{LEFTOVER}.pt", ".hidden", ".git"):
        (tmp_path / name).write_text("")
    fit(replace(CONFIG, epochs=1), TinyCAM(), TRAIN, None, tmp_path)
    assert sorted(file.name for file in tmp_path.glob(".*")) == [".git", ".hidden"]


def test_second_run_changes_nothing(tmp_path):
    first = fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    times, logged, net = write_times(tmp_path), record_log(), TinyCAM()
    assert fit(CONFIG, net, TRAIN, VAL, tmp_path, workers=1) == first
    assert len(logged) == 1
    assert times == write_times(tmp_path)
    weights = load_file(first.weights)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_other_settings_in_the_same_folder(tmp_path):
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    other = TinyCAM()
    other.classifier.weight.data.add_(1)
    for message, config, net, val, seed in (
        ("epochs was 2, is 3", replace(CONFIG, epochs=3), TinyCAM(), VAL, 0),
        (r"val was blobs val, 9 images, \w+, is None", CONFIG, TinyCAM(), None, 0),
        ("seed was 0, is 1", CONFIG, TinyCAM(), VAL, 1),
        ("initial_weights was", CONFIG, other, VAL, 0),
    ):
        with pytest.raises(AdvCAMError, match=message):
            fit(config, net, TRAIN, val, tmp_path, seed=seed)


def test_other_settings_are_overwritten(tmp_path, whole):
    """With the same bytes as in an empty folder; without validation, the old validation stays."""
    fit(replace(CONFIG, epochs=3), TinyCAM(), TRAIN, VAL, tmp_path, seed=1)
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path, overwrite=True)
    assert contents(tmp_path) == whole
    result = fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path, overwrite=True)
    assert (result.val_loss, result.val_map, result.val_ap) == (None, None, ())
    assert fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path) == result


@pytest.mark.parametrize("content", [b"{", b"[]", None])
def test_a_damaged_report_is_rewritten(tmp_path, whole, content):
    for name, original in whole.items():
        (tmp_path / name).write_bytes(original)
    report = tmp_path / "classifier.json"
    report.unlink() if content is None else report.write_bytes(content)
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    assert contents(tmp_path) == whole


def test_further_logs_have_steps_and_validation(tmp_path, whole):
    """The bytes of all else are the same."""
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path, logger="csv")
    found = {name: (tmp_path / f"{name}.csv").read_text().splitlines() for name in ("log", "validation")}
    assert found["log"][0] == "step,loss,lr/0,lr/1"
    assert len(found["log"]) == 1 + len(read_log(tmp_path / "log.jsonl"))
    assert "val_map" in found["validation"][0]
    assert len(found["validation"]) == 1 + CONFIG.epochs
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith(".csv")} == whole


@pytest.mark.parametrize(("runtime", "same"), [({"workers": 2}, True), ({"seed": 1}, False)])
def test_seeds_change_weights_and_workers_do_not(tmp_path, whole, runtime, same):
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path, **runtime)
    name = "classifier.safetensors"
    assert (contents(tmp_path)[name] == whole[name]) == same


@pytest.mark.parametrize(
    ("changes", "val", "message"),
    [
        ({"batch": 23}, VAL, "22 images, fewer than one batch of 23"),
        ({"grad_accum": 3}, VAL, "a batch of 4 cannot be shared by 1 ranks in 3 parts each"),
        ({}, replace(VAL, classes=("a", "b", "c")), "the net has 2 classes, but blobs val has 3"),
        ({}, blobs(0, "val"), "no images to validate on"),
    ],
)
def test_invalid_settings_and_data(tmp_path, changes, val, message):
    with pytest.raises(AdvCAMError, match=message):
        fit(replace(CONFIG, **changes), TinyCAM(), TRAIN, val, tmp_path / "out")
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_photograph_is_one_line(tmp_path, monkeypatch, workers):
    monkeypatch.undo()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for sample in TRAIN.samples:
        Image.fromarray(noise).save(tmp_path / f"{sample.id}.jpg")
    broken = tmp_path / f"{TRAIN.samples[7].id}.jpg"
    broken.write_bytes(broken.read_bytes()[:-500])
    photographs = tuple(replace(sample, image=tmp_path / f"{sample.id}.jpg") for sample in TRAIN.samples)
    settings = replace(CONFIG, long_side=(16, 24))
    with pytest.raises(AdvCAMError) as logged:
        fit(settings, TinyCAM(), replace(TRAIN, samples=photographs), None, tmp_path / "out", workers=workers)
    assert str(broken) in str(logged.value)
    assert "truncated" in str(logged.value)
    assert "\n" not in str(logged.value)
    assert not (tmp_path / "out" / "classifier.json").exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, whole, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if b"val_map" in content and path.suffix == ".json":
            write(path, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match="No space left on device"):
        fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write)
    assert not (tmp_path / "classifier.json").exists()
    assert not list(tmp_path.glob(".*"))
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    assert contents(tmp_path) == whole


SCRIPT = HELPERS / "classifier_run.py"


@pytest.mark.slow
def test_a_training_killed_at_any_moment(tmp_path):
    run_script(SCRIPT, tmp_path / "whole", 0, 0.2)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, SCRIPT, tmp_path / "cut", "0.05", "0.2"], env=ENVIRONMENT)
        deadline = time.monotonic() + 60
        begun = len(read_log(tmp_path / "cut" / "log.jsonl"))
        while process.poll() is None and time.monotonic() < deadline:
            if len(read_log(tmp_path / "cut" / "log.jsonl")) >= begun + 4:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_dies_is_restarted(tmp_path):
    for name, dies in (("whole", "none"), ("restarted", "1")):
        logged = run_script(SCRIPT, tmp_path / name, 0, 0.2, ranks=2, DIES=dies)
        assert ("a rank dies" in logged) == ("resuming at step" in logged) == (dies == "1")
    assert contents(tmp_path / "restarted") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    for name, ranks in (("one", 1), ("two", 2)):
        run_script(SCRIPT, tmp_path / name, 0, 0.0, ranks=ranks)
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    for log, numbers in (("log", ["loss"]), ("validation", ["val_map", "val_loss"])):
        one, two = (read_log(tmp_path / name / f"{log}.jsonl") for name in ("one", "two"))
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            assert [a[n] for n in numbers] == pytest.approx([b[n] for n in numbers], abs=1e-6)


def test_real_weights_on_real_photographs(data_root, mobilenet, tmp_path, monkeypatch):
    monkeypatch.undo()
    train = read_voc(data_root / "voc", "train")
    net = cam_net(replace(mobilenet, train_from="blocks.5"), 20)
    optimizer = replace(OPTIMIZER, lr=0.02, head_lr=0.2)
    settings = ClassifierConfig(epochs=2, batch=4, crop=64, long_side=(64, 96), optimizer=optimizer)
    result = fit(settings, net, replace(train, samples=train.samples[:16]), None, tmp_path)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert result.train_loss < 0.7 * losses[0]
    again, classes = load_net(result.weights, CAM_NET)
    assert classes[0] == "aeroplane"
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
