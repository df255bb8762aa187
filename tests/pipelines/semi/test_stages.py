"""Semi-supervised training: pairs, resumption, the best net, predictions, and odd inputs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.cli.parser import Parser
from advcam_attr.data.masks import palette, read_mask, write_mask
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.data.voc import read_voc
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cct import CCT_NET, cct_net
from advcam_attr.networks.net_file import load_net, read_notes
from advcam_attr.pipelines.semi import stages as semi
from advcam_attr.pipelines.semi.config import SemiConfig, SemiDataConfig, SemiNetConfig, SemiPredictConfig, SemiSettings
from advcam_attr.pipelines.semi.data import Pairs, PseudoMasks, SemiData, read_semi
from advcam_attr.pipelines.semi.predict import multi_scale_scores, padded_scores, validation_iou, write_predictions
from advcam_attr.pipelines.semi.stages import train_semi
from advcam_attr.training import checkpoint as checkpoints
from advcam_attr.training import train as training
from advcam_attr.training.log import read_log
from advcam_attr.types import AdvCAMError
from logs import record_log
from places import HELPERS
from semi_run import FEW, SETTINGS, semi_scenes, small_net


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> SemiData:
    return semi_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def done(tmp_path_factory, given) -> tuple[Path, list[str]]:
    out, told = tmp_path_factory.mktemp("done"), record_log()
    train_semi(SETTINGS, small_net(), given, out)
    return out, told


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_augmentation_moves_labels_with_their_pixels():
    """Labels that can be read off the colours can still be read off them after resizing, mirroring and cutting."""
    height, width = 40, 64
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, 32:] = 1
    labels[20:, :32] = 2
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)
    picture = Image.fromarray(colours[labels.numpy()])
    augment = PairedAugmentation(48, (30, 120), (0.0,) * 3, (1.0,) * 3)
    mirrored, void = 0, 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, moved = augment(picture, labels)
        assert image.shape == (3, 48, 48)
        assert (image.dtype, moved.dtype) == (torch.float32, torch.uint8)
        assert type(image) is type(moved) is torch.Tensor
        outside = moved == 255
        agree = (image.argmax(0) == moved)[~outside]
        assert float(agree.float().mean()) > 0.93  # bicubic filters blur the borders
        assert bool((image[:, outside] == 0).all())
        void += bool(outside.any())
        mirrored += bool(moved[24, 0] == 1 and moved[24, -1] != 1)
    assert 0 < void < 30
    assert 0 < mirrored < 30


def test_labelled_images_are_cycled_evenly_and_unlabelled_ones_come_once(given):
    pairs = Pairs(given, PairedAugmentation(32, (30, 60)))
    seen = [0, 0]
    for epoch in range(2):
        for index in range(len(pairs)):
            seen[(epoch * len(pairs) + index) % 2] += 1
    assert seen == [5, 5]  # of two labelled images, over two epochs of five unlabelled ones
    torch.manual_seed(0)
    images, labels = pairs.of_epoch(1)[0]  # the sixth pair: labelled image 1
    torch.manual_seed(0)
    sample = given.labelled.samples[1]
    image, mask = pairs.augmentation(Image.open(sample.image), given.labelled.mask(sample))
    assert torch.equal(images[0], image)
    assert torch.equal(labels[0], mask)
    assert set(labels[1].unique().tolist()) <= {0, given.unlabelled.samples[0].labels[0] + 1, 255}
    without = Pairs(replace(given, pseudo=None), pairs.augmentation)
    assert without[0][1][1].unique().tolist() == [255]


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_training_tells_its_terms_and_its_validation(done):
    out, told = done
    records = read_log(out / "log.jsonl")
    assert [r["step"] for r in records] == list(range(6))
    assert records[0].keys() == {"step", "loss", "lr", "supervised", "consistency", "weak"}
    for r in records:
        ramp = 1.0 if r["step"] >= 1 else np.exp(-5)  # 0.1 of 6 steps is one
        total = r["supervised"] + 30 * ramp * r["consistency"] + 0.4 * ramp * r["weak"]
        assert r["loss"] == pytest.approx(total, rel=1e-5)
        assert r["lr"] == pytest.approx([rate * (1 - r["step"] / 6) ** 0.9 for rate in (0.01, 0.001)])
    assert [r["epoch"] for r in read_log(out / "validation.jsonl")] == [1, 2, 3]
    assert sum("validation mIoU" in line for line in told) == 3


def test_the_net_is_the_best_of_its_validations(done, given):
    out, _ = done
    best = max(r["val_miou"] for r in read_log(out / "validation.jsonl"))
    net, classes = load_net(out / "cct.safetensors", CCT_NET)
    assert classes == given.labelled.classes
    assert validation_iou(net, given.val) == best
    assert float(read_notes(out / "cct.safetensors")["val_miou"]) == best


def test_a_done_training_is_not_done_again(done, given):
    out, told = done[0], record_log()
    before = (out / "cct.safetensors").stat().st_mtime_ns
    train_semi(SETTINGS, small_net(), given, out)
    assert told == [f"{out / 'cct.safetensors'} is there: nothing to train"]
    assert (out / "cct.safetensors").stat().st_mtime_ns == before
    with pytest.raises(AdvCAMError, match="lr"):
        train_semi(replace(SETTINGS, lr=0.02), small_net(), given, out)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", ["before_first", "in_epoch", "validated", "checkpointed", "saving"])
def test_a_killed_training_ends_with_the_same_bits(at, done, given, tmp_path, monkeypatch):
    """Killed within an epoch, after a validation, in the middle of a checkpoint's write, and before the last file."""
    calls = {"fit": 0}
    real_fit, real_after, real_save = training.fit, semi.Validation.after_epoch, checkpoints.torch.save

    def killed_fit(*args, **options):
        for record in real_fit(*args, **options):
            calls["fit"] += 1
            if calls["fit"] == {"before_first": 1, "in_epoch": 4}.get(at):
                raise Killed
            yield record

    def killed_after(self, epoch):
        result = real_after(self, epoch)
        if at == "validated" and epoch == 2:
            raise Killed
        return result

    def killed_save(content, file):
        real_save(content, file)
        if at == "checkpointed" and content["step"] == 4:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise Killed

    def killed_bytes(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", killed_fit)
        patch.setattr(semi.Validation, "after_epoch", killed_after)
        patch.setattr(checkpoints.torch, "save", killed_save)
        if at == "saving":
            patch.setattr(semi, "write_bytes", killed_bytes)
        with pytest.raises(Killed):
            train_semi(SETTINGS, small_net(), given, tmp_path)
    assert not (tmp_path / "cct.safetensors").exists()
    train_semi(SETTINGS, small_net(), given, tmp_path)
    for name in ("cct.safetensors", "log.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes(), name
    assert not list(tmp_path.glob(".*"))


def test_workers_change_nothing(done, given, tmp_path):
    train_semi(replace(SETTINGS, workers=2, checkpoint_every=100), small_net(), given, tmp_path)
    assert (tmp_path / "cct.safetensors").read_bytes() == (done[0] / "cct.safetensors").read_bytes()


def test_early_stop_and_a_stale_best_of_another_training(given, tmp_path, monkeypatch):
    measured = iter([0.3, 0.2, 0.1, 0.4, 0.3, 0.3, 0.3, 0.9])
    monkeypatch.setattr(semi, "mean_iou", lambda *args: next(measured))
    told = record_log()
    settings = replace(SETTINGS, epochs=9, patience=2)
    train_semi(settings, small_net(), given, tmp_path)
    records = read_log(tmp_path / "validation.jsonl")
    assert [r["val_miou"] for r in records] == [0.3, 0.2, 0.1, 0.4, 0.3, 0.3, 0.3]
    assert "no better net in 3 validations: the training ends" in told
    assert read_notes(tmp_path / "cct.safetensors")["step"] == "7"  # the last of the fourth epoch's two
    measured = iter([0.05, 0.06, 0.04])
    train_semi(replace(SETTINGS, overwrite=True), small_net(), given, tmp_path)
    assert read_notes(tmp_path / "cct.safetensors")["val_miou"] == "0.06"


def test_without_validation_the_last_net_is_kept_and_all_is_as_it_was(given, tmp_path):
    net, before = small_net(), torch.random.get_rng_state()
    settings = replace(SETTINGS, epochs=1, supervised="abce", confidence=0.2, pairwise_weight=1.0)
    train_semi(settings, net, replace(given, val=None, pseudo=None), tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not net.training
    kept, _ = load_net(tmp_path / "cct.safetensors", CCT_NET)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), net.parameters(), strict=True))
    assert read_log(tmp_path / "log.jsonl")[0].keys() == {
        "step", "loss", "lr", "supervised", "consistency", "pairwise"
    }  # fmt: skip


