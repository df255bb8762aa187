"""IRN's net: feature maps of the backbone, branches of the authors' net, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from advcam_attr.networks.authors import irnet_weights
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAMNetSpec, ResNet50CAM
from advcam_attr.networks.checkpoint import Checkpoint, load_weights
from advcam_attr.networks.irnet import IRNET, IRNet, MeanShift, irnet
from advcam_attr.networks.net_file import load_net
from advcam_attr.types import AdvCAMError

STAGES = tuple(f"resnet50.layer{n}" for n in range(1, 5))


def resnet(blocks: tuple[int, ...] = (1, 1, 1, 1)) -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(blocks))


def small(seed: int = 0) -> IRNet:
    torch.manual_seed(seed)
    trunk = ResNet50CAM(CAMNetSpec(Backbone("torchvision/resnet50", stride=16), 1), resnet(), (0.5,) * 3, (0.5,) * 3)
    return IRNet(trunk, STAGES, seed).eval()


class Authors(nn.Module):
    """A re-derivation: modules by the names of the authors' files, scale factors as they state them."""

    def __init__(self, blocks: tuple[int, ...] = (1, 1, 1, 1)) -> None:
        super().__init__()
        r = resnet(blocks)
        r.layer4[0].conv2.stride = r.layer4[0].downsample[0].stride = (1, 1)
        del r.fc
        self.resnet50 = r
        self.stage1 = nn.Sequential(r.conv1, r.bn1, r.relu, r.maxpool)
        self.stage2, self.stage3, self.stage4, self.stage5 = (
            nn.Sequential(layer) for layer in (r.layer1, r.layer2, r.layer3, r.layer4)
        )
        self.mean_shift = MeanShift(2)

        def branch(wide: int, narrow: int, groups: int, *more: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Conv2d(wide, narrow, 1, bias=False), nn.GroupNorm(groups, narrow), *more)

        up = nn.Upsample
        kw = {"mode": "bilinear", "align_corners": False}
        self.fc_edge1, self.fc_edge2 = branch(64, 32, 4, nn.ReLU()), branch(256, 32, 4, nn.ReLU())
        self.fc_edge3 = branch(512, 32, 4, up(scale_factor=2, **kw), nn.ReLU())
        self.fc_edge4 = branch(1024, 32, 4, up(scale_factor=4, **kw), nn.ReLU())
        self.fc_edge5 = branch(2048, 32, 4, up(scale_factor=4, **kw), nn.ReLU())
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.fc_dp1, self.fc_dp2 = branch(64, 64, 8, nn.ReLU()), branch(256, 128, 16, nn.ReLU())
        self.fc_dp3 = branch(512, 256, 16, nn.ReLU())
        self.fc_dp4 = branch(1024, 256, 16, up(scale_factor=2, **kw), nn.ReLU())
        self.fc_dp5 = branch(2048, 256, 16, up(scale_factor=2, **kw), nn.ReLU())
        self.fc_dp6 = branch(768, 256, 16, up(scale_factor=2, **kw), nn.ReLU())
        self.fc_dp7 = branch(448, 256, 16, nn.ReLU(), nn.Conv2d(256, 2, 1, bias=False), self.mean_shift)
        self.backbone = nn.ModuleList(getattr(self, f"stage{n}") for n in range(1, 6))
        self.edge_layers = nn.ModuleList(getattr(self, f"fc_edge{n}") for n in range(1, 7))
        self.dp_layers = nn.ModuleList(getattr(self, f"fc_dp{n}") for n in range(1, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        taps = []
        for stage in self.backbone:
            x = stage(x)
            taps.append(x)
        h, w = taps[1].shape[2:]
        edges = [layer(tap)[..., :h, :w] for layer, tap in zip(self.edge_layers[:5], taps, strict=True)]
        d1, d2, d3, d4, d5 = (layer(tap) for layer, tap in zip(self.dp_layers[:5], taps, strict=True))
        eighth = d3.shape[2], d3.shape[3]
        d6 = self.fc_dp6(torch.cat([d3, d4[..., : eighth[0], : eighth[1]], d5[..., : eighth[0], : eighth[1]]], 1))
        displacement = self.fc_dp7(torch.cat([d1, d2, d6[..., :h, :w]], 1))
        return self.fc_edge6(torch.cat(edges, 1)), displacement


def image(height: int = 70, width: int = 90) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def authors() -> Authors:
    torch.manual_seed(3)
    net = Authors().eval()
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return net


def authors_file(net: Authors) -> dict[str, Tensor]:
    paths = {f"path_indices{n}": torch.arange(4) for n in range(3)}
    return {**net.state_dict(), **paths, "disp_target": torch.zeros(1, 2, 152, 1)}


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 129)])
@torch.no_grad()
def test_the_branches_are_those_of_the_authors_net(authors, size):
    net = small()
    found = irnet_weights(Checkpoint(Path("res50_irn.pth"), authors_file(authors), {}))
    load_weights(net, found.checkpoint, "irn")
    edge, displacement = authors(image(*size))
    out = net(image(*size))
    assert out.shape == (1, 3, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(out, torch.cat([edge, displacement], 1), rtol=1e-5, atol=1e-5)


def test_every_key_of_the_authors_file_is_used_or_named(authors):
    found = irnet_weights(Checkpoint(Path("res50_irn.pth"), authors_file(authors), {}))
    assert set(found.checkpoint.weights) == set(small().state_dict())
    assert {k for k in found.ignored if k.startswith(("path", "disp"))} == {
        "path_indices0", "path_indices1", "path_indices2", "disp_target",
    }  # fmt: skip
    assert len(found.checkpoint.weights) + len(found.ignored) == len(authors_file(authors))
    assert "indices of paths, which are computed" in found.note


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (("fc_edge6", "edge_layers.5"), {}, "2 missing keys .fc_edge6"),
        ((), {"classifier.weight": torch.zeros(20, 2048, 1, 1)}, "unexpected keys .classifier.weight"),
        ((), {"edge_layers.5.bias": torch.full((1,), 9.0)}, "one tensor"),
    ],
)
def test_files_that_do_not_fit_raise(authors, drop, add, message):
    weights = {k: v for k, v in authors_file(authors).items() if not any(part in k for part in drop)} | add
    with pytest.raises(AdvCAMError, match=message):
        load_weights(small(), irnet_weights(Checkpoint(Path("x.pth"), weights, {})).checkpoint, "irn")


