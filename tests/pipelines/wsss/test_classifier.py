"""The seed classifier's training: results, resuming, frozen weights, and invalid input."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAM_NET, CAMNet, CAMNetSpec, cam_net
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.wsss import classifier
from advcam_attr.pipelines.wsss.classifier import ClassifierConfig, train_classifier
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training import train as training
from advcam_attr.training.loading import TrainingBatches, load_batches
from advcam_attr.training.log import read_log
from advcam_attr.training.losses.classification import LOSSES
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError, Sample
from logs import record_log
from places import HELPERS, ROOT

OPTIMIZER = Optimizer(0.05, 0.5, momentum=RELEASED_MOMENTUM)
CONFIG = ClassifierConfig(epochs=2, batch=4, crop=16, optimizer=OPTIMIZER)
RUNTIME = Runtime("cpu", workers=0)


class TinyCAM(CAMNet):
    """A stem with a norm, a layer with dropout, two classes; stride 2."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(CAMNetSpec(Backbone("tests/tiny", stride=16), 2), 2, 6, (0.5,) * 3, (0.5,) * 3)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        )  # fmt: skip
        for parameter in self.backbone[:2].parameters():
            parameter.requires_grad_(False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


class Blobs:
    """Noise whose first channel is bright in class 0, the second in class 1."""

    def __init__(self, data: SegmentationData, settings: ClassifierConfig) -> None:
        self.data, self.size = data, settings.crop

    def __len__(self) -> int:
        return len(self.data.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(2)
        labels[list(self.data.samples[index].labels)] = 1
        image = torch.rand(3, self.size, self.size)
        image[:2] += labels[:, None, None]
        return image, labels


def no_mask(sample: Sample) -> torch.Tensor:
    raise AdvCAMError("no masks")


def blobs(count: int, split: str = "train") -> SegmentationData:
    labels = [(0,), (1,), (0, 1), ()]
    samples = tuple(Sample(f"{split}{n}", Path(f"{n}.png"), labels[n % 4]) for n in range(count))
    return SegmentationData("blobs", Path(), split, ("red", "green"), samples, no_mask)


TRAIN, VAL = blobs(22), blobs(9, "val")


@pytest.fixture(autouse=True)
def _items(monkeypatch):
    monkeypatch.setattr(classifier, "training_items", lambda data, config, net: Blobs(data, config))
    monkeypatch.setattr(classifier, "validation_items", lambda data, config, net: Blobs(data, config))


def fit(config, net, train, val, out, **runtime):
    return train_classifier(config, net, train, val, out, replace(RUNTIME, **runtime))


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.name != "checkpoint.pt"}


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
    assert logged[0] == "training the classifier on 22 images: 2 epochs, 10 steps of 4 images, on 1 x cpu"
    assert logged[-2:] == [f"wrote {tmp_path / name}" for name in ("classifier.safetensors", "classifier.json")]
    shown = f"validation loss {result.val_loss:.4f}, mAP {100 * result.val_map:.1f}"
    assert f"epoch 2: {shown}" in logged


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
        away.append(float((net.classifier.weight - start).norm()))
    assert 0 < away[1] < away[0] / 2


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (2, 3), (4, 3), (5, 100), (8, 3), (10, 3)])
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, monkeypatch, stop, every):
    settings = replace(CONFIG, checkpoint_every=every)
    fit(settings, TinyCAM(), TRAIN, VAL, tmp_path / "whole")
    seen = 0

    def killed_at(state, *args, **kwargs):
        nonlocal seen
        for record in real(state, *args, **kwargs):
            if seen == stop:
                raise Killed
            seen += 1
            yield record
        if seen == stop:
            raise Killed

    real = training.fit
    monkeypatch.setattr(training, "fit", killed_at)
    with pytest.raises(Killed):
        fit(settings, TinyCAM(), TRAIN, VAL, tmp_path / "cut")
    monkeypatch.setattr(training, "fit", real)
    assert not (tmp_path / "cut" / "classifier.json").exists()
    fit(replace(settings, checkpoint_every=50), TinyCAM(), TRAIN, VAL, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (f".{'0a' * 16}.pt", ".hidden", ".git"):
        (tmp_path / name).write_text("")
    fit(replace(CONFIG, epochs=1), TinyCAM(), TRAIN, None, tmp_path)
    assert sorted(file.name for file in tmp_path.glob(".*")) == [".git", ".hidden"]


def test_second_run_changes_nothing(tmp_path):
    first = fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    logged = record_log()
    net = TinyCAM()
    again = fit(CONFIG, net, TRAIN, VAL, tmp_path, workers=1)
    assert again == first
    assert logged == [f"{tmp_path / 'classifier.safetensors'} exists: nothing to train"]
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    weights = load_file(first.weights)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_other_settings_in_the_same_folder(tmp_path):
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    with pytest.raises(
        AdvCAMError, match=r"training\.json was made with other settings \(epochs was 2, is 3\); choose"
    ):
        fit(replace(CONFIG, epochs=3), TinyCAM(), TRAIN, VAL, tmp_path)
    with pytest.raises(AdvCAMError, match=r"val was blobs val, 9 images, \w+, is None"):
        fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path)
    with pytest.raises(AdvCAMError, match="seed was 0, is 1"):
        fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path, seed=1)
    other = TinyCAM()
    other.classifier.weight.data.add_(1)
    with pytest.raises(AdvCAMError, match="initial_weights was"):
        fit(CONFIG, other, TRAIN, VAL, tmp_path)