def test_half_precision_trains(given, tmp_path):
    settings = replace(SETTINGS, epochs=1, autocast="bfloat16")
    train_semi(settings, small_net(auxiliary=dict.fromkeys(FEW, 1) | {"cutout": 1}), given, tmp_path)
    assert all(np.isfinite(r["loss"]) for r in read_log(tmp_path / "log.jsonl"))


@pytest.mark.slow
def test_two_ranks_share_a_training(tmp_path):
    script = HELPERS / "semi_run.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(
        [*command, str(tmp_path / "scenes"), str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert [r["step"] for r in read_log(tmp_path / "out" / "log.jsonl")] == [0, 1, 2]
    assert len(read_log(tmp_path / "out" / "validation.jsonl")) == 3
    load_net(tmp_path / "out" / "cct.safetensors", CCT_NET)


def test_labelled_images_alone_can_be_learned(given, tmp_path):
    train_semi(replace(SETTINGS, epochs=1), small_net(auxiliary={}), given, tmp_path)
    assert read_log(tmp_path / "log.jsonl")[0].keys() == {"step", "loss", "lr", "supervised"}


def test_a_small_net_learns_scenes(given, tmp_path):
    settings = replace(SETTINGS, epochs=12, batch=5, validate_every=12, encoder_lr=0.01)
    train_semi(settings, small_net(), given, tmp_path)
    losses = [r["supervised"] for r in read_log(tmp_path / "log.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


# --- prediction -------------------------------------------------------------------------------------------------------


def test_images_of_any_size_are_mirrored_up_to_the_stride():
    net = small_net()
    for size in ((37, 50), (8, 8), (3, 5), (33, 1)):
        assert padded_scores(net, torch.rand(1, 3, *size)).shape == (1, 4, *size)
    image = torch.rand(1, 3, 30, 29)
    by_hand = torch.zeros(1, 3, 32, 32)
    for i, j in np.ndindex(32, 32):
        by_hand[..., i, j] = image[..., i if i < 30 else 58 - i, j if j < 29 else 56 - j]
    with torch.no_grad():
        assert torch.equal(padded_scores(net, image), net(by_hand)[..., :30, :29])


def test_scores_are_means_over_scales_and_mirror_images():
    net, pixels = small_net(), torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.mean, net.std))
    image = ((pixels.float() / 255 - mean) / std)[None]
    expected = torch.zeros(1, 4, 40, 48)
    with torch.no_grad():
        for scale in (0.5, 1.0):
            rows = F.interpolate(image, (int(40 * scale), int(48 * scale)), mode="bilinear")
            for flip in (False, True):
                scores = padded_scores(net, rows.flip(-1) if flip else rows)
                scores = scores.flip(-1) if flip else scores
                expected += F.interpolate(scores, (40, 48), mode="bilinear") / 4
    assert torch.allclose(multi_scale_scores(net, pixels, (0.5, 1.0), flip=True), expected[0], atol=1e-5)
    once = multi_scale_scores(net, pixels, (1.0,), flip=False)
    assert torch.equal(once, padded_scores(net, image)[0])
    mirrored = multi_scale_scores(net, pixels.flip(-1), (1.0, 0.75), flip=True)
    assert torch.allclose(mirrored, multi_scale_scores(net, pixels, (1.0, 0.75), flip=True).flip(-1), atol=1e-5)


def test_predictions_are_palette_images_and_go_on(done, given, tmp_path):
    net, _ = load_net(done[0] / "cct.safetensors", CCT_NET)
    config, told = SemiPredictConfig(scales=(1.0,), workers=0, device="cpu", crf="deeplab"), record_log()
    write_predictions(config, net, given.val, tmp_path / "val")
    first = given.val.samples[0]
    image = Image.open(tmp_path / "val" / f"{first.id}.png")
    assert (image.mode, image.size) == ("P", Image.open(first.image).size)
    assert image.getpalette()[:63] == palette().ravel().tolist()[:63]
    (tmp_path / "val" / f"{first.id}.png").write_bytes(b"half")
    write_predictions(config, net, given.val, tmp_path / "val")
    assert "predictions of 2 of 2 images; 1 are in" in told[-2]
    read_mask(tmp_path / "val" / f"{first.id}.png", 3)
    with pytest.raises(AdvCAMError, match="flip"):
        write_predictions(replace(config, flip=False), net, given.val, tmp_path / "val")


# --- splits and odd inputs --------------------------------------------------------------------------------------------


def voc(root: Path) -> SemiDataConfig:
    """A VOC of four training images, two more in train_aug, and two to validate on."""
    from tiny_voc import write_voc

    names = {split: {f"{split}_{n}": ["cat", "dog"][: 1 + n % 2] for n in range(count)}
             for split, count in (("train", 4), ("val", 2))}  # fmt: skip
    names["train_aug"] = names["train"] | {"more_0": ["cat"], "more_1": ["dog"]}
    write_voc(root / "VOC2012", names, size=(40, 48))
    return SemiDataConfig(root=str(root), pseudo=str(root / "VOC2012" / "SegmentationClass"))


def test_splits_are_train_and_the_rest_of_train_aug(tmp_path):
    config = voc(tmp_path)
    data = read_semi(config)
    assert [s.id for s in data.labelled.samples] == [f"train_{n}" for n in range(4)]
    assert [s.id for s in data.unlabelled.samples] == ["more_0", "more_1"]
    data = read_semi(replace(config, labelled_count=1, unlabelled="train"))
    assert [s.id for s in data.labelled.samples] == ["train_0"]
    assert [s.id for s in data.unlabelled.samples] == ["train_1", "train_2", "train_3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled": "train"}, "no unlabelled images: all 4 of voc train that are there are labelled"),
        ({"unlabelled": "val"}, "2 images of voc val are in val too, e.g. val_0"),
        ({"labelled": "val", "val": "val"}, "2 images of voc val are in val too"),
        ({"labelled_count": 5}, "voc train has 4 images, fewer than 5"),
        ({"labelled": "trian"}, "no list of the split 'trian'"),
        ({"pseudo": "."}, "pseudo masks of 2 of 2 unlabelled images are missing in ., e.g. more_0.png"),
    ],
)
def test_splits_that_cannot_be_are_one_line(changes, message, tmp_path):
    config = voc(tmp_path)
    with pytest.raises(AdvCAMError, match=message) as raised:
        read_semi(replace(config, **changes))
    assert "\n" not in str(raised.value)


