"""Training by cross-consistency: log, best net, resumption, early stopping, invalid masks."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.masks import write_mask
from advcam_attr.data.voc import read_voc
from advcam_attr.networks.cct import CCT_NET, cct_net
from advcam_attr.networks.net_file import load_net, read_notes
from advcam_attr.pipelines.semi import training as semi
from advcam_attr.pipelines.semi.config import SemiDataConfig, SemiPredictConfig, SemiSettings
from advcam_attr.pipelines.semi.data import PseudoMaskFolder, SemiData, read_semi
from advcam_attr.pipelines.semi.predict import validation_iou
from advcam_attr.pipelines.semi.training import train_semi
from advcam_attr.training import checkpoint as checkpoints
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError
from logs import record_log
from places import HELPERS
from run_tools import Killed, killed_at_step, run_script
from semi_run import FEW, RUNTIME, SETTINGS, semi_scenes, small_net


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> SemiData:
    return semi_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def done(tmp_path_factory, given) -> tuple[Path, list[str]]:
    out, logged = tmp_path_factory.mktemp("done"), record_log()
    train_semi(SETTINGS, small_net(), given, out, RUNTIME)
    return out, logged


def test_log_and_validation(done):
    out, logged = done
    records = read_log(out / "log.jsonl")
    assert [r["step"] for r in records] == list(range(6))
    assert records[0].keys() == {"step", "loss", "lr", "supervised", "consistency", "weak"}
    for r in records:
        ramp = 1.0 if r["step"] >= 1 else np.exp(-5)  # 0.1 of 6 steps is one
        total = r["supervised"] + 30 * ramp * r["consistency"] + 0.4 * ramp * r["weak"]
        assert r["loss"] == pytest.approx(total, rel=1e-5)
        assert r["lr"] == pytest.approx([rate * (1 - r["step"] / 6) ** 0.9 for rate in (0.01, 0.001)])
    assert [r["epoch"] for r in read_log(out / "validation.jsonl")] == [1, 2, 3]
    assert sum("validation mIoU" in line for line in logged) == 3


def test_the_net_is_the_best_of_its_validations(done, given):
    out, _ = done
    best = max(r["val_miou"] for r in read_log(out / "validation.jsonl"))
    net, classes = load_net(out / "cct.safetensors", CCT_NET)
    assert classes == given.labelled.classes
    assert validation_iou(net, given.val) == best
    assert float(read_notes(out / "cct.safetensors")["val_miou"]) == best


def test_a_finished_training_is_skipped(done, given):
    out, logged = done[0], record_log()
    before = (out / "cct.safetensors").stat().st_mtime_ns
    train_semi(SETTINGS, small_net(), given, out, RUNTIME)
    assert len(logged) == 1
    assert (out / "cct.safetensors").stat().st_mtime_ns == before
    with pytest.raises(AdvCAMError, match="lr"):
        train_semi(replace(SETTINGS, optimizer=Optimizer(0.001, head_lr=0.02)), small_net(), given, out, RUNTIME)


@pytest.mark.parametrize("at", [0, 3, "validated", "checkpointed", "saving"])
def test_resumed_training_ends_with_the_same_bytes(at, done, given, tmp_path, monkeypatch):
    """Killed at a step, after a validation, in the middle of a checkpoint's write, and before the last file."""
    real_after, real_save = semi.Validation.after_epoch, checkpoints.torch.save

    def killed_after(self, epoch):
        result = real_after(self, epoch)
        if epoch == 2:
            raise Killed
        return result

    def killed_save(content, file):
        real_save(content, file)
        if content["step"] == 4:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise Killed

    def killed_bytes(*args):
        raise Killed

    places = {
        "validated": (semi.Validation, "after_epoch", killed_after),
        "checkpointed": (checkpoints.torch, "save", killed_save),
        "saving": (semi, "write_bytes", killed_bytes),
    }
    with monkeypatch.context() as patch, ExitStack() as stack:
        if at in places:
            patch.setattr(*places[at])
        stack.enter_context(pytest.raises(Killed) if at in places else killed_at_step(at))
        train_semi(SETTINGS, small_net(), given, tmp_path, RUNTIME)
    assert not (tmp_path / "cct.safetensors").exists()
    train_semi(SETTINGS, small_net(), given, tmp_path, RUNTIME)
    for name in ("cct.safetensors", "log.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes(), name
    assert not list(tmp_path.glob(".*"))


def test_workers_change_nothing(done, given, tmp_path):
    train_semi(replace(SETTINGS, checkpoint_every=100), small_net(), given, tmp_path, replace(RUNTIME, workers=2))
    assert (tmp_path / "cct.safetensors").read_bytes() == (done[0] / "cct.safetensors").read_bytes()


def test_early_stop_ignores_the_best_of_another_training(given, tmp_path, monkeypatch):
    measured = iter([0.3, 0.2, 0.1, 0.4, 0.3, 0.3, 0.3, 0.9])
    monkeypatch.setattr(semi, "validation_iou", lambda *args: next(measured))
    logged = record_log()
    settings = replace(SETTINGS, epochs=9, patience=2)
    train_semi(settings, small_net(), given, tmp_path, RUNTIME)
    records = read_log(tmp_path / "validation.jsonl")
    assert [r["val_miou"] for r in records] == [0.3, 0.2, 0.1, 0.4, 0.3, 0.3, 0.3]
    assert "no better net in 3 validations: the training ends" in logged
    assert read_notes(tmp_path / "cct.safetensors")["step"] == "7"  # the last of the fourth epoch's two
    measured = iter([0.05, 0.06, 0.04])
    train_semi(SETTINGS, small_net(), given, tmp_path, replace(RUNTIME, overwrite=True))
    assert read_notes(tmp_path / "cct.safetensors")["val_miou"] == "0.06"


def test_without_validation_the_last_net_is_saved(given, tmp_path):
    net, before = small_net(), torch.random.get_rng_state()
    settings = replace(SETTINGS, epochs=1, supervised="abce", confidence=0.2, pairwise_weight=1.0)
    train_semi(settings, net, replace(given, val=None, pseudo=None), tmp_path, RUNTIME)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not net.training
    saved, _ = load_net(tmp_path / "cct.safetensors", CCT_NET)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), net.parameters(), strict=True))
    assert read_log(tmp_path / "log.jsonl")[0].keys() == {
        "step", "loss", "lr", "supervised", "consistency", "pairwise"
    }  # fmt: skip


