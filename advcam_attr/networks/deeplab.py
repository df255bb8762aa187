"""DeepLab-v2: dilated features, a pyramid of dilated 3 × 3 convolutions summed, and several scales.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected
CRFs", 2018: a ResNet-101 whose last two stages are dilated instead of strided. Any backbone can take its place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.authors import caffe_weights, is_caffe
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import mapped_weights
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, seeded
from advcam_attr.networks.freezing import FrozenStatistics, apply_train_from, running_norms
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.resnet101 import RES2NETS, RESNET101, StrideIn, res2net_trunk, resnet_trunk, resnet_weights
from advcam_attr.networks.timm_trunk import FeatureReader, TimmTrunk, timm_trunk
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class DeepLabSpec(NetSpec):
    key: ClassVar[str] = "deeplab"
    title: ClassVar[str] = "DeepLab"

    num_labels: int
    stride_in: StrideIn = "3x3"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    scales: tuple[float, ...] = (0.5, 0.75)

    @property
    def num_names(self) -> int:
        return self.num_labels - 1


class ASPP(nn.ModuleList):
    """Atrous spatial pyramid pooling: 3 × 3 convolutions of several dilations, summed.

    Weights are drawn from N(0, 0.01²), biases are 0. Each rate is its convolution's dilation and padding.
    """

    def __init__(self, channels: int, num_labels: int, rates: Sequence[int]) -> None:
        super().__init__(nn.Conv2d(channels, num_labels, 3, padding=rate, dilation=rate) for rate in rates)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def start_from(self, weights: Tensor) -> None:
        """Add an equal share of a 1 × 1 classifier's weights ``(K, C)`` to the center of each convolution."""
        for conv in self:
            conv.weight[:, :, 1, 1] += weights / len(self)  # type: ignore[index, operator]

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = sum(conv(x) for conv in self)
        return total


class BackboneFeatures(nn.Module):
    def __init__(self, model: nn.Module, reader: FeatureReader) -> None:
        super().__init__()
        self.model, self.reader = model, reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.model, x)