def spoiled(given: SemiData, folder: Path, **files: np.ndarray | bytes) -> SemiData:
    for sample in given.unlabelled.samples:
        write_mask(folder / f"{sample.id}.png", given.pseudo(sample))
    for id, content in files.items():
        if isinstance(content, bytes):
            (folder / f"{id[1:]}.png").write_bytes(content)
        else:
            Image.fromarray(content).save(folder / f"{id[1:]}.png")
    return replace(given, pseudo=PseudoMasks(folder, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((40, 40), np.uint8), "is of 40x40 pixels and its photograph of"),
        (b"\x89PNG\r\n\x1a\nhalf", "truncated or damaged|not a mask that can be read"),
        (None, "holds the label 7, but there are 3 classes"),
    ],
)
def test_bad_pseudo_masks_stop_a_training_before_it_begins(content, message, given, tmp_path):
    sample = given.unlabelled.samples[1]
    if content is None:
        content = np.full(Image.open(sample.image).size[::-1], 7, np.uint8)
    data = spoiled(given, tmp_path / "masks", **{f"_{sample.id}": content})
    with pytest.raises(AdvCAMError, match=message) as raised:
        train_semi(SETTINGS, small_net(), data, tmp_path / "out")
    assert sample.id in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_masks_without_a_label_and_crops_larger_than_the_image_are_learned_from(given, tmp_path):
    void = {f"_{s.id}": np.full(Image.open(s.image).size[::-1], 255, np.uint8) for s in given.unlabelled.samples}
    data = spoiled(given, tmp_path / "masks", **void)
    train_semi(replace(SETTINGS, epochs=1, crop=128), small_net(), data, tmp_path / "out")
    records = read_log(tmp_path / "out" / "log.jsonl")
    assert all(r["weak"] == 0 and np.isfinite(r["loss"]) for r in records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 36}, "training.crop must be a multiple of the net's stride 8, got 36"),
        ({"batch": 6}, "there are 5 images, fewer than one batch of 6"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes, message, given, tmp_path):
    with pytest.raises(AdvCAMError, match=message):
        train_semi(replace(SETTINGS, **changes), small_net(), given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SemiSettings(batch=1), "training.batch must be at least 2, got 1"),
        (lambda: SemiSettings(lr=float("nan")), "training.lr must be a number"),
        (lambda: SemiSettings(confidence=1.0), "training.confidence must lie in 0 to 1"),
        (lambda: SemiSettings(long_side=(9, 3)), "the smaller length comes first"),
        (lambda: SemiPredictConfig(scales=()), "predict.scales must lie between 0 and 16, and be at least one"),
        (lambda: SemiPredictConfig(scales=(1.0, math.inf)), "predict.scales must lie between 0 and 16"),
        (lambda: SemiPredictConfig(scales=(math.nan,)), "predict.scales must lie between 0 and 16"),
        (lambda: SemiPredictConfig(scales=(17.0,)), "predict.scales must lie between 0 and 16"),
        (lambda: SemiPredictConfig(crf="deepalb"), "deeplab"),
        (lambda: SemiDataConfig(".", labelled_count=0), "labelled_count must be at least 1"),
    ],
)
def test_bad_settings_are_one_line(make, message):
    with pytest.raises(AdvCAMError, match=message):
        make()


