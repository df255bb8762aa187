"""CCT's decoders, encoder, published weights and training mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cct import (
    CCT,
    DEEP_BASE,
    Decoder,
    PyramidPooling,
    cct_net,
    deep_base_weights,
    doubling_steps,
    icnr,
)
from advcam_attr.networks.cct_perturbations import ContextMask, Guide, ObjectMask
from advcam_attr.networks.checkpoint import Checkpoint, load_weights
from advcam_attr.types import AdvCAMError
from build_net import build_net


def test_decoder_is_a_loop_over_pixels():
    torch.manual_seed(0)
    decoder, x = Decoder(3, 2, steps=1).double(), torch.randn(1, 3, 2, 3, dtype=torch.float64)
    first, doubling = decoder[0].weight.detach().numpy()[..., 0, 0], decoder[1][0]
    weight, bias = doubling.weight.detach().numpy()[..., 0, 0], doubling.bias.detach().numpy()
    found = decoder(x)
    assert found.shape == (1, 2, 4, 6)
    for k, i, j in np.ndindex(2, 4, 6):
        cell = first @ x[0, :, i // 2, j // 2].numpy()
        channel = 4 * k + 2 * (i % 2) + j % 2
        assert float(found[0, k, i, j].detach()) == pytest.approx(max(0.0, weight[channel] @ cell + bias[channel]))


def test_icnr_begins_without_a_checkerboard():
    torch.manual_seed(0)
    weight = torch.empty(12, 5, 1, 1)
    icnr(weight)
    shuffled = F.pixel_shuffle(F.conv2d(torch.randn(1, 5, 3, 3), weight), 2)
    assert torch.equal(shuffled, F.interpolate(shuffled[..., ::2, ::2], scale_factor=2, mode="nearest"))
    assert len(weight.unique()) == 3 * 5


def test_pyramid_is_means_over_regions():
    torch.manual_seed(0)
    pyramid, x = PyramidPooling(4, 2).double().eval(), torch.rand(1, 4, 6, 6, dtype=torch.float64)
    for branch, size in zip(pyramid.branches, (1, 2, 3, 6), strict=True):
        cell = 6 // size
        weight = branch[1].weight.detach().numpy()[..., 0, 0]
        found = branch(x).detach().numpy()[0]
        for i, j in np.ndindex(size, size):
            mean = x[0, :, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean((1, 2)).numpy()
            assert found[:, i, j] == pytest.approx(np.maximum(weight @ mean / np.sqrt(1 + 1e-5), 0))
    assert pyramid.bottleneck[0].weight.shape == (2, 4 + 4 * 2, 3, 3)


@pytest.fixture(scope="module")
def released() -> CCT:
    return cct_net(Backbone(DEEP_BASE, random_weights=True), 21, channels=8)


def test_released_net_has_its_shape(released):
    net = released
    assert (net.stride, len(net.auxiliary)) == (8, 30)
    with torch.device("meta"):
        pyramid = PyramidPooling(2048, 2048 // 4)
    assert pyramid.bottleneck[0].weight.shape == (512, 4096, 3, 3)
    stem = [m for m in net.backbone.conv1 if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in stem] == [64, 64, 128]
    assert [m.kernel_size for m in stem] == [(3, 3)] * 3
    dilations = [[b.conv2.dilation[0] for b in layer] for layer in (net.backbone.layer3, net.backbone.layer4)]
    assert dilations == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    assert (net.mean, net.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published(net: nn.Module) -> dict[str, torch.Tensor]:
    """The backbone's weights by the keys of the published file."""
    names = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3."}
    weights = {}
    for key, value in net.state_dict().items():
        new = next((own + key.removeprefix(timm) for timm, own in names.items() if key.startswith(timm)), key)
        new = "bn3." + key.removeprefix("bn1.") if key.startswith("bn1.") else new
        weights[new] = torch.full(value.shape, float(len(weights)), dtype=torch.float16)
    return {**weights, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def test_published_weights_are_read_by_their_keys(tmp_path, released):
    net, weights = released, published(released.backbone)
    torch.save(weights, tmp_path / "3x3resnet50-imagenet.pth")
    read = cct_net(Backbone(DEEP_BASE, checkpoint=tmp_path / "3x3resnet50-imagenet.pth"), 21, auxiliary={}, channels=8)
    for mine, theirs in (("conv1.3.weight", "conv2.weight"), ("bn1.bias", "bn3.bias"), ("conv1.4.weight", "bn2.weight"),
                         ("layer4.2.bn3.running_mean", "layer4.2.bn3.running_mean")):  # fmt: skip
        assert torch.equal(read.backbone.state_dict()[mine], weights[theirs].float())
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    assert deep_base_weights(Checkpoint(Path("x"), wrapped, {})).weights.keys() == net.backbone.state_dict().keys()
    damaged = Checkpoint(Path("x.pth"), {**weights, "odd.weight": torch.zeros(1)}, {})
    del damaged.weights["layer1.0.conv1.weight"]
    with pytest.raises(AdvCAMError, match=r"1 missing keys \(layer1.0.conv1.weight\) and 1 unexpected keys \(odd"):
        load_weights(net.backbone, deep_base_weights(damaged), DEEP_BASE)


def test_pairs_are_what_the_parts_say():
    few = {"context_mask": 1, "object_mask": 2}
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary=few, channels=8)
    x = torch.rand(2, 2, 3, 32, 64)
    with torch.no_grad():
        found = net(x)
        assert torch.equal(found[:, 0], net(x[:, 0]))
        assert torch.equal(found[:, 1], net(x[:, 1]))
        features = net.features(x[:, 1])
        guide = Guide.of(found[:, 1])
        for n, decoder in enumerate(net.auxiliary):
            assert torch.equal(found[:, 2 + n], decoder(features, guide))
    assert found.shape == (2, 5, 4, 32, 64)
    alone = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary={}, channels=8)
    assert alone(x).shape == (2, 1, 4, 32, 64)
    assert [type(d.perturbation) for d in net.auxiliary] == [ContextMask, ObjectMask, ObjectMask]