def test_other_settings_are_overwritten(tmp_path):
    """To the same bytes as in an empty folder; but where nothing is validated, the old validation is left alone."""
    fit(replace(CONFIG, epochs=3), TinyCAM(), TRAIN, VAL, tmp_path / "again", seed=1)
    for name in ("again", "anew"):
        fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path / name, overwrite=True)
    assert files(tmp_path / "again") == files(tmp_path / "anew")
    result = fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path / "again", overwrite=True)
    assert (result.val_loss, result.val_map, result.val_ap) == (None, None, ())
    assert fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path / "again") == result


@pytest.mark.parametrize("content", [b"{", b"[]", None])
def test_a_damaged_report_is_rewritten(tmp_path, content):
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    whole, report = files(tmp_path), tmp_path / "classifier.json"
    report.unlink() if content is None else report.write_bytes(content)
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path)
    assert files(tmp_path) == whole


def test_tensorboard_has_steps_and_validation(tmp_path, monkeypatch):
    """Each in its folder; the bytes of all else are the same."""
    written = []

    @contextmanager
    def writer(folder, purge_step):
        yield SimpleNamespace(add_scalar=lambda name, value, step: written.append((folder.name, name, value, step)))

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    fit(replace(CONFIG, tensorboard=True), TinyCAM(), TRAIN, VAL, tmp_path / "board")
    steps = read_log(tmp_path / "board" / "log.jsonl")
    assert [one for one in written if one[0] == "tensorboard"] == [
        ("tensorboard", "loss", record["loss"], record["step"]) for record in steps
    ]
    scalars = {(name, step): value for where, name, value, step in written if where == "validation"}
    for record in read_log(tmp_path / "board" / "validation.jsonl"):
        assert scalars["val_map", record["step"]] == record["val_map"]
    fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path / "plain")
    assert files(tmp_path / "board") == files(tmp_path / "plain")


def test_seeds_and_workers(tmp_path):
    settings = replace(CONFIG, epochs=1)
    for name, changes in {"a": {}, "b": {"workers": 2}, "c": {"seed": 1}}.items():
        fit(settings, TinyCAM(), TRAIN, VAL, tmp_path / name, **changes)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["classifier.safetensors"] != files(tmp_path / "c")["classifier.safetensors"]


def test_images_without_validation(tmp_path):
    result = fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path)
    assert (result.val_loss, result.val_map, result.val_ap) == (None, None, ())
    assert fit(CONFIG, TinyCAM(), TRAIN, None, tmp_path) == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 23}, "blobs train has 22 images, fewer than one batch of 23; choose a smaller batch"),
        ({"grad_accum": 3}, "a batch of 4 cannot be shared by 1 ranks in 3 parts each"),
    ],
)
def test_invalid_settings(tmp_path, changes, message):
    with pytest.raises(AdvCAMError, match=message):
        fit(replace(CONFIG, **changes), TinyCAM(), TRAIN, VAL, tmp_path / "out")
    assert not (tmp_path / "out" / "classifier.json").exists()