# --- the whole --------------------------------------------------------------------------------------------------------


def as_yaml(config: SemiConfig, path: Path) -> Path:
    path.write_text(json.dumps(dataclasses.asdict(config)))
    return path


def from_yaml(path: Path) -> SemiConfig:
    parser = Parser(prog="advcam semi")
    parser.add_class_arguments(SemiConfig, None)
    built = parser.instantiate(parser.parse_path(str(path)))
    return SemiConfig(**{key: built[key] for key in SemiConfig.__dataclass_fields__})


def test_a_run_from_a_configuration(tmp_path):
    net = SemiNetConfig(backbone="timm/test_resnet", random_weights=True, channels=8, auxiliary={"dropout": 1})
    config = SemiConfig(
        str(tmp_path / "run"), voc(tmp_path), net, replace(SETTINGS, epochs=1),
        SemiPredictConfig(scales=(1.0, 0.5), crf="deeplab", workers=0, device="cpu"),
    )  # fmt: skip
    read = from_yaml(as_yaml(config, tmp_path / "semi.yaml"))
    assert read == config
    with pytest.raises(AdvCAMError, match=r"cct.safetensors: train it first"):
        semi.predict(read)
    told = record_log()
    semi.train(read)
    assert told[0].endswith("4 labelled images (train), 2 unlabelled ones (train_aug), with pseudo masks of "
                            f"{config.data.pseudo}")  # fmt: skip
    folder = semi.predict(read)
    assert folder == tmp_path / "run" / "predictions_crf" / "val"
    evaluation = semi.evaluate(read)
    assert len(evaluation.scope.ids) == 2
    assert json.loads((folder / "evaluation.json").read_text())["scores"]["mean_iou"] == evaluation.scores().mean_iou
    assert from_yaml(tmp_path / "run" / "config.json") == config


