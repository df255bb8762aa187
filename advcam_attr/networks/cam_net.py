"""CAM nets: features of a backbone, global average pooling, and a 1 × 1 convolution without bias.

The net of AdvCAM's seeds is IRN's: a ResNet-50 whose last stride is removed. Any backbone can take its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import load_weights, seeded
from advcam_attr.networks.defaults import IRN_BACKBONE
from advcam_attr.networks.freezing import FrozenStatistics, first_trained, freeze_before, weight_owners
from advcam_attr.networks.load import first_published
from advcam_attr.networks.loaded_model import LoadedModel
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.strides import execution_order
from advcam_attr.networks.timm_trunk import TimmTrunk, load_backbone, timm_trunk
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class CAMNetSpec(NetSpec):
    key: ClassVar[str] = "cam_net"
    title: ClassVar[str] = "CAM net"

    num_classes: int


class CAMNet(FrozenStatistics):
    """Features, global average pooling, and a 1 × 1 convolution without bias; so class activation maps are exact.

    The stem and what comes before ``spec.backbone.train_from`` are frozen, as are the statistics of norms.

    Attributes:
        stride: the output stride.
        mean, std: the normalization, by channel, for RGB in [0, 1].
        classifier: the 1 × 1 convolution; weights ``(K, C, 1, 1)``.
    """

    def __init__(
        self, spec: CAMNetSpec, stride: int, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.spec, self.stride = replace(spec, backbone=spec.backbone.without_weights(mean, std)), stride
        self.mean, self.std = tuple(mean), tuple(std)
        self.classifier = nn.Conv2d(channels, spec.num_classes, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Return the maps ``(N, C, h, w)`` that are pooled, of images ``(N, 3, H, W)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of images ``(N, 3, H, W)``."""
        pooled = self.features(x).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(pooled)[:, :, 0, 0]
        return logits


