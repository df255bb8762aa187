"""IRN: confident labels, training of its net, masks by its walk, resuming, and invalid input."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.data.masks import read_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.voc import read_voc
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.irnet import IRNET, irnet
from advcam_attr.networks.net_file import load_net, save_net
from advcam_attr.pipelines.wsss.affinity import make_labels, refine_by_affinity, train_affinity, write_masks
from advcam_attr.pipelines.wsss.irn import IRN, SETTINGS, ConfidentItems, IRNConfig, edges
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.sharding import Shard
from advcam_attr.training.log import read_log
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError, ClassMaps, Sample
from logs import record_log
from refine_run import IRN_CONFIG, RUNTIME, scenes
from run_tools import Killed, contents

METHOD = IRN(IRN_CONFIG, RUNTIME)


def method(**changes: object) -> IRN:
    return IRN(replace(IRN_CONFIG, **changes), RUNTIME)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[SegmentationData, MapStore]:
    return scenes(tmp_path_factory.mktemp("scenes"), 9)


@pytest.fixture(scope="module")
def done(tmp_path_factory, given) -> Path:
    out = tmp_path_factory.mktemp("irn")
    refine_by_affinity(METHOD, given[1], given[0], out)
    return out


@pytest.fixture
def confident(done, tmp_path) -> Path:
    """A folder with confident labels."""
    shutil.copytree(done / "confident", tmp_path / "confident")
    shutil.copy(done / "confident.json", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(done) -> Path:
    return done / "irnet" / "irnet.safetensors"


@pytest.mark.parametrize(
    "where",
    ["checkpoint", *(pytest.param(w, marks=pytest.mark.slow) for w in ("confident", "end of training", "masks"))],
)
def test_a_stopped_run_ends_with_the_same_bytes(done, given, tmp_path, monkeypatch, where):
    from advcam_attr.data import masks
    from advcam_attr.training import train as training

    data, seeds = given

    def stopping(real, after: int):
        calls = iter(range(10**6))

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if next(calls) == after:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(training, "save_checkpoint", stopping(training.save_checkpoint, 0))
        elif where == "end of training":
            patch.setattr(IRN, "finish", stopping(IRN.finish, 0))
        else:
            patch.setattr(masks, "write_png", stopping(masks.write_png, 4 if where == "confident" else 13))
        with pytest.raises(Killed):
            refine_by_affinity(METHOD, seeds, data, tmp_path)
    logged = record_log()
    refine_by_affinity(METHOD, seeds, data, tmp_path)
    assert any("resuming at step" in line for line in logged) == (where in ("checkpoint", "end of training"))
    for folder in ("confident", "irnet", "masks"):
        assert contents(tmp_path / folder) == contents(done / folder)


def test_shares_together_are_the_whole(done, given, trained, tmp_path):
    data, seeds = given
    net = load_net(trained, IRNET)[0]
    for rank in (1, 0):
        make_labels(METHOD, seeds, data, tmp_path, shard=Shard(rank, 2))
        write_masks(METHOD, net, seeds, data, tmp_path, shard=Shard(rank, 2))
    for folder in ("confident", "masks"):
        assert contents(tmp_path / folder) == contents(done / folder)


def test_a_trained_net_needs_no_confident_labels(done, given, trained, tmp_path):
    refine_by_affinity(
        IRN(IRNConfig(trained=trained, pad_to=64), replace(RUNTIME, workers=2)), given[1], given[0], tmp_path
    )
    assert {path.name for path in tmp_path.iterdir()} == {"masks", "masks.json"}
    assert contents(tmp_path / "masks") == contents(done / "masks")


def test_other_settings_are_rejected_or_overwritten(given, confident):
    data, seeds = given
    tmp_path = confident
    with pytest.raises(AdvCAMError, match=r"other settings \(foreground was 0\.35, is 0\.3; background"):
        make_labels(method(foreground=0.3, background=0.05), seeds, data, tmp_path)
    one = contents(tmp_path / "confident")
    make_labels(IRN(replace(IRN_CONFIG, foreground=0.6), replace(RUNTIME, overwrite=True)), seeds, data, tmp_path)
    assert contents(tmp_path / "confident").keys() == one.keys()
    assert contents(tmp_path / "confident") != one


def test_training_needs_all_labels_and_a_whole_batch(given, confident):
    data, _ = given
    net = METHOD.make_net()
    with pytest.raises(AdvCAMError, match="9 images, fewer than one batch of 32"):
        train_affinity(method(batch=32), net, data, confident)
    for id in ("001", "007"):
        (confident / "confident" / f"{id}.png").unlink()
    with pytest.raises(AdvCAMError, match=r"confident labels of 2 of 9 images are missing .* e\.g\. of 001"):
        train_affinity(METHOD, net, data, confident)
    (confident / "confident.json").unlink()
    with pytest.raises(AdvCAMError, match=r"confident labels of 9 of 9 images are missing"):
        train_affinity(METHOD, net, data, confident)


def test_training_changes_the_branches_alone(given, confident):
    data, _ = given
    net = METHOD.make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    trained = train_affinity(method(epochs=6, scales=(1.0, 1.0)), net, data, confident)
    losses = [record["loss"] for record in read_log(confident / "irnet" / "log.jsonl")]
    assert sum(losses[-4:]) < 0.93 * sum(losses[:4])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not net.training
    after = trained.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {*(f"fc_edge{n}" for n in range(1, 7)), *(f"fc_dp{n}" for n in range(1, 8)), "mean_shift"}


def test_the_mean_displacement_is_of_the_images_corners(trained, given):
    data, _ = given
    net = load_net(trained, IRNET)[0]
    mean = net.mean_shift.running_mean.clone()
    net.mean_shift.running_mean.zero_()
    corners = []
    for sample in data.samples[:8]:
        image = torch.from_numpy(np.array(Image.open(sample.image))).permute(2, 0, 1) / 255
        image = (image - torch.tensor(net.mean)[:, None, None]) / torch.tensor(net.std)[:, None, None]
        corners.append(F.pad(image, (0, 64 - image.shape[2], 0, 64 - image.shape[1])))
    with torch.no_grad():
        expected = net(torch.stack(corners))[:, 1:].mean((0, 2, 3))
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def striped(tmp_path) -> tuple[SegmentationData, Path]:
    """A picture whose grey is 12 times its label, which are stripes."""
    labels = np.zeros((90, 70), np.uint8)
    labels[:, 20:35], labels[30:60, 35:] = 7, 18
    (tmp_path / "confident").mkdir()
    Image.fromarray(labels).save(tmp_path / "confident" / "a.png")
    Image.fromarray(np.repeat((labels * 12)[..., None], 3, 2)).save(tmp_path / "a.png")
    sample = Sample("a", tmp_path / "a.png", (6, 17))
    classes = tuple(f"class {n}" for n in range(20))
    return SegmentationData("striped", tmp_path, "train", classes, (sample,), lambda s: torch.zeros(1)), tmp_path


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.5)])
def test_images_and_labels_are_augmented_alike(striped, scales):
    data, folder = striped
    net = irnet(Backbone("timm/test_resnet", random_weights=True, mean=(0.5,) * 3, std=(0.5,) * 3))
    items = ConfidentItems(replace(IRN_CONFIG, crop=96, scales=scales), net, data, folder / "confident")
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        image, labels = items[0]
        assert (image.shape, labels.shape, labels.dtype) == ((3, 96, 96), (24, 24), torch.uint8)
        grey = (image[0, 2::4, 2::4] * 0.5 + 0.5) * 255 / 12
        inside = labels != 255
        assert set(labels.unique().tolist()) <= {0, 7, 18, 255}
        agree = ((grey - labels).abs() < 1)[inside].float().mean()
        assert agree == 1 if scales == (1.0, 1.0) else agree > 0.8  # bicubic pixels mix colours at borders
        assert torch.equal(image[0, 2::4, 2::4][~inside], torch.zeros(int((~inside).sum())))
        seen.append((int(inside.sum()), labels[inside].float().mean().item()))
    assert len(set(seen)) > 1


def test_labels_of_another_size_are_rejected(striped):
    data, folder = striped
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "confident" / "a.png")
    with pytest.raises(AdvCAMError, match=r"confident/a\.png has 9x9 pixels and its image 70x90"):
        ConfidentItems(IRN_CONFIG, METHOD.make_net(), data, folder / "confident")[0]


def test_maps_of_another_size_do_not_stop_the_others(given, trained, tmp_path):
    data, _ = given
    seeds = scenes(tmp_path / "scenes", 9)[1]
    seeds.write("004", ClassMaps((1,), (16, 16), torch.ones(1, 4, 4), torch.ones(1, 16, 16)))
    trained_method = IRN(IRNConfig(trained=trained, pad_to=64), RUNTIME)
    with pytest.raises(AdvCAMError) as error:
        refine_by_affinity(trained_method, seeds, data, tmp_path / "out")
    assert re.search(r"1 images .*004.* are of 16 x 16 pixels and its image .* 40 x 56", str(error.value))
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 8


def test_the_tasks_of_an_array_do_not_train(given, tmp_path, monkeypatch):
    data, seeds = given
    for key, value in {"ID": 0, "MIN": 0, "MAX": 1, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    with pytest.raises(AdvCAMError, match="now train IRN net in one job"):
        refine_by_affinity(METHOD, seeds, data, tmp_path)
    assert len(list((tmp_path / "confident").glob("*.png"))) == 5


def test_a_net_file_is_read(tmp_path):
    net = irnet(Backbone("timm/test_resnet", random_weights=True))
    save_net(tmp_path / "net.safetensors", net)
    assert torch.equal(
        IRN(IRNConfig(trained=tmp_path / "net.safetensors"), RUNTIME).make_net().fc_edge6.weight, net.fc_edge6.weight
    )
    with pytest.raises(AdvCAMError, match="no such checkpoint file"):
        IRN(IRNConfig(trained=tmp_path / "other.pth"), RUNTIME).make_net()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 100},
        {"crop": 64, "radius": 10},
        {"background": 0.5},
        {"scales": (0, 1)},
        {"pad_to": 500},
        {"crf": "ps"},
    ],
)
def test_invalid_settings(wrong):
    with pytest.raises(AdvCAMError):
        IRNConfig(**wrong)


def test_published_settings():
    assert SETTINGS["advcam"] == IRNConfig()
    numbers = {n: (s.foreground, s.background, s.walk.exponent, s.walk.background) for n, s in SETTINGS.items()}
    assert numbers == {
        "advcam": (0.35, 0.15, 1.5, 0.25), "irn": (0.30, 0.05, 1.0, 0.25),
        "rib": (0.35, 0.17, 1.3, 0.27), "rib_coco": (0.35, 0.17, 1.3, 0.22),
    }  # fmt: skip
    s = IRNConfig()
    assert (s.batch, s.epochs, s.crop) == (32, 3, 512)
    assert s.optimizer == Optimizer(0.1, 1.0, weight_decay=1e-4, momentum=1e-4, power=0.9)


@pytest.mark.slow
def test_real_photographs_and_weights(data_root, mobilenet, tmp_path):
    """Blobs in the middle of true masks teach edges, which lie where the true borders are."""
    voc = read_voc(data_root / "voc", "train")
    few = replace(voc, samples=tuple(s for s in voc.samples if len(s.labels) == 1)[:8])
    store = MapStore(tmp_path / "maps")
    for sample in few.samples:
        (label,) = sample.labels
        inside = (few.mask(sample) == label + 1)[None, None].float()
        blob = inside
        for _ in range(6):
            blob = F.avg_pool2d(blob, 31, 1, 15, count_include_pad=False) * inside
        blob = F.avg_pool2d(blob, 31, 1, 15, count_include_pad=False)
        size = (inside.shape[2], inside.shape[3])
        cam = F.interpolate(blob, strided_size(size, 4), mode="bilinear")[0]
        store.write(sample.id, ClassMaps((label,), size, cam / cam.amax(), blob[0] / blob.amax()))
    optimizer = replace(IRNConfig().optimizer, lr=1.0)
    config = IRNConfig(backbone=mobilenet, crop=192, batch=4, epochs=15, radius=5, optimizer=optimizer)
    refine_by_affinity(IRN(config, RUNTIME), store, few, tmp_path / "out")
    net = load_net(tmp_path / "out" / "irnet" / "irnet.safetensors", IRNET)[0]
    border, rest = [], []
    for sample in few.samples:
        mask = read_mask(tmp_path / "out" / "masks" / f"{sample.id}.png", 20)
        assert set(mask.unique().tolist()) == {0, sample.labels[0] + 1}
        pixels = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1)
        truth = few.mask(sample)[2::4, 2::4]
        at_border = F.max_pool2d((truth == 255)[None].float(), 3, 1, 1)[0] > 0
        edge = edges(net, pixels)[: truth.shape[0], : truth.shape[1]]
        border.append(edge[at_border])
        rest.append(edge[~at_border])
    assert torch.cat(border).mean() > 1.5 * torch.cat(rest).mean()
