"""DeepLab-v2: equations re-derived from deeplab-pytorch's weights, scales, files and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.networks.authors import CAFFE_MEAN
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.deeplab import ASPP, DEEPLAB, DeepLab, MultiScale, deeplab
from advcam_attr.networks.load import load_model
from advcam_attr.networks.net_file import load_net
from advcam_attr.types import AdvCAMError
from build_net import build_net

DEPTHS = {2: 3, 3: 4, 4: 23, 5: 3}


def small(**options) -> DeepLab:
    return build_net(deeplab, **({"name": "timm/test_resnet", "num_labels": 4, "seed": 1} | options))


@pytest.fixture(scope="module")
def resnet() -> DeepLab:
    """A DeepLab on ResNet-101 with random statistics of norms."""
    net = deeplab(Backbone("torchvision/resnet101", random_weights=True), num_labels=3, stride_in="1x1")
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.05)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) * 0.3 + 0.3)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return net


def caffe_state(net: DeepLab) -> dict[str, Tensor]:
    """A net's weights by the names of deeplab-pytorch, for BGR values from 0 to 255."""
    own = net.state_dict()
    state = {}

    def norm(key: str, name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"base.{key}.{part}"] = own[f"trunk.model.{name}.{part}"]

    state["base.layer1.conv1.conv.weight"] = own["trunk.model.conv1.weight"].flip(1)
    norm("layer1.conv1.bn", "bn1")
    for layer, depth in DEPTHS.items():
        for block in range(depth):
            there, here = f"layer{layer}.block{block + 1}", f"layer{layer - 1}.{block}"
            for number, part in enumerate(("reduce", "conv3x3", "increase"), start=1):
                state[f"base.{there}.{part}.conv.weight"] = own[f"trunk.model.{here}.conv{number}.weight"]
                norm(f"{there}.{part}.bn", f"{here}.bn{number}")
            if block == 0:
                state[f"base.{there}.shortcut.conv.weight"] = own[f"trunk.model.{here}.downsample.0.weight"]
                norm(f"{there}.shortcut.bn", f"{here}.downsample.1")
    for rate in range(4):
        for part in ("weight", "bias"):
            state[f"base.aspp.c{rate}.{part}"] = own[f"aspp.{rate}.{part}"]
    return {key: value.clone().contiguous() for key, value in state.items()}