class ResNet50CAM(CAMNet):
    """IRN's CAM net; its state dict has IRN's keys ``resnet50.*`` and ``classifier.weight``, and no others.

    Output stride 16 is layer4 with stride 1; 8 is layer3 too. By dilation, the convolutions of these layers are dilated
    by 2, except in the first block of each (IRN's stride-8 option). torchvision's ResNet-50 is changed in place.
    """

    @property
    def cell_layout(self) -> Literal["irn", "blocks"]:
        """Where its maps lie over an image, see `advcam_attr.pipelines.map_settings.MapSettings`."""
        return "irn" if self.stride == 16 else "blocks"

    def __init__(self, spec: CAMNetSpec, resnet: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        stride = min(spec.backbone.max_stride or 32, 32)
        if stride not in (8, 16, 32):
            raise AdvCAMError(f"{spec.backbone.name} has no output stride {stride}; there are 8, 16 and 32")
        super().__init__(spec, stride, 2048, mean, std)
        net: Any = resnet
        net.avgpool = net.fc = nn.Identity()
        for layer in {8: (net.layer3, net.layer4), 16: (net.layer4,), 32: ()}[stride]:
            layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
            for block in layer[1:] if spec.backbone.stride_mode == "dilation" else ():
                block.conv2.dilation = block.conv2.padding = (2, 2)
        self.resnet50 = net

    def features(self, x: Tensor) -> Tensor:
        net = self.resnet50
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        out: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return out


class TimmCAM(CAMNet):
    def __init__(self, spec: CAMNetSpec, trunk: TimmTrunk) -> None:
        super().__init__(spec, trunk.stride, trunk.reader.channels, trunk.mean, trunk.std)
        self.backbone, self._reader = trunk.model, trunk.reader

    def features(self, x: Tensor) -> Tensor:
        return self._reader(self.backbone, x)


def cam_net(
    backbone: Backbone | str,
    num_classes: int,
    *,
    seed: int = 0,
    class_map: Mapping[int, Sequence[int]] | None = None,
) -> CAMNet:
    """Make a CAM net with a new 1 × 1 convolution on a pretrained backbone: in eval mode, on the CPU.

    The pretrained weights of ``torchvision/resnet50`` are ``IMAGENET1K_V1``, as in IRN. A lowered stride gives a grid
    of ceil(H / stride) if all strided layers pad, as ResNets do; nets that drop a rest (2 × 2 patches without padding:
    ConvNeXt, DenseNet) still drop it in the strides that they keep.

    Args:
        backbone: ``torchvision/resnet50``, IRN's; or ``timm/NAME``. By default of output stride 16 by removal. Its
            ``train_from`` may be ``"classifier"``, which trains the new convolution alone; None trains all but the
            stem, as AdvCAM's copy of IRN does. The stem, which is all up to the first norm, is always frozen.
        num_classes: K.
        seed: of the new convolution's weights (default initialization).
        class_map: for some of the new classes, the classes of the backbone's own linear classifier that depict them;
            see `mapped_weights`. It helps if images are few.

    Raises:
        AdvCAMError: the backbone is unknown, its weights cannot be loaded, or it cannot have the stride, ``train_from``
            or ``class_map``.

    Example:
        >>> net = cam_net(Backbone("timm/resnet18", random_weights=True), 20)
        >>> net.stride, net.features(torch.zeros(1, 3, 65, 64)).shape, net(torch.zeros(1, 3, 65, 64)).shape
        (16, torch.Size([1, 512, 5, 4]), torch.Size([1, 20]))
    """
    if num_classes < 1:
        raise AdvCAMError(f"a CAM net needs at least one class, got num_classes={num_classes}")
    backbone = Backbone.of(backbone, stride=16, stride_mode="removal")
    spec = CAMNetSpec(backbone, num_classes)
    net: CAMNet
    size = 256
    if backbone.name == IRN_BACKBONE:
        loaded = _irn_resnet(backbone)
        own: Any = loaded.model.fc
        with seeded(seed):
            net = ResNet50CAM(spec, loaded.model, loaded.preprocessing.mean or (), loaded.preprocessing.std or ())
    elif backbone.is_timm:
        trunk = timm_trunk(backbone)
        size, own = trunk.size, trunk.classifier
        with seeded(seed):
            net = TimmCAM(spec, trunk)
    else:
        raise AdvCAMError(f"CAM nets are made of {IRN_BACKBONE} or timm/NAME, not of {backbone.name!r}")
    if class_map is not None:
        start = mapped_weights(own, class_map, num_classes, net.classifier.in_channels, backbone.name)
        net.classifier.weight.data.copy_(start[:, :, None, None])
    _freeze(net, size)
    return net.eval()


def _irn_resnet(backbone: Backbone) -> LoadedModel:
    published = backbone.checkpoint is None and not backbone.random_weights
    loaded = load_backbone(replace(backbone, random_weights=True) if published else backbone)
    if published:
        load_weights(loaded.model, first_published(backbone.name), backbone.name)
    return loaded


def _freeze(net: CAMNet, size: int) -> None:
    order = execution_order(net, size=size)
    backbone = net.spec.backbone
    first = first_trained(backbone, order, "resnet50" if backbone.name == IRN_BACKBONE else "backbone")
    owners = [name for name in weight_owners(net) if name in order]
    norms = [name for name in owners if "norm" in type(net.get_submodule(name)).__name__.lower()]
    stem = min(order[name] for name in norms or owners)
    freeze_before(net, order, max(first, stem + 1))


class UnknownClassError(AdvCAMError):
    """A class map with a class that the backbone, or the new net, does not have."""


def mapped_weights(
    own: nn.Module, class_map: Mapping[int, Sequence[int]], num_classes: int, channels: int, backbone: str
) -> Tensor:
    """Return weights ``(K, C)`` of new classes: the mean of the backbone's classes that depict them minus that of all.

    ``own`` is the backbone's linear classifier on its last maps of C channels; classes that are not in the map get
    zeros.
    """
    if not isinstance(own, nn.Linear) or own.in_features != channels:
        raise AdvCAMError(f"{backbone} has no linear classifier on its last maps to map classes from")
    start = torch.zeros(num_classes, channels)
    for new, depicting in class_map.items():
        wrong = [c for c in depicting if not 0 <= c < own.out_features]
        if not 0 <= new < num_classes:
            wrong.append(new)
        if wrong:
            named = ", ".join(map(str, wrong[:3])) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise UnknownClassError(
                f"{backbone} has {own.out_features} classes and the new net {num_classes}: there is no {named}"
            )
        if depicting:
            start[new] = (own.weight[list(depicting)].mean(0) - own.weight.mean(0)).detach()
    return start


CAM_NET = NetKind(CAMNetSpec, cam_net)