@pytest.mark.slow
def test_an_authors_file_of_resnet50_loads(tmp_path):
    torch.manual_seed(5)
    net = Authors((3, 4, 6, 3)).eval()
    torch.save(authors_file(net), tmp_path / "res50_irn.pth")
    loaded, _ = load_net(tmp_path / "res50_irn.pth", IRNET)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image())[:, :1], net(image())[0], rtol=1e-4, atol=1e-4)


def test_the_backbone_is_frozen_and_the_branches_learn():
    net = small().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    out = net(image())
    out.square().sum().backward()
    grads = {name for name, p in net.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in grads} == {f"fc_edge{n}" for n in range(1, 7)} | {
        f"fc_dp{n}" for n in range(1, 8)
    }
    learning = {id(p) for p in (*net.edge_parameters(), *net.displacement_parameters())}
    assert learning == {id(p) for p in net.parameters() if p.requires_grad}
    assert not any(module.training for module in net.trunk.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_golden_mean_shift():
    shift = MeanShift(2)
    shift.running_mean.copy_(torch.tensor([1.0, -2.0]))
    x = torch.zeros(1, 2, 1, 1)
    assert shift.train()(x).flatten().tolist() == [0, 0]
    assert shift.eval()(x).flatten().tolist() == [-1, 2]


def test_taps_of_a_finer_first_map_are_pooled_to_the_grid(tmp_path):
    net = irnet(Backbone("timm/test_efficientnet", random_weights=True))
    taps = net.taps(image(72, 88))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(16, 36, 44), (24, 18, 22), (32, 9, 11), (48, 5, 6), (64, 5, 6)]
    normed = net.fc_edge1[:2](taps[0])
    torch.testing.assert_close(net.fc_edge1(taps[0]), F.avg_pool2d(normed, 2).relu())
    assert net(image(72, 88)).shape == (1, 3, 18, 22)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "test_convnext", "vgg11"])
def test_the_branches_sit_on_any_backbone_with_stages(name):
    net = irnet(Backbone(f"timm/{name}", random_weights=True))
    assert net(image(64, 96)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_backbones_without_stages_raise(name):
    with pytest.raises(AdvCAMError) as error:
        irnet(Backbone(f"timm/{name}", random_weights=True))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