@pytest.mark.slow
def test_real_photographs_are_learned(data_root, tmp_path):
    """Twenty labelled and fifty unlabelled photographs, a MobileNetV2 of ImageNet, true masks as pseudo masks."""
    root = data_root / "voc"
    masks = read_voc(root, "train").root / "SegmentationClass"
    data = read_semi(SemiDataConfig(str(root), labelled_count=20, unlabelled="train", pseudo=str(masks)))
    assert (len(data.labelled.samples), len(data.unlabelled.samples)) == (20, 50)
    net = cct_net(
        Backbone(
            "timm/mobilenetv2_100",
            model_args={"num_classes": 1001, "pad_type": "same"},
            mean=(0.5,),
            std=(0.5,),
            checkpoint=data_root / "weights" / "mobilenetv2_100_imagenet.safetensors",
        ),
        21,
        norms="frozen",
        channels=64,
        auxiliary=dict.fromkeys(("vat", "dropout", "context_mask", "object_mask", "feature_drop"), 1),
    )
    settings = SemiSettings(
        epochs=3, batch=4, crop=128, long_side=(128, 256), validate_every=3, workers=0, device="cpu"
    )
    train_semi(settings, net, data, tmp_path)
    records = read_log(tmp_path / "log.jsonl")
    assert len(records) == 36
    for name, share in (("supervised", 0.8), ("weak", 0.97)):  # the weak term is still ramping up
        assert np.mean([r[name] for r in records[-8:]]) < share * np.mean([r[name] for r in records[:4]])
