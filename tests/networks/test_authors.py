"""Files of IRN's CAM net, under all names of its weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from advcam_attr import AdvCAMError, heads
from advcam_attr.networks.authors import irn_cam_weights
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAMNetSpec, ResNet50CAM
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.networks.generators import load_generator
from logs import record_log


class IRNet(nn.Module):
    """Registers its modules as IRN's net does."""

    def __init__(self, resnet: nn.Module, classes: int = 20) -> None:
        super().__init__()
        self.resnet50 = resnet
        self.stage1 = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1)
        self.stage2, self.stage3, self.stage4 = (nn.Sequential(getattr(resnet, f"layer{i}")) for i in (2, 3, 4))
        self.classifier = nn.Conv2d(2048, classes, 1, bias=False)
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4])
        self.newly_added = nn.ModuleList([self.classifier])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.classifier(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def cam_net(blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 20) -> ResNet50CAM:
    resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(blocks))
    spec = CAMNetSpec(Backbone("torchvision/resnet50", stride=16), classes)
    return ResNet50CAM(spec, resnet, (0.5,) * 3, (0.5,) * 3).eval()


def resnet50_of_stride_16(blocks: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(blocks))
    resnet.layer4[0].conv2.stride = resnet.layer4[0].downsample[0].stride = (1, 1)
    del resnet.fc
    return resnet


def test_irn_keys_of_the_published_net_are_those_of_resnet50():
    with torch.device("meta"):
        keys = list(IRNet(resnet50_of_stride_16()).state_dict())
        expected = cam_net().state_dict()
    found = irn_cam_weights(Checkpoint(Path("irn.pth"), dict.fromkeys(keys, torch.ones(())), {}))
    assert set(found.checkpoint.weights) == set(expected)
    assert len(found.ignored) == 2 * (len(expected) - 1) + 1
    roots = "backbone.*, newly_added.*, stage1.*, stage2.*, stage3.*, stage4.*"
    assert found.note == f"ignored {len(found.ignored)} keys ({roots}): further names of weights that are used"


@pytest.mark.parametrize("stored", [".*", "module", "stage|classifier", "backbone|newly_added", "resnet50|classifier"])
def test_irn_files_load_whichever_names_they_hold(tmp_path, stored):
    torch.manual_seed(0)
    irn = IRNet(resnet50_of_stride_16((1, 1, 1, 1)), classes=3).eval()
    prefix = "module." if stored == "module" else ""
    pattern = ".*" if prefix else stored
    weights = {prefix + k: v for k, v in irn.state_dict().items() if re.match(pattern, k)}
    torch.save(weights | {f"{prefix}resnet50.fc.bias": torch.ones(1000)}, tmp_path / "irn.pth")
    found = irn_cam_weights(read_checkpoint(tmp_path / "irn.pth"))
    assert "ImageNet's classifier" in found.note
    torch.manual_seed(1)
    net = cam_net((1, 1, 1, 1), classes=3)
    load_weights(net, found.checkpoint, "irn")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(net(x), irn(x))


def test_the_published_net_loads_by_its_name(tmp_path):
    torch.manual_seed(0)
    irn = IRNet(resnet50_of_stride_16(), classes=7).eval()
    weights = {f"module.{key}": value for key, value in irn.state_dict().items()}
    torch.save(weights, tmp_path / "res50_cam.pth")
    state, logged = torch.get_rng_state(), record_log()
    net = load_generator("irn", tmp_path / "res50_cam.pth")
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert (net.stride, net.mean, net.std) == (16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert len(logged) == 1
    assert logged[0].startswith(
        f"ignored {2 * len(list(irn.resnet50.state_dict())) + 1} keys (backbone.*, newly_added.*"
    )
    x = torch.rand(1, 3, 64, 48)
    torch.testing.assert_close(net(x), irn(x))
    assert heads.view(net).inspect(x).exactness == "exact"
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(AdvCAMError, match=r"other\.pth does not fit irn: 266 missing keys") as error:
        load_generator("irn", tmp_path / "other.pth")
    assert "\n" not in str(error.value)


def test_contradictory_irn_files_raise():
    weights = {"resnet50.conv1.weight": torch.ones(2), "backbone.0.0.weight": torch.zeros(2)}
    with pytest.raises(AdvCAMError, match=r"x\.pth is rejected: resnet50\.conv1\.weight and backbone\.0\.0\.weight"):
        irn_cam_weights(Checkpoint(Path("x.pth"), weights, {}))
    more = dict.fromkeys(["resnet50.conv1.weight", "stage5.0.weight", "fc_edge1.0.weight"], torch.ones(2))
    assert set(irn_cam_weights(Checkpoint(Path("x.pth"), more, {})).checkpoint.weights) == set(more)
