"""Training of localization classifiers: schedule, groups, CutMix, validation, resumption."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from advcam_attr.data.cub import read_cub
from advcam_attr.data.samples import LocalizationData
from advcam_attr.data.shards import read_shards
from advcam_attr.data.transforms import wsol_train
from advcam_attr.networks.wsol import load_wsol_net
from advcam_attr.pipelines.wsol.classifier import predicted_labels, train_wsol_classifier, wsol_items
from advcam_attr.pipelines.wsol.config import WSOL_SETTINGS, WSOLClassifierSettings
from advcam_attr.training.fit import step_decay
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError, Sample
from logs import record_log
from places import HELPERS
from run_tools import contents, killed_at_step, run_script
from wsol_run import OPTIMIZER, QUICK, RUNTIME, Tiny, part, tints


@pytest.fixture(scope="module")
def tinted(tmp_path_factory) -> LocalizationData:
    return tints(tmp_path_factory.mktemp("images"))


def fit(settings, net, data, val, out, **runtime):
    return train_wsol_classifier(settings, net, data, val, out, replace(RUNTIME, **runtime))


@pytest.fixture(scope="module")
def done(tmp_path_factory, tinted):
    """A finished training: its folder, result, net and messages."""
    out, logged, net = tmp_path_factory.mktemp("done"), record_log(), Tiny()
    return out, fit(QUICK, net, tinted, part(tinted, 3), out), net, logged


def test_files_and_log(done):
    tmp_path, result, net, logged = done
    names = {"classifier.safetensors", "checkpoint.pt", "log.jsonl", "validation.jsonl", "training.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    log = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in log] == list(range(12))
    rates = [0.02] * 4 + [0.002] * 8
    assert [record["lr"] for record in log] == [pytest.approx([rate, 10 * rate]) for rate in rates]
    validation = read_log(tmp_path / "validation.jsonl")
    assert [record["step"] for record in validation] == [1, 2, 3]
    assert (result.val_loss, result.val_top1) == (validation[-1]["val_loss"], validation[-1]["val_top1"])
    assert result.train_loss == pytest.approx(sum(record["loss"] for record in log[8:]) / 4)
    settings = json.loads((tmp_path / "training.json").read_text())["settings"]
    assert (settings["cutmix_probability"], settings["optimizer"]["momentum"]) == (0.5, 0.9)
    assert settings["backbone"]["name"] == "tests/tiny"
    assert settings["train"].startswith("tints train, 19 images, ")
    assert any(line.startswith("epoch 3: validation loss ") for line in logged)
    assert not net.training or net.conv.training, "its mode is as it was"
    assert net.norm.num_batches_tracked == 12, "norms keep statistics of the batches"


def test_classes_are_learned(tmp_path, tinted):
    settings = replace(
        QUICK, optimizer=Optimizer(0.05, nesterov=True), epochs=12, decay_every=20, cutmix_probability=0.0
    )
    net = Tiny()
    result = fit(settings, net, tinted, tinted, tmp_path)
    assert result.val_top1 > 0.9
    predicted = predicted_labels(net, tinted, RUNTIME, size=10, batch=4)
    truth = torch.tensor([sample.labels[0] for sample in tinted.samples])
    assert (predicted == truth).double().mean() == pytest.approx(result.val_top1)


def test_first_step_by_hand(tmp_path, tinted):
    """Nesterov's first step: w - lr (1 + momentum) (gradient + decay w), each group with its own rate."""
    settings = replace(
        QUICK, optimizer=replace(OPTIMIZER, weight_decay=0.1), epochs=1, batch=19, cutmix_probability=0.0
    )
    net, twin = Tiny(dropout=0.0), Tiny(dropout=0.0)
    fit(settings, net, tinted, None, tmp_path)
    items = wsol_items(tinted, wsol_train(12, 10, (0.5,) * 3, (0.5,) * 3))
    ((images, labels),) = load_batches(items, TrainingBatches(19, 19, seed=0, steps=(0, 1)), seed=0)
    loss = F.cross_entropy(twin.train()(images), labels)
    for name, weight in twin.named_parameters():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        rate = 0.2 if name.startswith("fc.") else 0.02
        expected = weight - rate * 1.9 * (gradient + 0.1 * weight)
        assert torch.allclose(net.get_parameter(name), expected, atol=1e-5), name


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (4, 3), (6, 100), (9, 4), (12, 5)])
def test_resumed_training_ends_with_the_same_bytes(tmp_path, tinted, done, stop, every):
    with killed_at_step(stop):
        fit(replace(QUICK, checkpoint_every=every), Tiny(), tinted, part(tinted, 3), tmp_path)
    assert not (tmp_path / "classifier.safetensors").exists()
    fit(replace(QUICK, checkpoint_every=50), Tiny(), tinted, part(tinted, 3), tmp_path)
    assert contents(tmp_path) == contents(done[0])


