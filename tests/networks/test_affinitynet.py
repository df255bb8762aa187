"""AffinityNet: keys and shapes, equations of its head, frozen weights and files."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advcam_attr.networks.affinitynet import AFFINITY_NET, ResNet38Affinity, TimmAffinity, affinity_net, trained_parts
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.net_file import load_net
from advcam_attr.networks.seam import SEAM
from advcam_attr.types import AdvCAMError
from build_net import build_net
from wrn38 import randomised, slow_features, trunk_shapes

HEAD = {"f8_3": (64, 512), "f8_4": (128, 1024), "f8_5": (256, 4096), "f9": (448, 448)}


def thin(seed: int = 0) -> ResNet38Affinity:
    net = randomised(ResNet38Affinity(width=2), seed)
    assert isinstance(net, ResNet38Affinity)
    return net


def test_keys_and_shapes_are_the_authors():
    with torch.device("meta"):
        net = ResNet38Affinity()
    found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert found == trunk_shapes() | {f"{layer}.weight": (*shape, 1, 1) for layer, shape in HEAD.items()}


def test_forward_equals_its_equations():
    net = thin()
    images = torch.randn(2, 3, 33, 47, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    state = {key: value.detach() for key, value in net.state_dict().items()}

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("oc,nchw->nohw", state[f"{name}.weight"][:, :, 0, 0], x)
        return torch.where(y > 0, y, y.exp() - 1)

    parts = [layer(name, tap) for name, tap in zip(HEAD, slow_features(state, images), strict=False)]
    expected = layer("f9", torch.cat(parts, 1))
    found = net(images).detach()
    assert found.shape == (2, 14, 5, 6)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1


def test_what_is_frozen_and_what_is_trained():
    net = ResNet38Affinity(width=1)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    stem = re.compile(r"conv1a\.|b2\.|b2_1\.|b2_2\.")
    assert frozen == {name for name, _ in net.named_parameters() if stem.match(name) or "bn" in name}
    parts = trained_parts(net)
    assert {id(p) for p in parts.new_weights} == {id(net.get_parameter(f"{layer}.weight")) for layer in HEAD}
    others = {id(p) for name, p in net.named_parameters() if name not in frozen and name.split(".")[0] not in HEAD}
    assert {id(p) for p in parts.weights} == others
    assert parts.biases == parts.new_biases == []
    net.train()
    assert net.b7.dropout_2b1.training
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_new_layers_are_initialized_as_in_psa():
    """Kaiming: deviation sqrt(2 / fan in). Xavier with gain 4: uniform within 4 sqrt(6 / (fan in + fan out))."""
    net = ResNet38Affinity(width=16)
    for name in ("f8_3", "f8_4", "f8_5"):
        weight = net.get_parameter(f"{name}.weight").detach()
        assert float(weight.std()) == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.1)
    bound = 4 * (6 / (2 * 112)) ** 0.5
    assert 0.95 * bound < float(net.f9.weight.detach().abs().max()) <= bound


def test_the_authors_file(tmp_path):
    net = thin().float()
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, tmp_path / "resnet38_aff.pth")
    found = load_net(tmp_path / "resnet38_aff.pth", AFFINITY_NET)[0]
    assert not found.training
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in net.state_dict().items())


def test_files_that_do_not_fit_raise(tmp_path):
    state = ResNet38Affinity(width=1).state_dict()
    del state["f8_5.weight"]
    torch.save(state | {"fc8.weight": torch.zeros(2, 64, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(AdvCAMError, match=r"1 missing keys \(f8_5.weight\) and 1 unexpected keys \(fc8.weight\)"):
        load_net(tmp_path / "a.pth", AFFINITY_NET)


def test_the_trunk_of_another_net(tmp_path):
    """SEAM's file has the trunk, and layers f8_3, f8_4 and f9 of its own, which are not PSA's."""
    seam = SEAM(classes=3, width=2)
    torch.save(seam.state_dict(), tmp_path / "seam.pth")
    net = affinity_net(Backbone("resnet38", checkpoint=tmp_path / "seam.pth"), width=2)
    new = affinity_net(Backbone("resnet38", random_weights=True), width=2)
    for key, value in net.state_dict().items():
        source = new if key.split(".")[0] in HEAD else seam
        assert torch.equal(value, source.state_dict()[key]), key
    state = seam.state_dict()
    torch.save({"b8.weight": torch.zeros(1), **{k: v for k, v in state.items() if k != "bn7.bias"}}, tmp_path / "x.pth")
    with pytest.raises(AdvCAMError, match=r"trunk of resnet38: 1 missing keys \(bn7.bias\) and 1 unexpected .*b8"):
        affinity_net(Backbone("resnet38", checkpoint=tmp_path / "x.pth"), width=2)


@pytest.mark.parametrize(("stride", "width"), [(16, 8), pytest.param(8, 64, marks=pytest.mark.slow)])
def test_a_timm_backbone(stride, width):
    net = affinity_net(Backbone("timm/mobilenetv2_100", random_weights=True, stride=stride), width=width)
    assert isinstance(net, TimmAffinity)
    taps = net.stages(torch.rand(1, 3, 64, 96))
    assert [tap.shape[1] for tap in taps] == [32, 96, 320]
    assert taps[-1].shape[2:] == (64 // stride, 96 // stride)
    assert net.stride == stride
    x = torch.rand(1, 3, 64, 96)
    expected = [F.elu(F.conv2d(F.adaptive_avg_pool2d(t, (64 // stride, 96 // stride)), w)) for t, w in
                zip(net.stages(x), (net.f8_3.weight, net.f8_4.weight, net.f8_5.weight), strict=True)]  # fmt: skip
    torch.testing.assert_close(net(x), F.elu(F.conv2d(torch.cat(expected, 1), net.f9.weight)))


def test_every_weight_that_is_trained_gets_a_gradient():
    """Else ranks that train together would wait for each other."""
    for net in (
        ResNet38Affinity(width=1),
        affinity_net(Backbone("timm/mobilenetv2_100", random_weights=True), width=4),
    ):
        net.train()(torch.rand(2, 3, 64, 64)).sum().backward()
        assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_weights": False}, "resnet38 needs a file of its trunk's weights"),
        ({"stride": 16}, "resnet38 has stride 8, not 16"),
        ({"name": "resnet50"}, "made of resnet38 or timm/NAME, not of 'resnet50'"),
        ({"name": "timm/nonesuch"}, "unknown model"),
        ({"width": 0}, "must be positive"),
    ],
)
def test_nets_that_cannot_be_made(options, message):
    with pytest.raises(AdvCAMError, match=message):
        build_net(affinity_net, **({"name": "resnet38"} | options))
