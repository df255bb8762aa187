"""Nets that CCT's authors have trained, by the keys of their files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from advcam_attr.networks.cct import CCT_NET
from advcam_attr.networks.checkpoint import Checkpoint, read_checkpoint
from advcam_attr.networks.net_file import load_net
from advcam_attr.types import AdvCAMError

CLASSES, CHANNELS = 5, 4


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def authors_shapes(decoders: int = 30) -> dict[str, tuple[int, ...]]:
    """The keys of ``best_model.pth``, here with few channels behind the backbone, and the shapes of their tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n, (entering, leaving) in enumerate(((3, 64), (64, 64), (64, 128)), start=1):
        shapes[f"encoder.base.0.0.conv{n}.weight"] = (leaving, entering, 3, 3)
        shapes |= norm(f"encoder.base.0.0.bn{n}", leaving)
    entering = 128
    for layer, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            at = f"encoder.base.{layer}.{block}"
            for n, (c, o, k) in enumerate(((entering, width, 1), (width, width, 3), (width, 4 * width, 1)), start=1):
                shapes[f"{at}.conv{n}.weight"] = (o, c, k, k)
                shapes |= norm(f"{at}.bn{n}", o)
            if not block:
                shapes[f"{at}.downsample.0.weight"] = (4 * width, entering, 1, 1)
                shapes |= norm(f"{at}.downsample.1", 4 * width)
            entering = 4 * width
    for stage in range(4):
        shapes[f"encoder.psp.stages.{stage}.1.weight"] = (CHANNELS, 2048, 1, 1)
        shapes |= norm(f"encoder.psp.stages.{stage}.2", CHANNELS)
    shapes["encoder.psp.bottleneck.0.weight"] = (CHANNELS, 2048 + 4 * CHANNELS, 3, 3)
    shapes |= norm("encoder.psp.bottleneck.1", CHANNELS)
    for decoder in ("main_decoder", *(f"aux_decoders.{n}" for n in range(decoders))):
        shapes[f"{decoder}.upsample.0.weight"] = (CLASSES, CHANNELS, 1, 1)
        for step in (1, 2, 3):
            shapes[f"{decoder}.upsample.{step}.conv.weight"] = (4 * CLASSES, CLASSES, 1, 1)
            shapes[f"{decoder}.upsample.{step}.conv.bias"] = (4 * CLASSES,)
    return shapes


def authors_file(decoders: int = 30) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"module.{key}": torch.rand(shape, generator=generator) * 0.1 if shape else torch.tensor(7)
        for key, shape in authors_shapes(decoders).items()
    }


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return authors_file()


def test_golden_names(weights):
    """Every tensor of a file has one place in the net, and these are known."""
    net, classes = load_net(Checkpoint(Path("best_model.pth"), weights, {}), CCT_NET)
    assert (classes, net.spec.num_classes, net.spec.channels, net.stride) == ((), CLASSES, CHANNELS, 8)
    assert [type(decoder.perturbation).__name__ for decoder in net.auxiliary[::6]] == [
        "VirtualAdversarial", "SpatialDropout", "GuidedCutout", "FeatureDrop", "FeatureNoise",
    ]  # fmt: skip
    state = net.state_dict()
    assert len(state) == len(weights)
    for theirs, ours in {
        "encoder.base.0.0.conv1.weight": "backbone.conv1.0.weight",
        "encoder.base.0.0.bn1.bias": "backbone.conv1.1.bias",
        "encoder.base.0.0.conv2.weight": "backbone.conv1.3.weight",
        "encoder.base.0.0.bn2.running_mean": "backbone.conv1.4.running_mean",
        "encoder.base.0.0.conv3.weight": "backbone.conv1.6.weight",
        "encoder.base.0.0.bn3.weight": "backbone.bn1.weight",
        "encoder.base.1.0.conv1.weight": "backbone.layer1.0.conv1.weight",
        "encoder.base.4.2.bn3.running_var": "backbone.layer4.2.bn3.running_var",
        "encoder.base.3.0.downsample.1.weight": "backbone.layer3.0.downsample.1.weight",
        "encoder.psp.stages.3.1.weight": "pyramid.branches.3.1.weight",
        "encoder.psp.bottleneck.1.bias": "pyramid.bottleneck.1.bias",
        "main_decoder.upsample.0.weight": "main.0.weight",
        "main_decoder.upsample.2.conv.bias": "main.2.0.bias",
        "aux_decoders.29.upsample.3.conv.weight": "auxiliary.29.decoder.3.0.weight",
    }.items():
        assert torch.equal(state[ours], weights[f"module.{theirs}"]), theirs
    once = {(value.shape, float(value.double().sum())) for value in state.values() if value.ndim}
    assert once == {(value.shape, float(value.double().sum())) for value in weights.values() if value.ndim}
    assert net(torch.zeros(1, 3, 32, 40)).shape == (1, CLASSES, 32, 40)


def test_supervised_files_have_no_auxiliary_decoders(weights):
    main = {key: value for key, value in weights.items() if "aux_decoders" not in key}
    net, _ = load_net(Checkpoint(Path("best_model.pth"), main, {}), CCT_NET)
    assert (len(net.auxiliary), dict(net.spec.auxiliary)) == (0, {})


def without(weights: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "psp.stages.2.1"), "1 missing keys .pyramid.branches.2.1.weight"),
        (
            lambda w: w | {"module.encoder.base.5.0.weight": torch.zeros(1)},
            "1 unexpected keys .encoder.base.5.0.weight",
        ),
        (lambda w: without(w, "main_decoder"), "has no main_decoder.upsample.0.weight"),
        (lambda w: without(w, "aux_decoders.29."), "has 29 auxiliary decoders, the released configuration 30"),
        (lambda w: w | {"module.encoder.psp.bottleneck.1.bias": torch.zeros(9)}, "1 shapes differ"),
        (lambda w: {"fc.weight": torch.zeros(2, 2)}, "holds no CCT net"),
    ],
)
def test_other_files_raise(weights, change, words):
    with pytest.raises(AdvCAMError, match=words):
        load_net(Checkpoint(Path("best_model.pth"), change(weights), {}), CCT_NET)


def test_the_file_is_that_of_the_authors_trainer(tmp_path):
    """It also holds the configuration and the best score, a NumPy scalar."""
    state = {"module.main_decoder.upsample.0.weight": torch.rand(5, 4, 1, 1)}
    content = {
        "arch": "DataParallel", "epoch": 50, "state_dict": state, "monitor_best": np.float64(0.7322),
        "config": {"n_gpu": 1, "model": {"vat": 2, "xi": 1e-6}},
    }  # fmt: skip
    torch.save(content, tmp_path / "best_model.pth")
    found = read_checkpoint(tmp_path / "best_model.pth").weights
    assert found.keys() == state.keys()
    assert torch.equal(found["module.main_decoder.upsample.0.weight"], state["module.main_decoder.upsample.0.weight"])
