"""Segmentation nets: training on pseudo masks, predictions, resuming, sharing, and invalid input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.data.images import normalised, read_rgb, to_bytes
from advcam_attr.data.masks import read_mask, write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.deeplab import DEEPLAB, MultiScale
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.wsss import segment as segmentation
from advcam_attr.pipelines.wsss.pseudo_masks import check_masks
from advcam_attr.pipelines.wsss.segment import SETTINGS as NAMED
from advcam_attr.pipelines.wsss.segment import make_net, predict, segment, segmentation_logits, train_segmentation
from advcam_attr.refine.crf import DenseCRF, unary_from_logits
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training import train as trainings
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError
from logs import record_log
from places import HELPERS
from refine_run import RUNTIME
from run_tools import LEFTOVER, killed_at_step, run_script, write_times
from segmentation_run import CONFIG, masked_scenes

Given = tuple[SegmentationData, SegmentationData, Path]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Given:
    return masked_scenes(tmp_path_factory.mktemp("scenes"), 9)


@pytest.fixture(scope="module")
def done(tmp_path_factory, given) -> tuple[Path, list[str]]:
    out, logged = tmp_path_factory.mktemp("net"), record_log()
    data, val, masks = given
    assert segment(CONFIG, data, masks, [val], out, RUNTIME) == {"val": out / "predictions" / "val"}
    return out, logged


def net_of(out: Path) -> bytes:
    return (out / "deeplab" / "deeplab.safetensors").read_bytes()


def train(config, given: Given, out: Path, masks: Path | None = None, runtime: Runtime = RUNTIME):
    return train_segmentation(config, make_net(config, given[0].classes), given[0], masks or given[2], out, runtime)


def test_written_files_and_learning_rates(done, given):
    out, logged = done
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "deeplab/deeplab.safetensors", "deeplab/checkpoint.pt", "deeplab/log.jsonl", "deeplab/training.json",
        "predictions/val.json", *(f"predictions/val/00{n}.png" for n in range(3)),
    }  # fmt: skip
    net, classes = load_net(out / "deeplab" / "deeplab.safetensors", DEEPLAB)
    assert classes == ("red", "green", "blue")
    assert net.spec.num_labels == 4
    with Image.open(out / "predictions" / "val" / "000.png") as mask:
        assert (mask.mode, mask.size) == ("P", (56, 40))
    assert "step 6 of 6: loss" in "\n".join(logged)
    rates = [record["lr"] for record in read_log(out / "deeplab" / "log.jsonl")]
    for step, (backbone, weights, biases) in enumerate(rates):
        assert backbone == pytest.approx(0.01 * (1 - step // 2 * 2 / 6) ** 0.9)
        assert (weights, biases) == pytest.approx((10 * backbone, 20 * backbone))


def test_groups_hold_each_trained_weight_once():
    net = make_net(CONFIG, ("red", "green", "blue"))
    backbone, weights, biases = segmentation._groups(net, CONFIG.optimizer)
    assert (backbone.weight_decay, weights.weight_decay, biases.weight_decay) == (5e-4, 5e-4, 0)
    grouped = [id(p) for g in (backbone, weights, biases) for p in g.parameters if p.requires_grad]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert {tuple(p.shape) for p in biases.parameters} == {(4,)}
    norms = {id(p) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    assert norms
    assert not norms & set(grouped)


def test_discs_are_learned(given, tmp_path):
    config = replace(
        CONFIG, steps=30, optimizer=replace(CONFIG.optimizer, lr=0.005), scales=(1.0,), checkpoint_every=30
    )
    data, _, masks = given
    folders = segment(config, data, masks, [replace(data, split="all")], tmp_path, RUNTIME)
    losses = [record["loss"] for record in read_log(tmp_path / "deeplab" / "log.jsonl")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert evaluate_masks(folders["all"], data).scores().mean_iou > 0.6  # 0.2 where all is background


def test_killed_while_writing_a_checkpoint(done, given, tmp_path, monkeypatch):
    """The half-written file never takes the place of the one before, which the training goes on from."""
    written = []

    def half(content, path):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(content, path)

    save = torch.save
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, given, tmp_path)
    monkeypatch.undo()
    shutil.copy(tmp_path / "deeplab" / "checkpoint.pt", tmp_path / "deeplab" / f"{LEFTOVER}.pt")  # kill -9 leaves it
    logged = record_log()
    train(CONFIG, given, tmp_path)
    assert any("resuming at step 2" in line for line in logged)
    assert net_of(tmp_path) == net_of(done[0])
    assert not list((tmp_path / "deeplab").glob(".*"))


@pytest.mark.slow
def test_averaged_weights_resume_too(given, tmp_path):
    config = replace(CONFIG, ema_decay=0.5)
    train(config, given, tmp_path / "whole")
    with killed_at_step(3):
        train(config, given, tmp_path / "killed")
    train(config, given, tmp_path / "killed")
    assert net_of(tmp_path / "killed") == net_of(tmp_path / "whole")


def test_averaged_weights_are_the_running_mean(given, tmp_path, monkeypatch):
    """After the first step the mean is the weights; then half of it and half of the new weights, step by step."""
    seen = []
    fit = trainings.fit

    def watched(training, *args, **options):
        for record in fit(training, *args, **options):
            seen.append({name: p.detach().clone() for name, p in training.model.named_parameters()})
            yield record

    monkeypatch.setattr(trainings, "fit", watched)
    net = train(replace(CONFIG, ema_decay=0.5), given, tmp_path)
    mean = seen[0]
    for weights in seen[1:]:
        mean = {name: 0.5 * mean[name] + 0.5 * value for name, value in weights.items()}
    for name, p in MultiScale(net).named_parameters():
        torch.testing.assert_close(p, mean[name])
    assert not torch.equal(net.aspp[0].weight, seen[-1]["net.aspp.0.weight"])


def test_parts_of_a_batch_make_the_same_step(given, tmp_path):
    """To rounding, with a loss that is a mean over images."""
    nets = [
        train(replace(CONFIG, steps=2, grad_accum=parts), given, tmp_path / str(parts)).state_dict() for parts in (1, 2)
    ]
    for name, value in nets[0].items():
        torch.testing.assert_close(nets[1][name], value, rtol=1e-3, atol=1e-5)


def test_other_settings_are_rejected_or_overwritten(done, given, masks, tmp_path):
    shutil.copytree(done[0], tmp_path / "net")
    with pytest.raises(AdvCAMError, match="loss was balanced, is cross_entropy"):
        train(replace(CONFIG, loss="cross_entropy"), given, tmp_path / "net")
    write_mask(masks / "000.png", torch.zeros(40, 56, dtype=torch.uint8))
    with pytest.raises(AdvCAMError, match="masks was"):
        train(CONFIG, given, tmp_path / "net", masks=masks)
    train(CONFIG, given, tmp_path / "net", masks=masks, runtime=replace(RUNTIME, overwrite=True))
    assert net_of(tmp_path / "net") != net_of(done[0])


def test_second_run_changes_nothing(done, given):
    out, _ = done
    before, logged = write_times(out), record_log()
    segment(CONFIG, given[0], given[2], [given[1]], out, RUNTIME)
    assert write_times(out) == before
    assert any("nothing to train" in line for line in logged)


def test_logits_equal_their_slow_rederivation(done, given):
    net = MultiScale(load_net(done[0] / "deeplab" / "deeplab.safetensors", DEEPLAB)[0]).eval()
    pixels = to_bytes(read_rgb(given[0].samples[0].image))
    total = torch.zeros(4, 40, 56)
    for scale in (0.75, 1.5):
        for mirrored in (False, True):
            image = normalised(pixels, net.net.mean, net.net.std)[None]
            image = image.flip(-1) if mirrored else image
            image = F.interpolate(image, (int(40 * scale), int(56 * scale)), mode="bilinear")
            with torch.no_grad():
                logits = F.interpolate(net(image), (40, 56), mode="bilinear")[0]
            total += logits.flip(-1) if mirrored else logits
    torch.testing.assert_close(segmentation_logits(net, pixels, (0.75, 1.5), flip=True), total / 4)
    single = segmentation_logits(net, pixels, flip=False)
    assert torch.equal(read_mask(done[0] / "predictions" / "val" / "000.png", 3), single.argmax(0).to(torch.uint8))


def test_predictions_after_the_crf(done, given, tmp_path):
    net, _ = load_net(done[0] / "deeplab" / "deeplab.safetensors", DEEPLAB)
    one = replace(given[1], samples=given[1].samples[:1])
    folder = predict(CONFIG, net, one, tmp_path, RUNTIME, crf="deeplab")
    assert folder == tmp_path / "predictions" / "val_crf"
    pixels = to_bytes(read_rgb(one.samples[0].image))
    logits = segmentation_logits(MultiScale(net).eval(), pixels, flip=False)
    marginals = DenseCRF(pixels[None], "deeplab")(unary_from_logits(logits[None]))
    assert torch.equal(read_mask(folder / "000.png", 3), marginals[0].argmax(0).to(torch.uint8))
    with pytest.raises(AdvCAMError, match="flip was False, is True"):
        predict(replace(CONFIG, test_flip=True), net, one, tmp_path, RUNTIME, crf="deeplab")


def test_a_trained_net_is_not_trained(done, given, tmp_path):
    settings = replace(CONFIG, trained=done[0] / "deeplab" / "deeplab.safetensors")
    folders = segment(settings, given[0], tmp_path / "no masks", [given[1]], tmp_path, RUNTIME)
    for name in ("000.png", "001.png", "002.png"):
        assert (folders["val"] / name).read_bytes() == (done[0] / "predictions/val" / name).read_bytes()
    with pytest.raises(AdvCAMError, match="has 3 classes; the data has 2"):
        make_net(settings, ("red", "green"))


@pytest.fixture
def masks(given, tmp_path) -> Path:
    return Path(shutil.copytree(given[2], tmp_path / "masks"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "masks of 1 of 9 images are missing in .*001"),
        (torch.zeros(40, 56), "001.png has 56x40 pixels and its image 40x56"),
        (torch.full((56, 40), 4), "001.png holds the label 4, but there are 3 classes"),
        (b"damaged", "cannot read mask .*001.png"),
    ],
)
def test_masks_that_cannot_be_used(given, masks, tmp_path, labels, message):
    file = masks / "001.png"
    if labels is None:
        file.unlink()
    elif isinstance(labels, bytes):
        file.write_bytes(file.read_bytes()[:90])
    else:
        write_mask(file, labels.to(torch.uint8))
    with pytest.raises(AdvCAMError, match=message) as error:
        train(CONFIG, given, tmp_path / "out", masks=masks)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_void_masks_are_left_out(given, masks, tmp_path):
    write_mask(masks / "001.png", torch.full((56, 40), 255, dtype=torch.uint8))
    logged = record_log()
    train(replace(CONFIG, steps=2), given, tmp_path / "out", masks)
    assert "1 of 9 masks are void" in logged[0]
    assert "on 8 images" in logged[1]
    for sample in given[0].samples:
        write_mask(masks / f"{sample.id}.png", torch.full_like(given[0].mask(sample), 255))
    with pytest.raises(AdvCAMError, match=r"all 9 masks in .* are void"):
        check_masks(masks, given[0])


def test_a_crop_larger_than_the_images_is_padded(given, tmp_path):
    train(replace(CONFIG, steps=1, crop=97, scales=(0.5,)), given, tmp_path)
    assert len(read_log(tmp_path / "deeplab" / "log.jsonl")) == 1


def test_too_few_images_and_no_images(given, tmp_path):
    for changes, message in (({"batch": 10}, "fewer than one batch of 10"), ({"grad_accum": 3}, "in 3 parts each")):
        with pytest.raises(AdvCAMError, match=message):
            train(replace(CONFIG, **changes), given, tmp_path)
    with pytest.raises(AdvCAMError, match="no images in scenes train"):
        check_masks(given[2], replace(given[0], samples=()))
    for classes, data, message in (
        (given[1].classes, replace(given[1], samples=()), "no images in scenes val"),
        (("red", "green"), given[1], "the net has 2 classes; scenes has 3"),
    ):
        with pytest.raises(AdvCAMError, match=message):
            predict(CONFIG, make_net(CONFIG, classes), data, tmp_path)


def test_the_papers_numbers():
    voc, coco = NAMED["voc"], NAMED["coco"]
    assert (voc.steps, voc.batch, voc.crop, voc.loss) == (30000, 10, 321, "balanced")
    assert voc.scales == (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)
    assert voc.optimizer == Optimizer(2.5e-4, weight_decay=5e-4, momentum=0.9, power=0.9, lr_update_every=10)
    assert (coco.crop, coco.steps, coco.optimizer.lr) == (481, 100000, 2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must lie between 0 and 16"),
        ({"test_scales": (0.0,)}, "test_scales must lie between"),
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"crf": "deplab"}, "unknown CRF recipe 'deplab'; did you mean 'deeplab'"),
        ({"class_offset": 1}, "no effect without class_map"),
        ({"class_map": "map.json", "trained": "net.safetensors"}, "class_map starts a training"),
    ],
)
def test_invalid_settings(options, message):
    with pytest.raises(AdvCAMError, match=message):
        replace(CONFIG, **options)


def test_mapped_classes_that_the_backbone_lacks(tmp_path):
    file = tmp_path / "known.json"
    file.write_text('{"red": [1], "green": [2, 3, 4, 5, 6]}')
    backbone = replace(CONFIG.backbone, model_args={"num_classes": 3})
    config = replace(CONFIG, backbone=backbone, class_map=file, class_offset=1)
    with pytest.raises(AdvCAMError, match=r"there is no 3, 4, 5 and 2 more; .*known\.json.*class_offset \(1\)"):
        make_net(config, ("red", "green"))


@pytest.mark.slow
def test_two_ranks_train_and_label_as_one(done, tmp_path):
    """Ranks share batches and images; gradients are averaged, so weights are those of one process to rounding."""
    run_script(HELPERS / "segmentation_run.py", tmp_path / "scenes", 9, tmp_path / "out", ranks=2)
    two = load_net(tmp_path / "out" / "deeplab" / "deeplab.safetensors", DEEPLAB)[0].state_dict()
    for name, value in load_net(done[0] / "deeplab" / "deeplab.safetensors", DEEPLAB)[0].state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "out" / "predictions" / "val").glob("*.png"))) == 3
