"""CAM nets: lowered strides, frozen stem, exact heads and class maps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from advcam_attr import heads
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import cam_net
from advcam_attr.networks.load import load_model
from advcam_attr.networks.strides import execution_order, output_stride, remove_strides
from advcam_attr.types import AdvCAMError
from build_net import build_net

SIZES = ((96, 128), (65, 97))
SEVEN = {"model_args": {"num_classes": 7}, "num_classes": 3}


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def frozen(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def test_golden_removal_keeps_what_the_strided_net_gave():
    """Without its stride, a layer gives what it gave before at every second cell, and what lies between."""
    torch.manual_seed(0)
    for last in (nn.Conv2d(4, 4, 2, stride=2), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, 2, 1),
                 nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2), nn.AvgPool2d(2, ceil_mode=True)):  # fmt: skip
        net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), last).eval()
        before, keys = net(image(32, 24)), list(net.state_dict())
        assert output_stride(net) == 4
        assert remove_strides(net, 2)
        after = net(image(32, 24))
        assert after.shape[2:] == (16, 12)
        assert torch.equal(after[:, :, ::2, ::2][:, :, : before.shape[2], : before.shape[3]], before)
        assert list(net.state_dict()) == keys


def test_golden_padded_pool():
    net = nn.Sequential(nn.MaxPool2d(2))
    assert remove_strides(net, 1)
    assert net(torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]])).tolist() == [[[[3.0, 2.0], [3.0, 0.0]]]]


class SideBranch(nn.Module):
    """A strided net with a strided summary beside it, on which the output's size does not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.main, self.short = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.summary = nn.AvgPool2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.main(x) + self.short(x) + self.summary(x).mean((2, 3), keepdim=True)


def test_only_strides_on_the_way_are_removed():
    net = SideBranch()
    assert remove_strides(net, 2)
    assert (net.first.stride, net.main.stride, net.short.stride) == ((2, 2), (1, 1), (1, 1))
    assert net.summary.stride == 4


def test_what_cannot_be_lowered_is_left_alone():
    class Slices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, ::2, ::2]

    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), Slices())
    assert not remove_strides(net, 2)
    assert output_stride(net) == 4
    assert net[0].stride == (2, 2)
    assert output_stride(nn.Sequential(nn.AdaptiveAvgPool2d(7))) is None


def test_the_net_is_not_touched_by_being_measured():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.MaxPool2d(2)).train()
    before = copy.deepcopy(net.state_dict())
    output_stride(net)
    execution_order(net)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(
        module.training and not module._forward_hooks and not module._forward_pre_hooks for module in net.modules()
    )


PADDED = ["resnet18", "mobilenetv2_100", "regnetx_002"]
DROPPING = ["convnext_atto", "vit_tiny_patch16_224"]
MORE = [
    "mobilenetv3_small_050", "resnet26d", "resnet50", "efficientnet_b0", "tf_efficientnet_b0", "ghostnet_050",
    "resnetv2_50", "nf_resnet26", "cspresnet50", "seresnext26ts", "res2net50_26w_4s", "xception41", "dpn48b",
    "skresnet18", "mixnet_s", "repvgg_a0", "hgnet_tiny", "rexnet_100", "fastvit_t8", "nextvit_small", "pvt_v2_b0",
    "mobilevit_xxs", "resnetblur18", "selecsls42b",
]  # fmt: skip
MORE_DROPPING = [
    "convnext_tiny", "vgg11_bn", "vovnet39a", "densenet121", "poolformer_s12", "edgenext_xx_small", "caformer_s18",
    "dla34",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", PADDED + DROPPING + [pytest.param(name, marks=pytest.mark.slow) for name in MORE + MORE_DROPPING]
)
def test_backbones_at_stride_16(name):
    net = cam_net(Backbone(f"timm/{name}", random_weights=True), 20)
    assert net.stride == 16
    with torch.no_grad():
        for height, width in SIZES if name in PADDED + MORE else SIZES[:1]:
            assert net.features(image(height, width)).shape[2:] == (math.ceil(height / 16), math.ceil(width / 16))
    view = heads.view(net)
    head = view.inspect(image(96, 96))
    assert head.exactness == "exact"
    assert head.grid == (6, 6)
    acts = view(image(96, 96))
    cam = torch.einsum("kc,bchw->bkhw", net.classifier.weight[:, :, 0, 0], acts.features)
    assert torch.allclose(cam.mean((2, 3)), acts.logits, atol=1e-4 * float(acts.logits.detach().abs().max()))


