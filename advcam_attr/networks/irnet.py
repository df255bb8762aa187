"""A backbone in; IRN's net on it, which tells class boundaries and displacements to objects' centres, out.

IRN (Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", 2019) reads
five feature maps of a frozen ResNet-50. The same branches are put here on any backbone that has maps at strides 4, 8,
16 and 32.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advcam_attr.networks.authors import IRNWeights, each_once
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import IRN_BACKBONE, CAMNet, cam_net
from advcam_attr.networks.checkpoint import Checkpoint, load_weights
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.strides import shape_twin
from advcam_attr.types import AdvCAMError

log = logging.getLogger(__name__)

#: The strides of a backbone's stages, before its last one is lowered to 16.
_STAGE_STRIDES = (4, 8, 16, 32)

#: The strides of the stages' maps in IRN's net.
_STRIDES = (4, 8, 16, 16)

#: The side of the image that maps are measured on.
_SIZE = 256


@dataclass(frozen=True)
class IRNetSpec(NetSpec):
    """What an IRN net is made of."""

    key: ClassVar[str] = "irnet"
    title: ClassVar[str] = "IRN net"


class MeanShift(nn.Module):
    """Subtracts a stored mean, but not while the net is trained.

    Attributes:
        running_mean: ``(C,)``; zero until it is set.
    """

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, h, w)`` to the same."""
        return x if self.training else x - self.running_mean[:, None, None]


