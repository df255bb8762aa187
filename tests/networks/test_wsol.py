"""Classifiers for localization: grids, exact heads, initial weights, freezing and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import inception_v3, resnet50
from torchvision.models.inception import InceptionB
from torchvision.models.vgg import cfgs, make_layers

from advcam_attr import heads
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import Checkpoint
from advcam_attr.networks.net_file import save_net
from advcam_attr.networks.wsol import load_wsol_net, start_from, wsol_net
from advcam_attr.networks.wsol_parts import (
    ARCHITECTURES,
    VGG16WSOL,
    InceptionV3WSOL,
    ResNet50WSOL,
    WSOLNetSpec,
    parameter_groups,
)
from advcam_attr.networks.wsol_parts import _InceptionBStride1 as InceptionBStride1
from advcam_attr.types import AdvCAMError
from build_net import build_net

RESNET, INCEPTION, VGG = ARCHITECTURES
MOBILENET = "timm/mobilenetv2_100"


def random_like(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Weights of the same shapes, each other than the rest."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) * 0.1 + 0.01 if value.is_floating_point() else torch.tensor(0)
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def inception_weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        state = inception_v3(init_weights=False).state_dict()
    return random_like(state)


@pytest.fixture(scope="module")
def resnet_weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        state = resnet50().state_dict()
    return random_like(state)


def vgg_weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        features = make_layers(cfgs["D"], batch_norm=False).state_dict()
    classifier = {"classifier.6.weight": torch.zeros(3, 3), "classifier.6.bias": torch.zeros(3)}
    return random_like({f"features.{key}": value for key, value in features.items()} | classifier)


def checkpoint(weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("weights.pth"), weights, {})


@pytest.mark.parametrize(
    ("backbone", "stride", "cells"),
    [(backbone, stride, 224 // stride) for backbone in ARCHITECTURES for stride in (16, 8)]
    + [(MOBILENET, 16, 14), pytest.param(MOBILENET, 8, 28, marks=pytest.mark.slow)],
)
def test_maps_have_14_or_28_cells_and_are_exact(backbone, stride, cells):
    net = wsol_net(Backbone(backbone, random_weights=True, stride=stride), 5)
    assert not net.training
    assert net.stride == stride
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head = heads.view(net).inspect(x)
    assert head.exactness == "exact"
    assert head.grid == (64 // stride, 64 // stride)
    seen = []
    layer = {RESNET: "layer4", INCEPTION: "SPG_A4", VGG: "conv6", MOBILENET: "backbone.bn2"}[backbone]
    net.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(out))
    twin = net.to("meta")
    assert twin(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 5)
    assert seen[0].shape[2:] == (cells, cells)


def test_golden_class_maps_of_inception_are_its_last_convolution():
    """A bias of SPG_A4 shifts the whole map of its class."""
    net = wsol_net(Backbone(INCEPTION, random_weights=True), 3)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    view = heads.view(net)
    before = view(x)
    with torch.no_grad():
        net.SPG_A4.bias += torch.tensor([0.0, 2.0, 0.0])
    after = view(x)
    shift = (after.features - before.features).detach()
    assert torch.allclose(shift, torch.tensor([0.0, 2.0, 0.0])[None, :, None, None].expand_as(shift), atol=1e-5)
    assert torch.allclose(after.features.mean((2, 3)), after.logits, atol=1e-5)


def test_inception_block_without_stride_refines_the_strided_one():
    """torchvision's block gives every second cell of this one, from the second on."""
    torch.manual_seed(0)
    strided, dense = InceptionB(6).eval(), InceptionBStride1(6).eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.rand(2, 6, 9, 7)
    with torch.no_grad():
        assert dense(x).shape == (2, 486, 9, 7)
        assert torch.allclose(dense(x)[:, :, 1:-1:2, 1:-1:2], strided(x), atol=1e-6)


def test_resnet_without_stride_refines_the_strided_one(resnet_weights):
    """Up to layer4's first block, whose strided output is every second cell."""
    net = ResNet50WSOL(WSOLNetSpec(Backbone(RESNET, stride=16), 1000)).eval()
    theirs = resnet50().eval()
    net.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 1024, 6, 6)
    with torch.no_grad():
        assert torch.allclose(net.layer4[0](x)[:, :, ::2, ::2], theirs.layer4[0](x), atol=1e-5)
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert net.layer4[1].conv2.dilation == (1, 1)


