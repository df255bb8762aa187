"""Semi-supervised runs: splits, pairs, predictions, and all stages."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.cli.semi import OPTIONS
from advcam_attr.data.masks import palette, read_mask
from advcam_attr.data.transforms import PairedAugmentation
from advcam_attr.data.voc import CLASSES
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.net_file import save_net
from advcam_attr.pipelines.semi.config import SemiConfig, SemiDataConfig, SemiNetConfig, SemiPredictConfig
from advcam_attr.pipelines.semi.data import Pairs, read_semi
from advcam_attr.pipelines.semi.predict import multi_scale_scores, padded_scores, write_predictions
from advcam_attr.pipelines.semi.run import SemiRun
from advcam_attr.types import AdvCAMError
from logs import record_log
from semi_run import RUNTIME, SETTINGS, semi_scenes, small_net
from tiny_voc import write_voc


def voc(root: Path) -> SemiDataConfig:
    """A VOC of four training images, two more in train_aug, and two to validate on."""
    names = {split: {f"{split}_{n}": ["cat", "dog"][: 1 + n % 2] for n in range(count)}
             for split, count in (("train", 4), ("val", 2))}  # fmt: skip
    names["train_aug"] = names["train"] | {"more_0": ["cat"], "more_1": ["dog"]}
    write_voc(root / "VOC2012", names, size=(40, 48))
    return SemiDataConfig(root=str(root), pseudo=str(root / "VOC2012" / "SegmentationClass"))


def test_default_splits(tmp_path):
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
def test_invalid_splits_are_one_line(changes, message, tmp_path):
    config = voc(tmp_path)
    with pytest.raises(AdvCAMError, match=message) as raised:
        read_semi(replace(config, **changes))
    assert "\n" not in str(raised.value)


def test_augmentation_moves_labels_with_their_pixels():
    """Labels that can be read off the colours can still be read off them after resizing, mirroring and cutting."""
    height, width = 40, 64
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, 32:] = 1
    labels[20:, :32] = 2
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)
    original = Image.fromarray(colours[labels.numpy()])
    augment = PairedAugmentation(48, (30, 120), (0.0,) * 3, (1.0,) * 3)
    mirrored, void = 0, 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, moved = augment(original, labels)
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


def test_labelled_images_are_cycled(tmp_path):
    given = semi_scenes(tmp_path)
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


def test_images_are_padded_by_reflection():
    net = small_net()
    for size in ((37, 50), (8, 8), (3, 5), (33, 1)):
        assert padded_scores(net, torch.rand(1, 3, *size)).shape == (1, 4, *size)
    image = torch.rand(1, 3, 30, 29)
    by_hand = torch.zeros(1, 3, 32, 32)
    for i, j in np.ndindex(32, 32):
        by_hand[..., i, j] = image[..., i if i < 30 else 58 - i, j if j < 29 else 56 - j]
    with torch.no_grad():
        assert torch.equal(padded_scores(net, image), net(by_hand)[..., :30, :29])


def test_scores_are_means_over_scales_and_flips():
    net, pixels = small_net(), torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.mean, net.std))
    image = ((pixels.float() / 255 - mean) / std)[None]
    expected = torch.zeros(1, 4, 40, 48)
    with torch.no_grad():
        for scale in (0.5, 1.0):
            resized = F.interpolate(image, (int(40 * scale), int(48 * scale)), mode="bilinear")
            for flip in (False, True):
                scores = padded_scores(net, resized.flip(-1) if flip else resized)
                scores = scores.flip(-1) if flip else scores
                expected += F.interpolate(scores, (40, 48), mode="bilinear") / 4
    assert torch.allclose(multi_scale_scores(net, pixels, (0.5, 1.0), flip=True), expected[0], atol=1e-5)
    once = multi_scale_scores(net, pixels, (1.0,), flip=False)
    assert torch.equal(once, padded_scores(net, image)[0])
    mirrored = multi_scale_scores(net, pixels.flip(-1), (1.0, 0.75), flip=True)
    assert torch.allclose(mirrored, multi_scale_scores(net, pixels, (1.0, 0.75), flip=True).flip(-1), atol=1e-5)


def test_predictions_are_palette_images_and_resume(tmp_path):
    net, given = small_net(), semi_scenes(tmp_path)
    config, logged = SemiPredictConfig(scales=(1.0,), crf="deeplab"), record_log()
    write_predictions(config, net, given.val, tmp_path / "val", RUNTIME)
    first = given.val.samples[0]
    image = Image.open(tmp_path / "val" / f"{first.id}.png")
    assert (image.mode, image.size) == ("P", Image.open(first.image).size)
    assert image.getpalette()[:63] == palette().ravel().tolist()[:63]
    (tmp_path / "val" / f"{first.id}.png").write_bytes(b"half")
    write_predictions(config, net, given.val, tmp_path / "val", RUNTIME)
    assert "2 of 2 images; 1 are in" in logged[-2]
    read_mask(tmp_path / "val" / f"{first.id}.png", 3)
    with pytest.raises(AdvCAMError, match="flip"):
        write_predictions(replace(config, flip=False), net, given.val, tmp_path / "val", RUNTIME)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"training": {"lr": 0.01}}, "training.optimizer.head_lr"),
        ({"training": {"encoder_lr": 0.01}}, "training.optimizer.lr"),
        ({"net": {"checkpoint": "a.pth"}}, "net.backbone.checkpoint"),
        ({"net": {"backbone": "timm/resnet18"}}, "net.backbone.name"),
        ({"predict": {"workers": 2}}, "runtime.workers"),
    ],
)
def test_old_keys_name_the_new_ones(old, new, tmp_path):
    (tmp_path / "old.yaml").write_text(json.dumps({"run": "run", "data": {"root": "voc"}} | old))
    with pytest.raises(AdvCAMError, match=f"is now {new}"):
        OPTIONS.read(tmp_path / "old.yaml")


def test_a_run_from_a_configuration(tmp_path):
    backbone = Backbone("timm/test_resnet", random_weights=True, stride=8)
    config = SemiConfig(
        str(tmp_path / "run"),
        voc(tmp_path),
        SemiNetConfig(backbone, channels=8, auxiliary={"dropout": 1}),
        replace(SETTINGS, epochs=1),
        SemiPredictConfig(scales=(1.0, 0.5), crf="deeplab"),
        RUNTIME,
    )
    (tmp_path / "semi.yaml").write_text(json.dumps(dataclasses.asdict(config)))
    assert OPTIONS.read(tmp_path / "semi.yaml") == config
    run = SemiRun(config)
    with pytest.raises(AdvCAMError, match=r"cct.safetensors: train it first"):
        run.predict()
    assert run.plan().count("0 of 2 images") == 1
    logged = record_log()
    run.train()
    assert "4 labelled images (train), 2 unlabelled ones (train_aug)" in logged[0]
    evaluation = run.evaluate()
    folder = tmp_path / "run" / "predictions_crf" / "val"
    assert len(evaluation.scope.ids) == len(list(folder.glob("*.png"))) == 2
    assert json.loads((folder / "evaluation.json").read_text())["scores"]["mean_iou"] == evaluation.scores().mean_iou
    assert OPTIONS.read(tmp_path / "run" / "config.json") == config
    assert f"| {100 * evaluation.scores().mean_iou:.1f} | – |" in (tmp_path / "run" / "tables.md").read_text()
    given = replace(config.net, trained=str(tmp_path / "run" / "cct" / "cct.safetensors"))
    other = SemiRun(replace(config, run=str(tmp_path / "other"), net=given))
    with pytest.raises(AdvCAMError, match=r"cct.safetensors is trained already: .* advcam semi evaluate"):
        other.train()
    other.run()
    assert "training" not in other.plan()
    found = (tmp_path / "other" / "tables.md").read_text()
    assert f"| a given net, cct.safetensors | here, 2 images | {100 * evaluation.scores().mean_iou:.1f} | – |" in found


def test_only_val_and_test_have_columns_in_the_table(tmp_path):
    """Scores of training images are not those of Table VI."""
    backbone = Backbone("timm/test_resnet", random_weights=True, stride=8)
    net = SemiNetConfig(backbone, channels=8, auxiliary={})
    save_net(tmp_path / "net.safetensors", net.make(21, 0), CLASSES)
    config = SemiConfig(
        str(tmp_path / "run"),
        voc(tmp_path),
        replace(net, trained=str(tmp_path / "net.safetensors")),
        predict=SemiPredictConfig("train", scales=(1.0,)),
        runtime=RUNTIME,
    )
    evaluation = SemiRun(config).evaluate()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["predictions"]["of"] == "voc train"
    assert report["predictions"]["mean_iou"] == evaluation.scores().mean_iou
    assert all(row[1] == "paper" for table in report["tables"] for row in table["rows"])