class IRNet(nn.Module):
    """IRN's edge and displacement branches on five maps of a frozen backbone.

    The five are what goes into the first of four stages, and what comes out of each: for ResNet-50, after the max pool
    and after layer1 to layer4. The backbone takes no gradient and stays in eval mode. Names of weights within the
    branches are those of IRN's code (``fc_edge1`` to ``fc_edge6``, ``fc_dp1`` to ``fc_dp7``, ``mean_shift``).

    Args:
        trunk: a CAM net of output stride 16, whose classifier is taken off; changed in place.
        stages: the names of its four stages, whose maps have strides 4, 8, 16 and 16.
        seed: of the branches' weights (default initialisation); the global random state is left alone.

    Raises:
        AdvCAMError: a stage gives no map, or one of another stride.
    """

    def __init__(self, trunk: CAMNet, stages: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        name = trunk.spec.backbone.name
        self.spec = IRNetSpec(trunk.spec.backbone)
        trunk.classifier = nn.Identity()  # type: ignore[assignment]
        self.trunk, self.stages = trunk.eval().requires_grad_(False), tuple(stages)
        shapes = _tap_shapes(trunk, self.stages)
        strides = [_SIZE / shape[2] for shape in shapes]
        if tuple(strides[1:]) != _STRIDES or strides[0] not in (1, 2, 4):
            raise AdvCAMError(
                f"{name} has maps of the strides {', '.join(f'{s:g}' for s in strides[1:])} in {', '.join(stages)}; "
                "IRN's branches need 4, 8, 16 and 16"
            )
        c = [shape[1] for shape in shapes]
        first = int(4 // strides[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
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

    @property
    def mean(self) -> tuple[float, ...]:
        """What is subtracted from images, by channel, for RGB in [0, 1]."""
        return self.trunk.mean

    @property
    def std(self) -> tuple[float, ...]:
        """What images are divided by."""
        return self.trunk.std

    def forward(self, x: Tensor) -> Tensor:
        """Images to edges and displacements.

        Args:
            x: normalised images ``(N, 3, H, W)``.

        Returns:
            ``(N, 3, h, w)`` on the grid of stride 4: the logit of a class boundary, and the displacement from each
            pixel to its object's centre, y then x, in cells of the grid.
        """
        x1, x2, x3, x4, x5 = self.taps(x)
        fourth, eighth = x2.shape[2:], x3.shape[2:]
        edges = (self.fc_edge1(x1), self.fc_edge2(x2), self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5))
        edge = self.fc_edge6(torch.cat([_cut(e, fourth) for e in edges], 1))
        deep = [_cut(d, eighth) for d in (self.fc_dp3(x3), self.fc_dp4(x4), self.fc_dp5(x5))]
        raised = self.fc_dp6(torch.cat(deep, 1))
        near = [_cut(d, fourth) for d in (self.fc_dp1(x1), self.fc_dp2(x2), raised)]
        return torch.cat([edge, self.mean_shift(self.fc_dp7(torch.cat(near, 1)))], 1)

    @torch.no_grad()
    def taps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The five maps of the backbone, each ``(N, C, h, w)``."""
        return _taps(self.trunk, self.stages, x)

    def edge_parameters(self) -> list[nn.Parameter]:
        """The weights of the edge branch."""
        return [p for name, p in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """The weights of the displacement branch."""
        return [p for name, p in self.named_parameters() if name.startswith("fc_dp")]

    def train(self, mode: bool = True) -> IRNet:
        """Training mode for the branches; the backbone stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self


def _normed(channels: int, width: int, groups: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)


def _enlarged(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


def _pooled(factor: int) -> tuple[nn.Module, ...]:
    """Means over squares, the last ones over what there is of them; nothing for a factor of 1."""
    return (nn.AvgPool2d(factor, ceil_mode=True),) if factor > 1 else ()


def _cut(x: Tensor, size: torch.Size) -> Tensor:
    return x[..., : size[0], : size[1]]


def _taps(trunk: CAMNet, stages: Sequence[str], x: Tensor) -> tuple[Tensor, ...]:
    found: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        first = trunk.get_submodule(stages[0])
        stack.callback(first.register_forward_pre_hook(lambda module, args: found.setdefault(0, args[0])).remove)
        for number, stage in enumerate(stages, start=1):
            stack.callback(trunk.get_submodule(stage).register_forward_hook(_keeper(found, number)).remove)
        trunk.features(x)
    return tuple(found[number].detach() for number in range(len(stages) + 1))


def _keeper(found: dict[int, Tensor], number: int) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        found[number] = out

    return keep


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
    """Make IRN's net on a backbone, whose last stride is removed as in the seed classifier.

    Args:
        backbone: ``torchvision/resnet50``, IRN's; or ``timm/NAME`` of a net whose stages timm lists. By default it has
            its ImageNet weights, as in IRN.
        seed: of the branches' weights.

    Returns:
        The net, in eval mode, on the CPU.

    Raises:
        AdvCAMError: as `cam_net`; a backbone that has no maps of the strides 4, 8, 16 and 32.

    Example:
        >>> net = irnet(Backbone("timm/test_resnet", random_weights=True))
        >>> [tuple(tap.shape[1:]) for tap in net.taps(torch.zeros(1, 3, 64, 96))]
        [(32, 16, 24), (32, 16, 24), (48, 8, 12), (192, 4, 6), (96, 4, 6)]
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
    if trunk.spec.backbone.name == IRN_BACKBONE:
        yield from (f"resnet50.layer{n}" for n in range(1, 5))
        return
    listed = {f["reduction"]: f["module"] for f in getattr(trunk.backbone, "feature_info", ())}
    for stride in _STAGE_STRIDES:
        if stride not in listed:
            raise AdvCAMError(
                f"{trunk.spec.backbone.name} has no stage of stride {stride}, which IRN's branches need; "
                "choose a ResNet, a MobileNet, a ConvNeXt or the like"
            )
        yield f"backbone.{listed[stride]}"


#: What keys of the authors' net begin with.
_ROOTS = ("resnet50.", "stage1.", "backbone.", "fc_edge1.", "fc_dp1.", "edge_layers.", "dp_layers.", "mean_shift.")

#: The parts of ResNet-50 by stage and place. The places between are ReLU and max pool, which have no weights.
_STAGES = {
    "stage1.0": "conv1", "stage1.1": "bn1",
    "stage2.0": "layer1", "stage3.0": "layer2", "stage4.0": "layer3", "stage5.0": "layer4",
}  # fmt: skip

_UNREAD = {
    r"resnet50\.fc\.": "ImageNet's classifier, which the net does not read",
    r"path_indices\d+$|disp_target$": "indices of paths, which are made anew",
}


def _published(checkpoint: Checkpoint) -> IRNet:
    """Read a file of the authors' code (``res50_irn.pth``)."""
    found = irnet_weights(checkpoint)
    net = irnet(Backbone(IRN_BACKBONE, random_weights=True))
    load_weights(net, found.checkpoint, "IRN's net on ResNet-50")
    if found.note:
        log.info("%s", found.note)
    return net


IRNET = NetKind(IRNetSpec, lambda spec: irnet(spec.backbone), _published)


def irnet_weights(checkpoint: Checkpoint) -> IRNWeights:
    """The weights of an authors' file of IRN's net, each once and by the names of `IRNet`.

    Raises:
        AdvCAMError: two names of one tensor hold different weights.

    Example:
        >>> from pathlib import Path
        >>> keys = ["resnet50.layer1.0.bn1.bias", "stage2.0.0.bn1.bias", "edge_layers.5.bias", "fc_dp7.4.running_mean"]
        >>> tensors = {key: torch.zeros(1) for key in [*keys, "path_indices0"]}
        >>> found = irnet_weights(Checkpoint(Path("res50_irn.pth"), tensors, {}))
        >>> sorted(found.checkpoint.weights)
        ['fc_edge6.bias', 'mean_shift.running_mean', 'trunk.resnet50.layer1.0.bn1.bias']
        >>> sorted(found.ignored)
        ['path_indices0', 'stage2.0.0.bn1.bias']
    """
    found = each_once(checkpoint, _ROOTS, _own_name, _UNREAD)
    weights = {
        f"trunk.{key}" if key.startswith("resnet50.") else key: value for key, value in found.checkpoint.weights.items()
    }
    return replace(found, checkpoint=replace(found.checkpoint, weights=weights))


def _own_name(key: str) -> str:
    """The name under ``resnet50``, ``fc_*`` or ``mean_shift`` of a tensor; names of no tensor of the net stay."""
    if inner := re.fullmatch(r"backbone\.([0-4])\.(.+)", key):
        key = f"stage{int(inner[1]) + 1}.{inner[2]}"
    elif inner := re.fullmatch(r"(edge|dp)_layers\.(\d)\.(.+)", key):
        key = f"fc_{inner[1]}{int(inner[2]) + 1}.{inner[3]}"
    if (part := re.fullmatch(r"(stage\d\.\d+)\.(.+)", key)) and part[1] in _STAGES:
        return f"resnet50.{_STAGES[part[1]]}.{part[2]}"
    return "mean_shift.running_mean" if key == "fc_dp7.4.running_mean" else key