def test_the_own_stride_changes_nothing():
    import timm

    name = "resnet18"
    net = cam_net(Backbone(f"timm/{name}", random_weights=True, stride=32), 20)
    assert net.stride == 32
    plain = timm.create_model(name, num_classes=0, global_pool="").eval()
    plain.load_state_dict(net.backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(net.features(image(96, 96)), plain(image(96, 96)))


def test_stride_8_and_dilation():
    removed = cam_net(Backbone("timm/resnet18", random_weights=True, stride=8), 20)
    dilated = cam_net(Backbone("timm/resnet18", random_weights=True, stride=8, stride_mode="dilation"), 20)
    assert removed.stride == dilated.stride == 8
    assert removed.features(image(65, 96)).shape == dilated.features(image(65, 96)).shape == (1, 512, 9, 12)
    assert {m.dilation for m in removed.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert {m.dilation for m in dilated.modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (2, 2), (4, 4)}


@pytest.mark.slow
def test_patch_merging_keeps_its_stride():
    with pytest.raises(AdvCAMError, match="output stride 32, which cannot be lowered to 16 by removal; give stride=32"):
        cam_net(Backbone("timm/swin_tiny_patch4_window7_224", random_weights=True), 20)
    swin = cam_net(Backbone("timm/swin_tiny_patch4_window7_224", random_weights=True, stride=None), 20)
    assert swin.stride == 32
    assert swin.features(image(224, 224)).shape == (1, 768, 7, 7)


def test_irns_net():
    net = cam_net(Backbone("torchvision/resnet50", random_weights=True), 20)
    keys = set(net.state_dict())
    assert {key.split(".")[0] for key in keys} == {"resnet50", "classifier"}
    assert {key.split(".")[1] for key in keys if key.startswith("resnet50")} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4"
    }  # fmt: skip
    assert net.classifier.weight.shape == (20, 2048, 1, 1)
    assert net.classifier.bias is None
    convs = [m for m in net.resnet50.modules() if isinstance(m, nn.Conv2d)]
    assert [m.stride for m in net.resnet50.layer4.modules() if isinstance(m, nn.Conv2d)].count((1, 1)) == 10
    assert {m.dilation for m in convs} == {(1, 1)}
    assert net.features(image(65, 96)).shape == (1, 2048, 5, 6)
    assert frozen(net) == {"resnet50.conv1.weight", "resnet50.bn1.weight", "resnet50.bn1.bias"}
    assert heads.view(net).inspect(image(65, 96)).exactness == "exact"


def test_irns_stride_8():
    net = cam_net(Backbone("torchvision/resnet50", random_weights=True, stride=8, stride_mode="dilation"), 20)
    for layer in (net.resnet50.layer3, net.resnet50.layer4):
        assert [block.conv2.stride for block in layer] == [(1, 1)] * len(layer)
        assert [block.conv2.dilation for block in layer] == [(1, 1)] + [(2, 2)] * (len(layer) - 1)
    assert net.features(image(65, 96)).shape == (1, 2048, 9, 12)


def test_train_from():
    stem = {"resnet50.conv1.weight", "resnet50.bn1.weight", "resnet50.bn1.bias"}
    net = cam_net(Backbone("torchvision/resnet50", random_weights=True, train_from="layer3"), 20)
    assert {name.split(".")[1] for name in frozen(net)} == {"conv1", "bn1", "layer1", "layer2"}
    assert stem < frozen(net)
    probe = cam_net(Backbone("timm/resnet18", random_weights=True, stride=None, train_from="classifier"), 20)
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {"classifier.weight"}
    late = cam_net(Backbone("timm/mobilenetv2_100", random_weights=True, stride=None, train_from="blocks.5"), 20)
    trained = {n.split(".")[1] + "." + n.split(".")[2] for n, p in late.backbone.named_parameters(prefix="b")
               if p.requires_grad}  # fmt: skip
    assert trained == {"blocks.5", "blocks.6", "conv_head.weight", "bn2.weight", "bn2.bias"}


def test_norms_use_their_running_statistics_in_training():
    net = cam_net(Backbone("timm/resnet18", random_weights=True), 20)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    net.train()
    assert net.training
    assert net.backbone.layer1.training
    assert not any(norm.training for norm in norms)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    trained = net(image(64, 64))
    assert torch.equal(trained, net.eval()(image(64, 64)))
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())


