"""Training of localization classifiers: schedule, groups, CutMix, validation, resumption."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from advcam_attr.data.cub import read_cub
from advcam_attr.data.samples import LocalizationData, per_class
from advcam_attr.data.shards import read_shards
from advcam_attr.data.transforms import wsol_train
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.wsol import load_wsol_net
from advcam_attr.networks.wsol_parts import WSOLNet, WSOLNetSpec
from advcam_attr.pipelines.wsol.classifier import predicted_labels, train_wsol_classifier, wsol_items
from advcam_attr.pipelines.wsol.config import WSOL_SETTINGS, WSOLClassifierSettings
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training import train as training
from advcam_attr.training.fit import step_decay
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError, Sample
from logs import record_log
from places import HELPERS, ROOT

OPTIMIZER = Optimizer(0.02, nesterov=True)
QUICK = WSOLClassifierSettings(
    optimizer=OPTIMIZER, epochs=3, batch=4, resize=12, crop=10, decay_every=2, cutmix_probability=0.5
)
RUNTIME = Runtime("cpu", workers=0)


class Tiny(WSOLNet):
    """A convolution with batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spec, self.stride = WSOLNetSpec(Backbone("tests/tiny", stride=16, mean=(0.5,), std=(0.5,)), 2), 1
        self.mean = self.std = (0.5,) * 3
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.dropout(self.norm(self.conv(x)).relu().mean((2, 3)), 0.2, self.training))


def tints(root: Path) -> LocalizationData:
    samples = tuple(Sample(str(n), root / f"{n}.png", (n % 2,)) for n in range(19))
    return LocalizationData("tints", root, "train", ("red", "green"), samples, {}, {})


@pytest.fixture(scope="module")
def tinted(tmp_path_factory) -> LocalizationData:
    """Noise, reddish in class 0 and greenish in class 1."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for n in range(19):
        pixels = rng.integers(0, 160, (14, 18, 3))
        pixels[..., n % 2] += 90
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{n}.png")
    return tints(root)


def part(data: LocalizationData, count: int) -> LocalizationData:
    return replace(per_class(data, count), split="val")


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.name != "checkpoint.pt"}


def test_files_and_log(tmp_path, tinted):
    logged = record_log()
    net = Tiny()
    result = train_wsol_classifier(QUICK, net, tinted, part(tinted, 3), tmp_path, RUNTIME)
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
    result = train_wsol_classifier(settings, net, tinted, tinted, tmp_path, RUNTIME)
    assert result.val_top1 > 0.9
    predicted = predicted_labels(net, tinted, RUNTIME, size=10, batch=4)
    truth = torch.tensor([sample.labels[0] for sample in tinted.samples])
    assert (predicted == truth).double().mean() == pytest.approx(result.val_top1)


def test_first_step_by_hand(tmp_path, tinted):
    """Nesterov's first step: w - lr (1 + momentum) (gradient + decay w), each group with its own rate."""
    settings = replace(
        QUICK, optimizer=replace(OPTIMIZER, weight_decay=0.1), epochs=1, batch=19, cutmix_probability=0.0
    )
    net, twin = Tiny().double().float(), Tiny()
    for module in (net, twin):
        module.forward = lambda x, m=module: m.fc(m.norm(m.conv(x)).relu().mean((2, 3)))
    train_wsol_classifier(settings, net, tinted, None, tmp_path, RUNTIME)
    items = wsol_items(tinted, wsol_train(12, 10, (0.5,) * 3, (0.5,) * 3))
    ((images, labels),) = load_batches(items, TrainingBatches(19, 19, seed=0, steps=(0, 1)), seed=0)
    loss = F.cross_entropy(twin.train()(images), labels)
    for name, weight in twin.named_parameters():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        rate = 0.2 if name.startswith("fc.") else 0.02
        expected = weight - rate * 1.9 * (gradient + 0.1 * weight)
        assert torch.allclose(net.get_parameter(name), expected, atol=1e-5), name


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (4, 3), (6, 100), (9, 4), (12, 5)])
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path, monkeypatch, tinted, stop, every):
    settings, val = replace(QUICK, checkpoint_every=every), part(tinted, 3)
    train_wsol_classifier(settings, Tiny(), tinted, val, tmp_path / "whole", RUNTIME)
    seen = 0
    fit = training.fit

    def killed_at(state, *args, **kwargs):
        nonlocal seen
        for record in fit(state, *args, **kwargs):
            if seen == stop:
                raise Killed
            seen += 1
            yield record
        raise Killed

    monkeypatch.setattr(training, "fit", killed_at)
    with pytest.raises(Killed):
        train_wsol_classifier(settings, Tiny(), tinted, val, tmp_path / "cut", RUNTIME)
    monkeypatch.setattr(training, "fit", fit)
    assert not (tmp_path / "cut" / "classifier.safetensors").exists()
    train_wsol_classifier(replace(settings, checkpoint_every=50), Tiny(), tinted, val, tmp_path / "cut", RUNTIME)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_second_run_loads_the_net(tmp_path, tinted):
    first = train_wsol_classifier(QUICK, Tiny(), tinted, part(tinted, 3), tmp_path, RUNTIME)
    before = files(tmp_path)
    net, logged = Tiny(), record_log()
    one_worker = replace(RUNTIME, workers=1)
    again = train_wsol_classifier(QUICK, net, tinted, part(tinted, 3), tmp_path, one_worker)
    assert again == first
    assert len(logged) == 1
    assert files(tmp_path) == before
    assert net.norm.num_batches_tracked == 12
    with pytest.raises(AdvCAMError, match="cutmix_probability was"):
        train_wsol_classifier(
            replace(QUICK, cutmix_probability=0.0), Tiny(), tinted, part(tinted, 3), tmp_path, RUNTIME
        )
    overwrite = replace(RUNTIME, overwrite=True)
    again = train_wsol_classifier(replace(QUICK, epochs=1), Tiny(), tinted, None, tmp_path, overwrite)
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
    train_wsol_classifier(QUICK, Tiny(), tinted, None, tmp_path / "a", RUNTIME)
    train_wsol_classifier(QUICK, Tiny(), shards, None, tmp_path / "b", RUNTIME)
    weights = [(tmp_path / name / "classifier.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert torch.equal(
        predicted_labels(Tiny(), shards, RUNTIME, size=10), predicted_labels(Tiny(), tinted, RUNTIME, size=10)
    )


def test_bad_input(tmp_path, tinted):
    with pytest.raises(AdvCAMError, match="the net has 2 classes, but tints train has 3"):
        train_wsol_classifier(QUICK, Tiny(), replace(tinted, classes=("a", "b", "c")), None, tmp_path, RUNTIME)
    with pytest.raises(AdvCAMError, match="there are 19 images, fewer than one batch of 20"):
        train_wsol_classifier(replace(QUICK, batch=20), Tiny(), tinted, None, tmp_path, RUNTIME)
    missing = replace(tinted, samples=(*tinted.samples[:18], Sample("x", tmp_path / "x.png", (0,))))
    with pytest.raises(AdvCAMError, match=r"no such image file: .*x.png"):
        train_wsol_classifier(replace(QUICK, epochs=9), Tiny(), missing, None, tmp_path, RUNTIME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 200}, "crop must be at most resize"),
        ({"cutmix_beta": 0.0}, "beta must be positive"),
    ],
)
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


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
import test_classifier as t
net = t.Tiny()
settings = t.QUICK
if sys.argv[2] == "running":
    net.spec, settings = replace(net.spec, norms="running"), replace(settings, cutmix_probability=0.0)
    net.forward = lambda x: net.fc(net.norm(net.conv(x)).relu().mean((2, 3)))