def test_half_precision_trains(given, tmp_path):
    net, runtime = small_net(auxiliary=FEW | {"cutout": 1}), replace(RUNTIME, autocast="bfloat16")
    train_semi(replace(SETTINGS, epochs=1), net, given, tmp_path, runtime)
    assert all(np.isfinite(r["loss"]) for r in read_log(tmp_path / "log.jsonl"))


@pytest.mark.slow
def test_two_ranks_share_a_training(tmp_path):
    run_script(HELPERS / "semi_run.py", tmp_path / "scenes", tmp_path / "out", ranks=2)
    assert [r["step"] for r in read_log(tmp_path / "out" / "log.jsonl")] == [0, 1, 2]
    assert len(read_log(tmp_path / "out" / "validation.jsonl")) == 3
    load_net(tmp_path / "out" / "cct.safetensors", CCT_NET)


def test_labelled_images_alone(given, tmp_path):
    train_semi(replace(SETTINGS, epochs=1), small_net(auxiliary={}), given, tmp_path, RUNTIME)
    assert read_log(tmp_path / "log.jsonl")[0].keys() == {"step", "loss", "lr", "supervised"}


def test_a_small_net_learns_scenes(given, tmp_path):
    settings = replace(SETTINGS, epochs=12, batch=5, validate_every=12, optimizer=Optimizer(0.01, head_lr=0.01))
    train_semi(settings, small_net(), given, tmp_path, RUNTIME)
    losses = [r["supervised"] for r in read_log(tmp_path / "log.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def spoiled(given: SemiData, folder: Path, **files: np.ndarray | bytes) -> SemiData:
    for sample in given.unlabelled.samples:
        write_mask(folder / f"{sample.id}.png", given.pseudo(sample))
    for id, content in files.items():
        if isinstance(content, bytes):
            (folder / f"{id[1:]}.png").write_bytes(content)
        else:
            Image.fromarray(content).save(folder / f"{id[1:]}.png")
    return replace(given, pseudo=PseudoMaskFolder(folder, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((40, 40), np.uint8), "40x40 pixels"),
        (b"\x89PNG\r\n\x1a\nhalf", "truncated or damaged|not a mask that can be read"),
        (None, "holds the label 7, but there are 3 classes"),
    ],
)
def test_bad_pseudo_masks_raise_before_the_training(content, message, given, tmp_path):
    sample = given.unlabelled.samples[1]
    if content is None:
        content = np.full(Image.open(sample.image).size[::-1], 7, np.uint8)
    data = spoiled(given, tmp_path / "masks", **{f"_{sample.id}": content})
    with pytest.raises(AdvCAMError, match=message) as raised:
        train_semi(SETTINGS, small_net(), data, tmp_path / "out", RUNTIME)
    assert sample.id in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_void_masks_and_crops_beyond_the_image(given, tmp_path):
    void = {f"_{s.id}": np.full(Image.open(s.image).size[::-1], 255, np.uint8) for s in given.unlabelled.samples}
    data = spoiled(given, tmp_path / "masks", **void)
    train_semi(replace(SETTINGS, epochs=1, crop=128), small_net(), data, tmp_path / "out", RUNTIME)
    records = read_log(tmp_path / "out" / "log.jsonl")
    assert all(r["weak"] == 0 and np.isfinite(r["loss"]) for r in records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 36}, "training.crop must be a multiple"),
        ({"batch": 6}, "fewer than one batch"),
    ],
)
def test_settings_that_do_not_fit(changes, message, given, tmp_path):
    with pytest.raises(AdvCAMError, match=message):
        train_semi(replace(SETTINGS, **changes), small_net(), given, tmp_path / "out", RUNTIME)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SemiSettings, {"batch": 1}, "batch must be at least 2"),
        (SemiSettings, {"confidence": 1.0}, "confidence"),
        (SemiSettings, {"long_side": (9, 3)}, "long_side"),
        *((SemiPredictConfig, {"scales": s}, "scales") for s in ((), (1.0, math.inf), (math.nan,), (17.0,))),
        (SemiPredictConfig, {"crf": "deepalb"}, "deeplab"),
    ],
)
def test_bad_settings(config, changes, message):
    with pytest.raises(AdvCAMError, match=message):
        config(**changes)


@pytest.mark.slow
def test_real_photographs_are_learned(data_root, mobilenet, tmp_path):
    """Twenty labelled and fifty unlabelled photographs, a MobileNetV2 of ImageNet, true masks as pseudo masks."""
    root = data_root / "voc"
    masks = read_voc(root, "train").root / "SegmentationClass"
    data = read_semi(SemiDataConfig(str(root), labelled_count=20, unlabelled="train", pseudo=str(masks)))
    assert (len(data.labelled.samples), len(data.unlabelled.samples)) == (20, 50)
    net = cct_net(
        mobilenet,
        21,
        norms="frozen",
        channels=64,
        auxiliary=dict.fromkeys(("vat", "dropout", "context_mask", "object_mask", "feature_drop"), 1),
    )
    settings = SemiSettings(epochs=3, batch=4, crop=128, long_side=(128, 256), validate_every=3)
    train_semi(settings, net, data, tmp_path, RUNTIME)
    records = read_log(tmp_path / "log.jsonl")
    assert len(records) == 36
    for name, share in (("supervised", 0.8), ("weak", 0.97)):  # the weak term is still ramping up
        assert np.mean([r[name] for r in records[-8:]]) < share * np.mean([r[name] for r in records[:4]])