class DeepLab(FrozenStatistics):
    """Features and `ASPP`, at the scale of the image.

    Norms are frozen with their affine weights, which deeplab-pytorch does not optimize; so is what runs before
    ``spec.backbone.train_from``.
    """

    def __init__(self, spec: DeepLabSpec, trunk: TimmTrunk, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.spec = replace(spec, backbone=spec.backbone.without_weights(mean, std))
        self.stride, self.mean, self.std = trunk.stride, tuple(mean), tuple(std)
        self.trunk = BackboneFeatures(trunk.model, trunk.reader)
        self.aspp = ASPP(trunk.reader.channels, spec.num_labels, spec.rates)
        for norm in running_norms(self.trunk):
            norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, K, h, w)`` of images ``(N, 3, H, W)``, on the grid of the output stride."""
        logits: Tensor = self.aspp(self.trunk(x))
        return logits


def _scaled(x: Tensor, scale: float) -> Tensor:
    if min(x.shape[2:]) * scale >= 1:
        return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    size = [max(1, int(side * scale)) for side in x.shape[2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class MultiScale(nn.Module):
    """DeepLab at scale 1 and at ``net.spec.scales`` with the same weights (deeplab-pytorch's MSC)."""

    def __init__(self, net: DeepLab) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits of normalized images ``(N, 3, H, W)``.

        In eval mode they are the element-wise maximum over all scales, ``(N, K, h, w)`` on the grid of scale 1. In
        training mode, those of scale 1, those of each other scale on its own grid, and the maximum.
        """
        first: Tensor = self.net(x)
        others = [self.net(_scaled(x, scale)) for scale in self.net.spec.scales]
        enlarged = (F.interpolate(o, first.shape[2:], mode="bilinear", align_corners=False) for o in others)
        greatest = functools.reduce(torch.maximum, enlarged, first)
        if not self.training:
            return greatest
        return (first, *others, greatest) if others else (first,)


def deeplab(
    backbone: Backbone | str = RESNET101,
    num_labels: int = 21,
    *,
    stride_in: StrideIn | None = None,
    rates: Sequence[int] = (6, 12, 18, 24),
    scales: Sequence[float] = (0.5, 0.75),
    seed: int = 0,
    class_map: Mapping[int, Sequence[int]] | None = None,
) -> DeepLab:
    """Make a DeepLab-v2 with a new pyramid on a pretrained backbone: in eval mode, on the CPU.

    The pretrained weights of ``torchvision/resnet101`` are ``IMAGENET1K_V1``. Its checkpoint may have torchvision's
    keys, or those of deeplab-pytorch's nets, converted from Caffe. The classifier or pyramid in it is dropped.

    Args:
        backbone: ``torchvision/resnet101``, the paper's; ``timm/NAME``; or ``res2net152_26w_4s`` or ``res2net152d``,
            which timm does not define. By default of output stride 8 by dilation. Its ``train_from`` may be ``"aspp"``,
            which trains the pyramid alone; None trains all, as deeplab-pytorch does.
        num_labels: K, including the background.
        stride_in: which convolution of a ResNet-101's bottleneck has the stride: ``"1x1"`` as in Caffe, ``"3x3"`` as in
            torchvision. By default as the weights were trained, by their keys.
        rates: the pyramid's dilations, in cells of the features.
        scales: those besides 1 of `MultiScale`.
        seed: of the pyramid's weights.
        class_map: for some of the labels, the classes of the backbone's own linear classifier that depict them, from
            whose weights the pyramid starts; see `advcam_attr.networks.cam_net.mapped_weights`.

    Raises:
        AdvCAMError: the backbone is unknown, its weights cannot be loaded, or it cannot have the stride, ``train_from``
            or ``class_map``.

    Example:
        >>> net = deeplab(Backbone("timm/test_resnet", random_weights=True), 21)
        >>> net(torch.zeros(1, 3, 65, 64)).shape, MultiScale(net).train()(torch.zeros(1, 3, 64, 64))[1].shape
        (torch.Size([1, 21, 9, 8]), torch.Size([1, 21, 4, 4]))
    """
    if num_labels < 2:
        raise AdvCAMError(f"DeepLab needs the background and at least one class, got num_labels={num_labels}")
    if not rates or min(rates) < 1 or any(not scale > 0 for scale in scales):
        raise AdvCAMError(
            f"DeepLab: rates must be at least 1 and scales above 0, got rates {tuple(rates)}, scales {tuple(scales)}"
        )
    backbone = Backbone.of(backbone, stride=8, stride_mode="dilation")
    name = backbone.name
    spec = DeepLabSpec(backbone, num_labels, stride_in or "3x3", tuple(map(int, rates)), tuple(map(float, scales)))
    if name == RESNET101:
        weights, trained_in = resnet_weights(backbone)
        spec = replace(spec, stride_in=stride_in or trained_in)
        trunk = resnet_trunk(backbone, weights, spec.stride_in)
    elif name in RES2NETS:
        trunk = res2net_trunk(backbone)
    elif backbone.is_timm:
        trunk = timm_trunk(backbone)
    else:
        raise AdvCAMError(f"DeepLab is made of {RESNET101}, timm/NAME or {' or '.join(RES2NETS)}, not of {name!r}")
    with seeded(seed):
        net = DeepLab(spec, trunk, backbone.mean or trunk.mean, backbone.std or trunk.std).eval()
    if class_map is not None:
        net.aspp.start_from(mapped_weights(trunk.classifier, class_map, num_labels, trunk.reader.channels, name))
    apply_train_from(net, backbone, "trunk.model", trunk.size)
    return net


def _published(checkpoint: Checkpoint) -> DeepLab:
    if not is_caffe(checkpoint):
        raise AdvCAMError(f"{checkpoint.path} does not say which DeepLab it holds; give a file that was trained here")
    found = caffe_weights(checkpoint)
    head = found.weights.get("aspp.0.weight")
    if head is None or not head.ndim:
        raise AdvCAMError(
            f"{checkpoint.path} is a backbone alone, without aspp.c0.weight; give it as the checkpoint of a training"
        )
    backbone = Backbone(RESNET101, random_weights=True, mean=found.floats("mean"), std=found.floats("std"))
    net = deeplab(backbone, max(2, len(head)), stride_in="1x1")
    weights = {key if key.startswith("aspp.") else f"trunk.model.{key}": value for key, value in found.weights.items()}
    load_weights(net, replace(found, weights=weights), f"DeepLab on {RESNET101}")
    return net


DEEPLAB = NetKind(DeepLabSpec, deeplab, _published)