data = t.tints(Path({tinted!r}))
t.train_wsol_classifier(settings, net, data, t.part(data, 3), Path(sys.argv[1]), t.RUNTIME)
"""


@pytest.mark.slow
def test_two_ranks(tmp_path, tinted):
    """Without batch norms they equal one rank; with them, the saved net is the validated one."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), tinted=str(tinted.root)))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([sys.executable, script, tmp_path / "one", "running"], check=True, env=env)
    subprocess.run([*torchrun, script, tmp_path / "two", "running"], check=True, env=env)
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    logs = [read_log(tmp_path / name / "validation.jsonl") for name in ("one", "two")]
    assert [r["val_loss"] for r in logs[0]] == pytest.approx([r["val_loss"] for r in logs[1]], abs=1e-5)
    subprocess.run([*torchrun, script, tmp_path / "batch", "batch"], check=True, env=env)
    net = Tiny()
    net.load_state_dict(load_file(tmp_path / "batch" / "classifier.safetensors"))
    val = part(tinted, 3)
    truth = torch.tensor([sample.labels[0] for sample in val.samples])
    right = (predicted_labels(net, val, RUNTIME, size=10) == truth).double().mean()
    assert read_log(tmp_path / "batch" / "validation.jsonl")[-1]["val_top1"] == pytest.approx(float(right))


@pytest.mark.slow
def test_real_birds(tmp_path, data_root):
    """ImageNet's MobileNetV2, its norms folded, learns ten species from thirty images each."""
    settings = WSOLClassifierSettings(
        backbone=Backbone(
            "timm/mobilenetv2_100",
            {"num_classes": 1001, "pad_type": "same"},
            data_root / "weights" / "mobilenetv2_100_imagenet.safetensors",
            mean=(0.5,),
            std=(0.5,),
            stride=16,
            train_from="blocks.6",
        ),
        norms="running",
        optimizer=Optimizer(2e-3, nesterov=True),
        epochs=2,
        batch=20,
        decay_every=2,
    )
    train, test = (read_cub(data_root, split) for split in ("train", "test"))
    result = train_wsol_classifier(settings, settings.make_net(10), train, test, tmp_path, RUNTIME)
    assert result.val_top1 > 0.5
    net, classes = load_wsol_net(result.weights)
    assert classes == train.classes
    predicted = predicted_labels(net, test, RUNTIME)
    truth = torch.tensor([sample.labels[0] for sample in test.samples])
    assert float((predicted == truth).double().mean()) == pytest.approx(result.val_top1)