def test_golden_start_from_a_class_map():
    """The mean of the mapped classes' weights, less the mean of all; 0 for a class that is not mapped."""
    own = load_model("timm/resnet18", model_args={"num_classes": 7}, random_weights=True).model.get_classifier().weight
    net = cam_net(
        Backbone("timm/resnet18", model_args={"num_classes": 7}, random_weights=True, stride=None),
        3,
        class_map={0: (2, 5), 2: (6,)},
    )
    expected = torch.stack([(own[2] + own[5]) / 2 - own.mean(0), torch.zeros(512), own[6] - own.mean(0)])
    assert torch.allclose(net.classifier.weight[:, :, 0, 0], expected, atol=1e-7)
    assert net.classifier.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm/resnet19"}, "unknown model 'timm/resnet19'"),
        ({"name": "resnet18"}, "are made of torchvision/resnet50 or timm/NAME, not of 'resnet18'"),
        ({"num_classes": 0}, "at least one class"),
        ({"stride": 5}, "output stride 32, which cannot be lowered to 5"),
        ({"train_from": "layer5"}, "no module 'layer5' to train from; did you mean 'layer"),
        ({"name": "timm/densenet121", "stride_mode": "dilation"}, "has no dilation for output stride 16"),
        ({"name": "torchvision/resnet50", "stride": 12}, "no output stride 12; there are 8, 16 and 32"),
        ({"name": "timm/vgg11", "class_map": {0: (1,)}}, "no linear classifier on its last maps"),
        ({**SEVEN, "class_map": {0: (7,)}}, "has 7 classes and the new net 3: there is no"),
        ({**SEVEN, "class_map": {3: (1,)}}, "there is no"),
        ({**SEVEN, "class_map": {0: (-1,)}}, "there is no"),
    ],
)
def test_what_cannot_be_made(arguments, message):
    with pytest.raises(AdvCAMError, match=message):
        build_net(cam_net, **({"name": "timm/resnet18", "num_classes": 20} | arguments))


def test_irns_start_without_network(monkeypatch):
    from torchvision.models import ResNet50_Weights

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(AdvCAMError, match="pretrained weights of torchvision/resnet50 cannot be downloaded"):
        cam_net("torchvision/resnet50", 20)


def test_real_weights(data_root):
    args = {"num_classes": 1001, "pad_type": "same"}
    file = data_root / "weights" / "mobilenetv2_100_imagenet.safetensors"
    net = cam_net(Backbone("timm/mobilenetv2_100", model_args=args, checkpoint=file), 20)
    assert (net.mean, net.std, net.stride) == ((0.5,) * 3, (0.5,) * 3, 16)
    assert not any(key.startswith("backbone.classifier") for key in net.state_dict())
    assert heads.view(net).inspect(image(96, 128)).exactness == "exact"
