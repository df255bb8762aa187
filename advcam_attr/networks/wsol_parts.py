"""Architectures of classifiers for localization: ResNet-50, Inception-V3, VGG-16, and timm models.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020), whose keys the state dicts
have. Each ends in global average pooling, so that class activation maps are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import cfgs, make_layers

from advcam_attr.networks.freezing import running_norms
from advcam_attr.networks.net_file import NetSpec
from advcam_attr.networks.timm_trunk import TimmTrunk
from advcam_attr.types import AdvCAMError

#: ``batch``: norms use the batch's statistics in training and update the running ones. ``running``: they always use the
#: running ones, and never update them.
Norms = Literal["batch", "running"]


@dataclass(frozen=True)
class WSOLNetSpec(NetSpec):
    key: ClassVar[str] = "wsol_net"
    title: ClassVar[str] = "localization classifier"

    num_classes: int
    norms: Norms = "batch"


class WSOLNet(nn.Module):
    """A classifier for localization.

    Attributes:
        head: prefixes of the weights that no published backbone has.
        fast: prefixes of the weights that are trained at ten times the learning rate.
        unread: prefixes of the keys of a published backbone that the net has no place for.
        stride: the output stride.
        mean, std: the normalization, by channel, for RGB in [0, 1].
    """

    head: ClassVar[tuple[str, ...]] = ("fc.",)
    fast: ClassVar[tuple[str, ...]] = ("fc.",)
    unread: ClassVar[tuple[str, ...]] = ()

    spec: WSOLNetSpec
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def train(self, mode: bool = True) -> WSOLNet:
        """Set training mode for all but the norms that are frozen, or that use their running statistics."""
        super().train(mode)
        for norm in running_norms(self):
            weights = list(norm.parameters())
            if self.spec.norms == "running" or (weights and not any(w.requires_grad for w in weights)):
                norm.eval()
        return self

    def own_keys(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of a published backbone by the names that they have here."""
        return weights


def _checked_stride(spec: WSOLNetSpec) -> int:
    stride = spec.backbone.max_stride
    if stride not in (8, 16):
        raise AdvCAMError(f"{spec.backbone.name} for localization has output stride 16 or 8, not {stride}")
    return stride


class ResNet50WSOL(WSOLNet, ResNet):
    """ResNet-50 whose layer4 has stride 1, without dilation; and layer3 too, for stride 8. Keys are torchvision's."""

    fast = ("layer4.", "fc.")

    def __init__(self, spec: WSOLNetSpec) -> None:
        ResNet.__init__(self, Bottleneck, [3, 4, 6, 3], num_classes=spec.num_classes)
        self.spec, self.stride = spec, _checked_stride(spec)
        net: Any = self
        for layer in (net.layer4,) if self.stride == 16 else (net.layer3, net.layer4):
            layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
        new_classifier(net.fc)


class InceptionV3WSOL(WSOLNet):
    """Inception-V3 up to ``Mixed_6e`` on a finer grid, and the head of SPG, whose ``SPG_A4`` gives the class maps.

    Unlike in torchvision's net, ``Conv2d_1a_3x3`` and the early pools are padded, and ``Mixed_6a`` has stride 1.
    """

    head = fast = ("SPG_",)
    unread = ("AuxLogits.", "Mixed_7", "fc.")

    def __init__(self, spec: WSOLNetSpec) -> None:
        super().__init__()
        self.spec, self.stride = spec, _checked_stride(spec)
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2, padding=1)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = _InceptionBStride1(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.SPG_A3_1b = nn.Sequential(nn.Conv2d(768, 1024, 3, padding=1), nn.ReLU())
        self.SPG_A3_2b = nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU())
        self.SPG_A4 = nn.Conv2d(1024, spec.num_classes, 1)
        for name, parameter in self.named_parameters():
            if name.startswith(self.head):
                (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        if self.stride == 16:
            x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.SPG_A3_1b(F.dropout(x, 0.5, self.training))
        x = self.SPG_A3_2b(F.dropout(x, 0.5, self.training))
        maps = self.SPG_A4(F.dropout(x, 0.5, self.training))
        logits: Tensor = maps.mean((2, 3))
        return logits


class _InceptionBStride1(InceptionB):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        for branch in (self.branch3x3, self.branch3x3dbl_3):
            branch.conv.stride, branch.conv.padding = (1, 1), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=1, padding=1)], 1)


class VGG16WSOL(WSOLNet):
    """VGG-16 without its last pool (for stride 8, its last two), a convolution of 1024 channels, and the classifier.

    Without the fourth pool, the layers behind it have other numbers than torchvision's, as in Choe et al.'s files.
    """

    head = fast = ("conv6.", "fc.")
    unread = ("classifier.",)
    _FOURTH_POOL = 23

    def __init__(self, spec: WSOLNetSpec) -> None:
        super().__init__()
        self.spec, self.stride = spec, _checked_stride(spec)
        layers = list(make_layers(cfgs["D"], batch_norm=False))[:-1]
        if self.stride == 8:
            del layers[self._FOURTH_POOL]
        self.features = nn.Sequential(*layers)
        self.conv6 = nn.Conv2d(512, 1024, 3, padding=1)
        self.fc = nn.Linear(1024, spec.num_classes)
        new_classifier(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.conv6(self.features(x))).mean((2, 3)))
        return logits

    def own_keys(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of torchvision's VGG-16 by the numbers that their layers have here."""
        if self.stride == 16 or "features.28.weight" not in weights:
            return weights
        return {self._own_key(key): value for key, value in weights.items()}

    def _own_key(self, key: str) -> str:
        part, _, rest = key.partition(".")
        number, _, what = rest.partition(".")
        if part != "features" or not number.isdecimal() or int(number) < self._FOURTH_POOL:
            return key
        return f"features.{int(number) - 1}.{what}"


class TimmWSOL(WSOLNet):
    """The features of a timm model, global average pooling, and a linear classifier with bias."""

    fast = ("fc.", "backbone.layer4.")

    def __init__(self, spec: WSOLNetSpec, trunk: TimmTrunk) -> None:
        super().__init__()
        self.spec, self.stride = spec, trunk.stride
        self.backbone, self._reader = trunk.model, trunk.reader
        self.fc = nn.Linear(trunk.reader.channels, spec.num_classes)
        new_classifier(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self._reader(self.backbone, x).mean((2, 3)))
        return logits


def new_classifier(layer: nn.Linear) -> None:
    """Draw weights from N(0, 0.01²) and set the bias to 0, as Choe et al."""
    nn.init.normal_(layer.weight, 0, 0.01)
    nn.init.zeros_(layer.bias)


def parameter_groups(net: WSOLNet) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights that are trained at the learning rate, and those that are at ten times it.

    The latter are layer4 and the classifier of a ResNet, the head of SPG in Inception-V3, conv6 and the classifier of
    VGG-16, and the classifier of other nets.
    """
    slow: list[nn.Parameter] = []
    fast: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (fast if name.startswith(net.fast) else slow).append(parameter)
    return slow, fast


#: The architectures that are defined here, by torchvision's names.
ARCHITECTURES: dict[str, type[WSOLNet]] = {
    "torchvision/resnet50": ResNet50WSOL,
    "torchvision/inception_v3": InceptionV3WSOL,
    "torchvision/vgg16": VGG16WSOL,
}

#: A key that only the authors' files of each net have.
SIGNATURE_KEYS: Sequence[tuple[str, str]] = (
    ("SPG_A4.weight", "torchvision/inception_v3"),
    ("conv6.weight", "torchvision/vgg16"),
    ("layer4.2.conv3.weight", "torchvision/resnet50"),
)