def test_invalid_data(tmp_path):
    three = replace(VAL, classes=("a", "b", "c"))
    with pytest.raises(AdvCAMError, match="the net has 2 classes, but blobs val has 3"):
        fit(CONFIG, TinyCAM(), TRAIN, three, tmp_path / "out")
    with pytest.raises(AdvCAMError, match="blobs val has no images to validate on"):
        fit(CONFIG, TinyCAM(), TRAIN, blobs(0, "val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if b"val_map" in content and path.suffix == ".json":
            write(path, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AdvCAMError, match=r"cannot write .*classifier\.json \(No space left on device\): make room"):
        fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path / "full")
    monkeypatch.setattr(Path, "write_bytes", write)
    assert not (tmp_path / "full" / "classifier.json").exists()
    assert not list((tmp_path / "full").glob(".*"))
    for name in ("full", "roomy"):
        fit(CONFIG, TinyCAM(), TRAIN, VAL, tmp_path / name)
    assert files(tmp_path / "full") == files(tmp_path / "roomy")


# --- other processes --------------------------------------------------------------------------------------------------

SCRIPT = """
import logging, os, sys, time
logging.basicConfig(level="INFO", stream=sys.stdout)
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
import test_classifier as t
slow = float(sys.argv[2])
reads = []
class Slow(t.Blobs):
    def __getitem__(self, index):
        time.sleep(slow)
        reads.append(index)
        dying = os.environ.get("DIES") == os.environ.get("RANK") and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if dying and len(reads) == 13:
            print("a rank dies", flush=True)
            os._exit(1)
        return super().__getitem__(index)
t.classifier.training_items = t.classifier.validation_items = lambda data, config, net: Slow(data, config)
net = t.TinyCAM()
if len(sys.argv) > 3:
    net.backbone[6] = torch.nn.Identity()
t.train_classifier(t.replace(t.CONFIG, checkpoint_every=2), net, t.TRAIN, t.VAL, Path(sys.argv[1]), t.RUNTIME)
"""


def command(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    return tmp_path / "train.py"


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}"}


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    script = command(tmp_path)
    subprocess.run([sys.executable, script, tmp_path / "whole", "0"], check=True, env=ENVIRONMENT)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, script, tmp_path / "cut", "0.05"], env=ENVIRONMENT)
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
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]


@pytest.mark.slow
def test_a_rank_that_dies_is_restarted(tmp_path):
    script = command(tmp_path)
    for name, dies in (("whole", "none"), ("restarted", "1")):
        ran = subprocess.run(
            [*TORCHRUN, script, tmp_path / name, "0"], check=True, env=ENVIRONMENT | {"DIES": dies}, capture_output=True
        )
        assert (b"a rank dies" in ran.stdout) == (b"resuming at step" in ran.stdout) == (dies == "1")
    assert files(tmp_path / "restarted") == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    script = command(tmp_path)
    subprocess.run([sys.executable, script, tmp_path / "one", "0", "plain"], check=True, env=ENVIRONMENT)
    subprocess.run([*TORCHRUN, script, tmp_path / "two", "0", "plain"], check=True, env=ENVIRONMENT)
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [r["loss"] for r in logs[0]] == pytest.approx([r["loss"] for r in logs[1]], abs=1e-6)
    logs = [read_log(tmp_path / name / "validation.jsonl") for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        assert a["val_map"] == pytest.approx(b["val_map"])
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-6)


# --- real data --------------------------------------------------------------------------------------------------------


def test_real_weights_on_real_photographs(data_root, tmp_path, monkeypatch):
    voc = pytest.importorskip("advcam_attr.data.voc")
    monkeypatch.undo()
    train = voc.read_voc(data_root / "voc", "train")
    net = cam_net(
        Backbone(
            "timm/mobilenetv2_100",
            model_args={"num_classes": 1001, "pad_type": "same"},
            train_from="blocks.5",
            checkpoint=data_root / "weights" / "mobilenetv2_100_imagenet.safetensors",
        ),
        20,
    )
    optimizer = replace(OPTIMIZER, lr=0.02, head_lr=0.2)
    settings = ClassifierConfig(epochs=2, batch=8, crop=96, long_side=(96, 128), optimizer=optimizer)
    result = fit(settings, net, replace(train, samples=train.samples[:32]), None, tmp_path)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert result.train_loss < 0.7 * losses[0]
    again, classes = load_net(result.weights, CAM_NET)
    assert classes[0] == "aeroplane"
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