def test_guides_are_detached_and_decoders_are_separate():
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary={"context_mask": 2}, channels=8)
    net(torch.rand(2, 2, 3, 32, 32))[:, 2].sum().backward()
    for untouched in (net.main, net.auxiliary[1]):
        assert not any(p.grad is not None and bool(p.grad.any()) for p in untouched.parameters())
    assert any(bool(p.grad.any()) for p in net.auxiliary[0].parameters())
    assert not torch.equal(net.auxiliary[0].decoder[0].weight, net.auxiliary[1].decoder[0].weight)


def test_norms_are_trained_or_frozen():
    for norms in ("trained", "frozen"):
        net = cct_net(
            Backbone("timm/test_resnet", random_weights=True), 3, auxiliary={}, channels=8, norms=norms
        ).train()
        inner = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert inner
        assert all(m.training == m.weight.requires_grad == (norms == "trained") for m in inner)
        assert all(m.training for m in net.pyramid.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": DEEP_BASE, "random_weights": False}, "give checkpoint 3x3resnet50-imagenet.pth, or random"),
        ({"name": "resnet50"}, "made of deepbase_resnet50 or timm/NAME"),
        ({"auxiliary": {"cutuot": 1}}, "cutout"),
        ({"auxiliary": {"vat": -1}}, "vat: there cannot be -1 decoders"),
        ({"stride": 12}, "power of two, got 12"),
        ({"num_classes": 1}, "a net of 1 classes"),
        ({"channels": 0}, "0 channels"),
    ],
)
def test_bad_requests_are_one_line(changes, message):
    with pytest.raises(AdvCAMError, match=message):
        build_net(cct_net, **({"name": "timm/test_resnet", "num_classes": 3} | changes))


def test_sides_and_strides_must_fit():
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 3, auxiliary={}, channels=8)
    with pytest.raises(AdvCAMError, match="33x32 pixels: sides must be multiples of 8"):
        net(torch.zeros(1, 3, 32, 33))
    assert [doubling_steps(stride) for stride in (1, 2, 32)] == [0, 1, 5]