def equations(state: dict[str, Tensor], bgr: Tensor, stride_in: str) -> Tensor:
    """DeepLab-v2, layer by layer, from weights by the names of deeplab-pytorch and BGR less the mean."""

    def unit(x: Tensor, key: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{key}.conv.weight"], None, stride, padding, dilation)
        mean, var, weight, bias = (
            state[f"{key}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.max_pool2d(unit(bgr, "base.layer1.conv1", 2, 3).relu(), 3, 2, 1, ceil_mode=True)
    for layer, stride, dilation in ((2, 1, 1), (3, 2, 1), (4, 1, 2), (5, 1, 4)):
        for block in range(DEPTHS[layer]):
            key, step = f"base.layer{layer}.block{block + 1}", stride if block == 0 else 1
            first, second = (step, 1) if stride_in == "1x1" else (1, step)
            y = unit(x, f"{key}.reduce", first).relu()
            y = unit(y, f"{key}.conv3x3", second, dilation, dilation).relu()
            y = unit(y, f"{key}.increase")
            x = (y + (unit(x, f"{key}.shortcut", step) if block == 0 else x)).relu()
    rates = enumerate((6, 12, 18, 24))
    return sum(
        F.conv2d(x, state[f"base.aspp.c{n}.weight"], state[f"base.aspp.c{n}.bias"], 1, rate, rate) for n, rate in rates
    )


@pytest.fixture(scope="module")
def caffe_file(resnet, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("caffe") / "deeplab.pth"
    torch.save(caffe_state(resnet), path)
    return path


@pytest.fixture(scope="module")
def rgb() -> Tensor:
    return torch.randint(0, 256, (1, 3, 44, 38), generator=torch.Generator().manual_seed(1)).float()


def test_caffe_weights_equal_the_equations(caffe_file, rgb):
    net, classes = load_net(caffe_file, DEEPLAB)
    assert (net.spec.num_labels, net.spec.stride_in, net.stride, classes) == (3, "1x1", 8, ())
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.mean, net.std))
    bgr = (rgb - torch.tensor(CAFFE_MEAN)[:, None, None]).flip(1)
    with torch.no_grad():
        expected = equations(torch.load(caffe_file, weights_only=True), bgr, "1x1")
        found = net((rgb / 255 - mean) / std)
    assert found.shape == (1, 3, 6, 5)  # 44 and 38 to 22 and 19, by the pool (up) to 12 and 10, to 6 and 5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_torchvision_weights_equal_the_equations(resnet, caffe_file, rgb, tmp_path):
    keys = {key.removeprefix("trunk.model."): value for key, value in resnet.state_dict().items() if "aspp" not in key}
    torch.save(keys | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet101.pth")
    net = deeplab(Backbone("torchvision/resnet101", checkpoint=tmp_path / "resnet101.pth"), num_labels=3, seed=7)
    assert net.spec.stride_in == "3x3"
    assert net.mean == (0.485, 0.456, 0.406)
    state = torch.load(caffe_file, weights_only=True)
    for n in range(4):
        state[f"base.aspp.c{n}.weight"], state[f"base.aspp.c{n}.bias"] = net.aspp[n].weight.data, net.aspp[n].bias.data
    with torch.no_grad():
        expected = equations(state, (rgb / 100).flip(1), "3x3")
        found = net(rgb / 100)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert (
        deeplab(
            Backbone("torchvision/resnet101", checkpoint=tmp_path / "resnet101.pth"), num_labels=3, stride_in="1x1"
        ).spec.stride_in
        == "1x1"
    )


def test_a_caffe_backbone_begins_a_training_with_a_new_pyramid(caffe_file, resnet):
    net = deeplab(Backbone("torchvision/resnet101", checkpoint=caffe_file), num_labels=21)
    assert net.spec.stride_in == "1x1"
    assert net.mean == tuple(v / 255 for v in CAFFE_MEAN)
    assert torch.equal(net.trunk.model.layer4[2].conv2.weight, resnet.trunk.model.layer4[2].conv2.weight)
    assert net.aspp[0].weight.shape == (21, 2048, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update(
                {"base.layer4.block23.squeeze.conv.weight": s.pop("base.layer4.block23.reduce.conv.weight")}
            ),
            "1 missing keys .trunk.model.layer3.22.conv1.weight. and 1 unexpected keys .*layer4.block23.squeeze.conv",
        ),
        (lambda s: [s.pop(f"base.aspp.c{n}.{p}") for n in range(4) for p in ("weight", "bias")], "a backbone alone"),
        (lambda s: s.update({"base.layer1.conv1.conv.weight": torch.zeros(64, 1, 7, 7)}), "not of three channels"),
    ],
)
def test_wrong_caffe_files_raise(caffe_file, tmp_path, change, message):
    state = torch.load(caffe_file, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(AdvCAMError, match=message):
        load_net(tmp_path / "wrong.pth", DEEPLAB)


def test_golden_aspp():
    """A one in the middle of 5 x 5: each convolution of ones spreads it to a 3 x 3 lattice at its rate."""
    aspp = ASPP(1, 1, (1, 2))
    for conv in aspp:
        torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 1
    assert aspp(x)[0, 0].tolist() == [
        [1, 0, 1, 0, 1], [0, 1, 1, 1, 0], [1, 1, 2, 1, 1], [0, 1, 1, 1, 0], [1, 0, 1, 0, 1],
    ]  # fmt: skip


def test_the_pyramid_begins_as_deeplab_v2s():
    weights = ASPP(512, 21, (6, 12, 18, 24)).state_dict()
    assert all(float(value.abs().max()) == 0 for key, value in weights.items() if key.endswith("bias"))
    drawn = torch.cat([value.flatten() for key, value in weights.items() if key.endswith("weight")])
    assert float(drawn.std()) == pytest.approx(0.01, rel=0.01)
    assert abs(float(drawn.mean())) < 1e-4


def bilinear(x: Tensor, size: tuple[int, int], scale: float | None = None) -> Tensor:
    """Pixel centres at (i + 0.5) / scale - 0.5, held at the border; a loop over rows and columns."""
    height, width = x.shape[2:]

    def taps(count: int, length: int) -> list[tuple[int, int, float]]:
        step = 1 / scale if scale else length / count
        places = (min(max((i + 0.5) * step - 0.5, 0.0), length - 1.0) for i in range(count))
        return [(int(p), min(int(p) + 1, length - 1), p - int(p)) for p in places]

    rows = torch.stack([(1 - t) * x[:, :, a] + t * x[:, :, b] for a, b, t in taps(size[0], height)], 2)
    return torch.stack([(1 - t) * rows[..., a] + t * rows[..., b] for a, b, t in taps(size[1], width)], 3)


def test_scales_equal_their_slow_rederivation():
    net = small(scales=(0.5, 0.75)).double()
    x = torch.randn(2, 3, 33, 46, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = MultiScale(net)
    with torch.no_grad():
        first, half, most, fused = many.train()(x)
        expected_half = net(bilinear(x, (16, 23), 0.5))
        expected_most = net(bilinear(x, (24, 34), 0.75))
        grid = tuple(first.shape[2:])
        layers = torch.stack([net(x), bilinear(expected_half, grid), bilinear(expected_most, grid)])
        torch.testing.assert_close(half, expected_half)
        torch.testing.assert_close(most, expected_most)
        torch.testing.assert_close(fused, layers.max(0)[0])
        assert torch.equal(first, net(x))
        assert torch.equal(many.eval()(x), fused)
        assert len({int(i) for i in layers.max(0)[1].flatten()}) == 3  # each scale wins somewhere
        alone = MultiScale(small(scales=())).double()
        assert len(alone.train()(x)) == 1
        assert alone.eval()(x).shape == first.shape


def test_norms_are_frozen_and_convolutions_are_not():
    net = MultiScale(small()).train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or p.requires_grad for norm in norms for p in norm.parameters())
    assert all(p.requires_grad for m in net.modules() if isinstance(m, torch.nn.Conv2d) for p in m.parameters())
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_what_runs_before_train_from_takes_no_gradient():
    net = small(train_from="aspp")
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if name.startswith("aspp.")
    }
    late = small(train_from="layer4", stride=16)
    trained = [name for name, p in late.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in trained} == {"trunk", "aspp"}
    assert all(name.startswith(("trunk.model.layer4.", "aspp.")) for name in trained)


def test_golden_start_from_a_class_map():
    """The pyramid's start, at the centre of each rate; classes that are not mapped keep theirs."""
    args = {"num_classes": 5}
    own: Any = load_model("timm/test_resnet", model_args=args, random_weights=True).model
    weights = own.fc.weight.detach()
    plain = small(model_args=args, rates=(1, 2))
    net = small(model_args=args, rates=(1, 2), class_map={1: (0, 4), 3: (2,)})
    for conv, before in zip(net.aspp, plain.aspp, strict=True):
        added = conv.weight - before.weight
        assert not added[[0, 2]].any()
        torch.testing.assert_close(added[1, :, 1, 1], (weights[[0, 4]].mean(0) - weights.mean(0)) / 2)
        torch.testing.assert_close(added[3, :, 1, 1], (weights[2] - weights.mean(0)) / 2)
        assert int((added != 0).sum()) == 2 * added.shape[1]
    with pytest.raises(AdvCAMError, match="timm/test_resnet has 5 classes and the new net 4: there is no"):
        small(model_args=args, class_map={1: (5,)})
    with pytest.raises(AdvCAMError, match="has no linear classifier"):
        deeplab(Backbone("torchvision/resnet101", random_weights=True), num_labels=3, class_map={1: (0,)})


def test_strides_and_dilations_of_resnet101(resnet):
    other = deeplab(Backbone("torchvision/resnet101", random_weights=True, stride=16), num_labels=3)
    for net, stride_in in ((resnet, "conv1"), (other, "conv2")):
        layers = net.trunk.model
        assert getattr(layers.layer2[0], stride_in).stride == layers.layer2[0].downsample[0].stride == (2, 2)
        assert layers.maxpool.ceil_mode
    assert {block.conv2.dilation for block in resnet.trunk.model.layer4} == {(4, 4)}
    assert {block.conv2.dilation for block in resnet.trunk.model.layer3} == {(2, 2)}
    assert {block.conv2.dilation for block in other.trunk.model.layer4} == {(2, 2)}
    with torch.no_grad():
        assert other(torch.zeros(1, 3, 65, 65)).shape == (1, 3, 5, 5)


@pytest.mark.slow
def test_other_backbones_have_the_stride():
    with torch.no_grad():
        for backbone in ("timm/res2net101_26w_4s", "res2net152_26w_4s"):
            net = deeplab(Backbone(backbone, random_weights=True, model_args={"base_width": 4}), 5)
            assert net(torch.zeros(1, 3, 33, 41)).shape == (1, 5, 5, 6)
            assert net.stride == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet101"}, "is made of torchvision/resnet101, timm/NAME or .*, not of 'resnet101'"),
        ({"num_labels": 1}, "the background and at least one class"),
        ({"name": "timm/test_resnet", "train_from": "aspq"}, "no module 'aspq' to train from; did you mean 'aspp'"),
        ({"rates": ()}, "rates must be at least 1"),
        ({"scales": (0.0,)}, "scales above 0"),
        ({"name": "torchvision/resnet101", "stride": 4}, "has the output strides 8, 16 and 32"),
        ({"name": "timm/densenet121"}, "has no dilation for output stride 8; try stride_mode='removal'"),
        ({"name": "res2net152d", "random_weights": False}, "give a checkpoint, or random weights"),
        ({"name": "torchvision/resnet101", "checkpoint": "x.pth", "random_weights": False}, "no such checkpoint"),
    ],
)
def test_what_cannot_be_made(options, message):
    with pytest.raises(AdvCAMError, match=message):
        small(**options)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_photographs_of_a_few_pixels(size):
    net = MultiScale(small()).eval()
    assert net(torch.zeros(1, 3, *size)).shape[:2] == (1, net.net.spec.num_labels)