@pytest.mark.parametrize("stride", [8, 16])
def test_inception_starts_from_torchvisions_weights(inception_weights, stride):
    net = InceptionV3WSOL(WSOLNetSpec(Backbone(INCEPTION, stride=stride), 1000))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = start_from(net, checkpoint({f"module.{key}": value for key, value in inception_weights.items()}))
    head = [f"SPG_{part}.{what}" for part in ("A3_1b.0", "A3_2b.0", "A4") for what in ("weight", "bias")]
    assert list(found.new) == head
    assert {key.split(".")[0] for key in found.loaded} == {
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5c",
        "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"}  # fmt: skip
    assert {key.split(".")[0] for key in found.unread} == {"AuxLogits", "Mixed_7a", "Mixed_7b", "Mixed_7c", "fc"}
    after = net.state_dict()
    assert set(found.loaded) | set(found.new) == set(after)
    assert all(torch.equal(after[key], inception_weights[key]) for key in found.loaded)
    assert all(torch.equal(after[key], before[key]) for key in found.new)
    assert after["SPG_A4.bias"].tolist() == [0.0] * 1000
    bound = (6 / (9 * (768 + 1024))) ** 0.5
    assert after["SPG_A3_1b.0.weight"].abs().max() == pytest.approx(bound, rel=1e-3), "Xavier, uniform"


def test_the_classifier_is_kept_where_it_has_as_many_classes(resnet_weights):
    imagenet, birds = (ResNet50WSOL(WSOLNetSpec(Backbone(RESNET, stride=16), count)) for count in (1000, 200))
    found = start_from(imagenet, checkpoint(resnet_weights))
    assert (found.new, found.unread) == ((), ())
    assert torch.equal(imagenet.fc.weight, resnet_weights["fc.weight"])
    found = start_from(birds, checkpoint(resnet_weights))
    assert found.new == found.unread == ("fc.weight", "fc.bias")
    assert torch.equal(birds.layer4[2].conv3.weight, resnet_weights["layer4.2.conv3.weight"])
    assert float(birds.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not birds.fc.bias.any()


@pytest.mark.parametrize("stride", [8, 16])
def test_vgg_has_other_numbers_without_its_fourth_pool(stride):
    weights = vgg_weights()
    net = VGG16WSOL(WSOLNetSpec(Backbone(VGG, stride=stride), 3))
    found = start_from(net, checkpoint(weights))
    assert found.new == ("conv6.weight", "conv6.bias", "fc.weight", "fc.bias")
    assert found.unread == ("classifier.6.weight", "classifier.6.bias")
    assert torch.equal(net.features[28 if stride == 16 else 27].weight, weights["features.28.weight"])
    assert torch.equal(net.features[21].weight, weights["features.21.weight"])
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in net.features) == (4 if stride == 16 else 3)


def test_what_does_not_fit_is_named(resnet_weights):
    def raises(message, change):
        weights = {**resnet_weights, **change}
        net = ResNet50WSOL(WSOLNetSpec(Backbone(RESNET, stride=16), 3))
        before = net.conv1.weight.clone()
        with pytest.raises(AdvCAMError, match=message) as error:
            start_from(net, checkpoint({key: value for key, value in weights.items() if value is not None}))
        assert "\n" not in str(error.value)
        assert torch.equal(net.conv1.weight, before)

    raises(r"missing keys \(layer4.2.conv3.weight\)", {"layer4.2.conv3.weight": None})
    raises(r"unexpected keys \(extra.weight\)", {"extra.weight": torch.zeros(1)})
    raises("1 shapes differ", {"conv1.weight": torch.zeros(64, 3, 3, 3)})
    raises("NaN or infinite weights in conv1.weight", {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)})


@pytest.mark.parametrize(
    ("backbone", "fast"),
    [(RESNET, {"layer4", "fc"}), (INCEPTION, {"SPG_A3_1b", "SPG_A3_2b", "SPG_A4"}), (VGG, {"conv6", "fc"}),
     (MOBILENET, {"fc"})],
)  # fmt: skip
def test_groups(backbone, fast):
    net = wsol_net(Backbone(backbone, random_weights=True, stride=None if backbone == MOBILENET else 16), 2)
    names = {id(parameter): name.split(".")[0] for name, parameter in net.named_parameters()}
    slow_group, fast_group = parameter_groups(net)
    assert {names[id(parameter)] for parameter in fast_group} == fast
    assert not {names[id(parameter)] for parameter in slow_group} & fast
    assert len(slow_group) + len(fast_group) == len(names)


