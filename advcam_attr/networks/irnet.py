"""IRN's net: edge and displacement branches on five maps of a frozen backbone.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019. The same
branches are put on any backbone that has maps at strides 4, 8, 16 and 32.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advcam_attr.networks.authors import irnet_weights
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import IRN_BACKBONE, CAMNet, cam_net
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, seeded
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.strides import shape_twin
from advcam_attr.types import AdvCAMError

log = logging.getLogger(__name__)

#: The strides of a backbone's stages, and those of their maps in IRN's net, whose last stride is removed.
_STAGE_STRIDES = (4, 8, 16, 32)
_STRIDES = (4, 8, 16, 16)

#: The side of the image that maps are measured on.
_SIZE = 256


@dataclass(frozen=True)
class IRNetSpec(NetSpec):
    key: ClassVar[str] = "irnet"
    title: ClassVar[str] = "IRN net"


class MeanShift(nn.Module):
    """Subtracts a stored mean ``(C,)``, but not in training."""

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean[:, None, None]


class IRNet(nn.Module):
    """IRN's edge and displacement branches on five maps of a frozen backbone.

    The five are the input of the first of four stages, and the output of each: for ResNet-50, after the max pool and
    after layer1 to layer4. The backbone is frozen and stays in eval mode. Names of weights within the branches are
    those of IRN's code (``fc_edge1`` to ``fc_edge6``, ``fc_dp1`` to ``fc_dp7``, ``mean_shift``).

    Args:
        trunk: a CAM net of output stride 16, whose classifier is removed; changed in place.
        stages: the names of its four stages, whose maps have strides 4, 8, 16 and 16.
        seed: of the branches' weights (default initialization).
    """

    def __init__(self, trunk: CAMNet, stages: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.spec, self.mean, self.std = IRNetSpec(trunk.spec.backbone), trunk.mean, trunk.std
        trunk.classifier = nn.Identity()  # type: ignore[assignment]
        self.trunk, self.stages = trunk.eval().requires_grad_(False), tuple(stages)
        shapes = _tap_shapes(trunk, self.stages)
        strides = [_SIZE / shape[2] for shape in shapes]
        if tuple(strides[1:]) != _STRIDES or strides[0] not in (1, 2, 4):
            raise AdvCAMError(
                f"{self.spec.backbone.name} has maps of the strides {', '.join(f'{s:g}' for s in strides[1:])} in "
                f"{', '.join(stages)}; IRN's branches need 4, 8, 16 and 16"
            )
        c = [shape[1] for shape in shapes]
        first = int(4 // strides[0])
        with seeded(seed):
            self.fc_edge1 = nn.Sequential(*_normed(c[0], 32, 4), *_pooled(first), nn.ReLU())
            self.fc_edge2 = nn.Sequential(*_normed(c[1], 32, 4), nn.ReLU())
            self.fc_edge3 = nn.Sequential(*_normed(c[2], 32, 4), _enlarged(2), nn.ReLU())
            self.fc_edge4 = nn.Sequential(*_normed(c[3], 32, 4), _enlarged(4), nn.ReLU())
            self.fc_edge5 = nn.Sequential(*_normed(c[4], 32, 4), _enlarged(4), nn.ReLU())
            self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
            self.fc_dp1 = nn.Sequential(*_normed(c[0], 64, 8), *_pooled(first), nn.ReLU())
            self.fc_dp2 = nn.Sequential(*_normed(c[1], 128, 16), nn.ReLU())
            self.fc_dp3 = nn.Sequential(*_normed(c[2], 256, 16), nn.ReLU())
            self.fc_dp4 = nn.Sequential(*_normed(c[3], 256, 16), _enlarged(2), nn.ReLU())
            self.fc_dp5 = nn.Sequential(*_normed(c[4], 256, 16), _enlarged(2), nn.ReLU())
            self.fc_dp6 = nn.Sequential(*_normed(3 * 256, 256, 16), _enlarged(2), nn.ReLU())
            self.fc_dp7 = nn.Sequential(*_normed(64 + 128 + 256, 256, 16), nn.ReLU(), nn.Conv2d(256, 2, 1, bias=False))
        self.mean_shift = MeanShift(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return edges and displacements ``(N, 3, h, w)`` of images ``(N, 3, H, W)``, on the grid of stride 4.

        They are the logit of a class boundary, and the displacement from each pixel to its object's center, y then x,
        in cells of the grid.
        """
        x1, x2, x3, x4, x5 = self.taps(x)
        fourth, eighth = x2.shape[2:], x3.shape[2:]
        edges = (self.fc_edge1(x1), self.fc_edge2(x2), self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5))
        edge = self.fc_edge6(torch.cat([_cropped(e, fourth) for e in edges], 1))
        deep = [_cropped(d, eighth) for d in (self.fc_dp3(x3), self.fc_dp4(x4), self.fc_dp5(x5))]
        raised = self.fc_dp6(torch.cat(deep, 1))
        near = [_cropped(d, fourth) for d in (self.fc_dp1(x1), self.fc_dp2(x2), raised)]
        return torch.cat([edge, self.mean_shift(self.fc_dp7(torch.cat(near, 1)))], 1)

    @torch.no_grad()
    def taps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the five maps of the backbone, each ``(N, C, h, w)``."""
        return _taps(self.trunk, self.stages, x)

    def edge_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith("fc_dp")]

    def train(self, mode: bool = True) -> IRNet:
        super().train(mode)
        self.trunk.eval()
        return self


def _normed(channels: int, width: int, groups: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)


def _enlarged(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


def _pooled(factor: int) -> tuple[nn.Module, ...]:
    return (nn.AvgPool2d(factor, ceil_mode=True),) if factor > 1 else ()


def _cropped(x: Tensor, size: torch.Size) -> Tensor:
    return x[..., : size[0], : size[1]]


def _taps(trunk: CAMNet, stages: Sequence[str], x: Tensor) -> tuple[Tensor, ...]:
    found: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        first = trunk.get_submodule(stages[0])
        stack.callback(first.register_forward_pre_hook(lambda module, args: found.setdefault(0, args[0])).remove)
        for number, stage in enumerate(stages, start=1):
            stack.callback(trunk.get_submodule(stage).register_forward_hook(_storing(found, number)).remove)
        trunk.features(x)
    return tuple(found[number].detach() for number in range(len(stages) + 1))


def _storing(found: dict[int, Tensor], number: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        found[number] = out

    return hook


def _tap_shapes(trunk: CAMNet, stages: Sequence[str]) -> list[torch.Size]:
    twin: Any = shape_twin(trunk)
    with torch.no_grad():
        maps = _taps(twin, stages, torch.zeros(1, 3, _SIZE, _SIZE, device="meta"))
    if any(not isinstance(map, Tensor) or map.ndim != 4 for map in maps):
        raise AdvCAMError(
            f"{trunk.spec.backbone.name} has stages that give no maps (N, C, h, w); choose another backbone"
        )
    return [map.shape for map in maps]


def irnet(backbone: Backbone | str = IRN_BACKBONE, *, seed: int = 0) -> IRNet:
    """Make IRN's net on a backbone, whose last stride is removed as in the seed classifier: in eval mode, on the CPU.

    Args:
        backbone: ``torchvision/resnet50``, IRN's; or ``timm/NAME`` of a net whose stages timm lists. By default with
            its ImageNet weights, as in IRN.
        seed: of the branches' weights.

    Raises:
        AdvCAMError: as `advcam_attr.networks.cam_net.cam_net`; a backbone without maps of the strides 4, 8, 16 and 32.

    Example:
        >>> net = irnet(Backbone("timm/test_resnet", random_weights=True))
        >>> net(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 3, 16, 24])
    """
    backbone = Backbone.of(backbone)
    if (backbone.stride, backbone.stride_mode, backbone.train_from) != (16, "removal", None):
        raise AdvCAMError("IRN's backbone is frozen, with stride 16 by removal: leave its strides and train_from out")
    trunk = cam_net(backbone, 1)
    return IRNet(trunk, tuple(_stages(trunk)), seed).eval()


def _stages(trunk: Any) -> Iterator[str]:
    """The names of the stages of strides 4, 8, 16 and 32, in the trunk of a CAM net."""
    name = trunk.spec.backbone.name
    if name == IRN_BACKBONE:
        yield from (f"resnet50.layer{n}" for n in range(1, 5))
        return
    listed = {f["reduction"]: f["module"] for f in getattr(trunk.backbone, "feature_info", ())}
    for stride in _STAGE_STRIDES:
        if stride not in listed:
            raise AdvCAMError(
                f"{name} has no stage of stride {stride}, which IRN's branches need; choose a ResNet, a MobileNet, a "
                "ConvNeXt or the like"
            )
        yield f"backbone.{listed[stride]}"


def _published(checkpoint: Checkpoint) -> IRNet:
    found = irnet_weights(checkpoint)
    net = irnet(Backbone(IRN_BACKBONE, random_weights=True))
    load_weights(net, found.checkpoint, "IRN's net on ResNet-50")
    if found.note:
        log.info(found.note)
    return net


IRNET = NetKind(IRNetSpec, irnet, _published)