def test_a_second_run_loads_the_net(tmp_path, tinted, done):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    net, before, logged = Tiny(), contents(tmp_path), record_log()
    again = fit(QUICK, net, tinted, part(tinted, 3), tmp_path, workers=1)
    assert replace(again, weights=done[1].weights) == done[1]
    assert len(logged) == 1
    assert contents(tmp_path) == before
    assert net.norm.num_batches_tracked == 12
    with pytest.raises(AdvCAMError, match="cutmix_probability was"):
        fit(replace(QUICK, cutmix_probability=0.0), Tiny(), tinted, part(tinted, 3), tmp_path)
    again = fit(replace(QUICK, epochs=1), Tiny(), tinted, None, tmp_path, overwrite=True)
    assert again.val_top1 is None


def test_shards_train_as_folders_do(tmp_path, tinted):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for sample in tinted.samples:
            for ending, content in (("png", sample.image.read_bytes()), ("cls", str(sample.labels[0]).encode())):
                about = tarfile.TarInfo(f"{sample.id}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    shards = read_shards(tmp_path / "shards", classes=("red", "green"))
    fit(QUICK, Tiny(), tinted, None, tmp_path / "a")
    fit(QUICK, Tiny(), shards, None, tmp_path / "b")
    weights = [(tmp_path / name / "classifier.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert torch.equal(
        predicted_labels(Tiny(), shards, RUNTIME, size=10), predicted_labels(Tiny(), tinted, RUNTIME, size=10)
    )


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, {"classes": ("a", "b", "c")}, "the net has 2 classes, but tints train has 3"),
        ({"batch": 20}, {}, "19 images, fewer than one batch of 20"),
        ({"batch": 19}, {"samples": (Sample("x", Path("x.png"), (0,)),) * 19}, "no such image file: .*x.png"),
    ],
)
def test_bad_input(tmp_path, tinted, changes, data, message):
    with pytest.raises(AdvCAMError, match=message):
        fit(replace(QUICK, **changes), Tiny(), replace(tinted, **data), None, tmp_path)


@pytest.mark.parametrize(("change", "message"), [({"resize": 200}, "crop"), ({"cutmix_beta": 0.0}, "beta")])
def test_bad_settings(change, message):
    with pytest.raises(AdvCAMError, match=message):
        replace(WSOLClassifierSettings(), **change)


def test_published_settings():
    """Epochs 1 to 14 at the first rate, 15 to 29 at a tenth, and so on."""
    assert len(WSOL_SETTINGS) == 8
    cub = WSOL_SETTINGS["cub_resnet50_cam"]
    assert (cub.epochs, cub.batch, cub.decay_every, cub.backbone.stride, cub.cutmix) == (50, 32, 15, 8, None)
    schedule = step_decay(per_epoch=10, every=cub.decay_every)
    rates = [schedule(10 * (epoch - 1)) for epoch in range(1, 51)]
    assert rates == pytest.approx([1.0] * 14 + [0.1] * 15 + [0.01] * 15 + [0.001] * 6)
    assert [schedule(step) for step in (139, 140)] == pytest.approx([1.0, 0.1])
    for name, settings in WSOL_SETTINGS.items():
        data_set, method = name.split("_")[0], name.split("_")[-1]
        assert (settings.epochs, settings.decay_every) == ((50, 15) if data_set == "cub" else (10, 3))
        assert settings.optimizer.weight_decay == (5e-4 if "inception" in name else 1e-4)
        assert (settings.cutmix is not None) == (method == "cutmix")


@pytest.mark.slow
def test_two_ranks(tmp_path, tinted):
    """Without batch norms they equal one rank; with them, the saved net is the validated one."""
    for name, ranks, norms in (("one", 1, "running"), ("two", 2, "running"), ("batch", 2, "batch")):
        run_script(HELPERS / "wsol_run.py", tinted.root, tmp_path / name, norms, ranks=ranks)
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    logs = [read_log(tmp_path / name / "validation.jsonl") for name in ("one", "two")]
    assert [r["val_loss"] for r in logs[0]] == pytest.approx([r["val_loss"] for r in logs[1]], abs=1e-5)
    net = Tiny()
    net.load_state_dict(load_file(tmp_path / "batch" / "classifier.safetensors"))
    val = part(tinted, 3)
    truth = torch.tensor([sample.labels[0] for sample in val.samples])
    right = (predicted_labels(net, val, RUNTIME, size=10) == truth).double().mean()
    assert read_log(tmp_path / "batch" / "validation.jsonl")[-1]["val_top1"] == pytest.approx(float(right))


@pytest.mark.slow
def test_real_birds(tmp_path, data_root, mobilenet):
    """ImageNet's MobileNetV2, its norms folded, learns ten species from thirty images each."""
    settings = WSOLClassifierSettings(
        backbone=replace(mobilenet, stride=16, train_from="blocks.6"),
        norms="running",
        optimizer=Optimizer(2e-3, nesterov=True),
        epochs=2,
        batch=20,
        decay_every=2,
    )
    train, test = (read_cub(data_root, split) for split in ("train", "test"))
    result = fit(settings, settings.make_net(10), train, test, tmp_path)
    assert result.val_top1 > 0.5
    net, classes = load_wsol_net(result.weights)
    assert classes == train.classes
    predicted = predicted_labels(net, test, RUNTIME)
    truth = torch.tensor([sample.labels[0] for sample in test.samples])
    assert float((predicted == truth).double().mean()) == pytest.approx(result.val_top1)