def test_what_runs_before_a_module_is_frozen():
    net = wsol_net(Backbone(RESNET, random_weights=True, train_from="layer4"), 2).train()
    trained = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"layer4", "fc"}
    assert not net.bn1.training
    assert not net.layer3[0].bn1.training
    assert net.layer4[0].bn1.training, "as Choe et al., whose norms use the batch"
    net = wsol_net(
        Backbone(MOBILENET, random_weights=True, stride=None, train_from="blocks.6"), 2, norms="running"
    ).train()
    trained = {".".join(name.split(".")[:3]) for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"backbone.blocks.6", "backbone.conv_head.weight", "backbone.bn2.weight", "backbone.bn2.bias",
                       "fc.weight", "fc.bias"}  # fmt: skip
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert net.backbone.training
    with pytest.raises(AdvCAMError, match=r"has no module 'blocks.9' to train from"):
        wsol_net(Backbone(MOBILENET, random_weights=True, stride=None, train_from="blocks.9"), 2)


def test_all_is_trained_unless_something_else_is_asked_for():
    net = wsol_net(Backbone(RESNET, random_weights=True), 2).train()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.bn1.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "at least one class"),
        ({"stride": 32}, "has output stride 16 or 8, not 32"),
        ({"norms": "group"}, "not of 'group'"),
        ({"name": "torchvision/resnet18"}, "are made of torchvision/resnet50, .* or timm/NAME, not of"),
        ({"model_args": {"width": 2}}, "takes no model arguments"),
        ({"checkpoint": "none.pth", "random_weights": False}, "no such checkpoint file: none.pth"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(AdvCAMError, match=message):
        build_net(wsol_net, **({"name": RESNET, "num_classes": 2} | arguments))


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_stride_and_normalization_of_a_file(tmp_path):
    file = tmp_path / "net.safetensors"
    save_net(file, wsol_net(Backbone(INCEPTION, random_weights=True, stride=8), 2), ["gull", "wren"])
    found, classes = load_wsol_net(file, stride=8, std=(0.25,))
    assert (classes, found.stride, found.std, found.spec.backbone.std) == (
        ("gull", "wren"),
        8,
        (0.25,) * 3,
        (0.25,) * 3,
    )
    with pytest.raises(AdvCAMError, match="was trained with output stride 8, not 4"):
        load_wsol_net(file, stride=4)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("backbone", "stride"), [(RESNET, 8), (INCEPTION, 16), (VGG, 8), (VGG, 16)])
def test_authors_files_load_by_their_own_keys(tmp_path, backbone, stride, prefix):
    """As Choe et al. write them (and an optimizer, an epoch), and CutMix (all keys with ``module.``)."""
    net = wsol_net(Backbone(backbone, random_weights=True, stride=stride), 4, seed=3)
    weights = {prefix + key: value for key, value in net.state_dict().items()}
    content = {
        "architecture": "net",
        "epoch": 50,
        "state_dict": weights,
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(content, tmp_path / "last_checkpoint.pth.tar")
    found, classes = load_wsol_net(tmp_path / "last_checkpoint.pth.tar", stride=stride)
    assert classes == ()
    assert (found.spec.backbone.name, found.stride) == (backbone, stride)
    assert same(found, net)


def test_files_of_other_nets_raise(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(AdvCAMError, match="is none of a ResNet-50, Inception-V3 or VGG-16 for localization"):
        load_wsol_net(tmp_path / "other.safetensors")
    net = wsol_net(Backbone(VGG, random_weights=True, stride=8), 2)
    torch.save(net.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(AdvCAMError, match="is of a VGG-16 of output stride 8, not 16"):
        load_wsol_net(tmp_path / "vgg.pth", stride=16)


def test_real_mobilenet_with_folded_norms(data_root):
    file = data_root / "weights" / "mobilenetv2_100_imagenet.safetensors"
    args = {"num_classes": 1001, "pad_type": "same"}
    backbone = Backbone(MOBILENET, model_args=args, stride=None, checkpoint=file, mean=(0.5,), std=(0.5,))
    net = wsol_net(backbone, 10, norms="running")
    assert (net.stride, net.mean) == (32, (0.5,) * 3)
    head = heads.view(net).inspect(torch.zeros(1, 3, 224, 224))
    assert (head.exactness, head.grid) == ("exact", (7, 7))
