"""AffinityNet: embeddings of cells that are similar if two cells are of one class.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA), CVPR 2018. A head reads three
feature maps of a trunk, each by a 1 × 1 convolution, and their concatenation by a last one, all with ELU and without
biases. Affinities are computed in `advcam_attr.refine.psa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import (
    Checkpoint,
    load_weights,
    out_channels,
    read_checkpoint,
    seeded,
    without_prefix,
)
from advcam_attr.networks.defaults import RESNET38
from advcam_attr.networks.freezing import FrozenStatistics, running_norms
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.timm_trunk import TimmTrunk, timm_trunk
from advcam_attr.types import AdvCAMError

#: The head's layers, and the names of other heads on the same trunk.
_HEAD = ("f8_3", "f8_4", "f8_5", "f9")
_OTHER_HEADS = ("fc8", "fc8_20", "fc8_200")

_ROOTS = ("conv1a.", "b2.", "bn7.", "f9.", "fc8.", "fc8_20.")


@dataclass(frozen=True)
class AffinityNetSpec(NetSpec):
    key: ClassVar[str] = "affinity_net"
    title: ClassVar[str] = "affinity net"

    width: int = 64


class TrainedParts(NamedTuple):
    """Trained weights of the trunk and of the new head, for PSA's 1, 2, 10 and 20 times the learning rate."""

    weights: list[nn.Parameter]
    biases: list[nn.Parameter]
    new_weights: list[nn.Parameter]
    new_biases: list[nn.Parameter]


class _AffinityHead(FrozenStatistics):
    spec: AffinityNetSpec

    def _add_head(self, channels: Sequence[int], width: int) -> None:
        third, fourth, fifth = channels
        self.f8_3 = nn.Conv2d(third, width, 1, bias=False)
        self.f8_4 = nn.Conv2d(fourth, 2 * width, 1, bias=False)
        self.f8_5 = nn.Conv2d(fifth, 4 * width, 1, bias=False)
        self.f9 = nn.Conv2d(7 * width, 7 * width, 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        for norm in running_norms(self):
            norm.requires_grad_(False)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Return three feature maps of images, the last of them on the net's own grid."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``(N, C, h, w)``; C is 448 for the published net."""
        taps = self.stages(x)
        height, width = taps[-1].shape[2:]
        parts = [
            F.elu(layer(tap if tap.shape[2:] == (height, width) else F.adaptive_avg_pool2d(tap, (height, width))))
            for layer, tap in zip((self.f8_3, self.f8_4, self.f8_5), taps, strict=True)
        ]
        return F.elu(self.f9(torch.cat(parts, 1)))


class ResNet38Affinity(_AffinityHead, ResNet38):
    """PSA's AffinityNet; its state dict has the authors' keys, and no others.

    ``conv1a``, the blocks ``b2*`` and all norms, statistics and affine weights alike, are frozen. Width 64 gives the
    published net with its 64 + 128 + 256 = 448 channels.
    """

    #: What is frozen besides the norms.
    stem: ClassVar[tuple[str, ...]] = ("conv1a", "b2", "b2_1", "b2_2")

    def __init__(self, width: int = 64) -> None:
        ResNet38.__init__(self, width)
        backbone = Backbone(RESNET38, stride=self.stride, stride_mode="removal")
        self.spec = AffinityNetSpec(backbone.without_weights(self.mean, self.std), width)
        self._add_head((8 * width, 16 * width, 64 * width), width)
        for name in self.stem:
            self.get_submodule(name).requires_grad_(False)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Return conv4, conv5 and conv6, of ``ceil(H / 8)`` by ``ceil(W / 8)`` cells."""
        return self.features(x)


class TimmAffinity(_AffinityHead):
    """PSA's head on the last three stages of a timm model; maps of a finer grid are averaged to the last one's."""

    def __init__(self, spec: AffinityNetSpec, trunk: TimmTrunk) -> None:
        super().__init__()
        self.spec = replace(spec, backbone=spec.backbone.without_weights(trunk.mean, trunk.std))
        self.stride, self.mean, self.std = trunk.stride, trunk.mean, trunk.std
        model: Any = trunk.model
        try:
            self._indices = model.prune_intermediate_layers(3, prune_norm=True, prune_head=True)
            self.backbone = model
            with torch.no_grad():
                taps = self.stages(torch.zeros(1, 3, trunk.size, trunk.size))
            if len(taps) != 3:
                raise ValueError(f"{len(taps)} stages")
        except (AttributeError, AssertionError, ValueError, RuntimeError) as error:
            raise AdvCAMError(
                f"{spec.backbone.name} does not give the three feature maps that an affinity net reads; choose another"
            ) from error
        self._add_head([tap.shape[1] for tap in taps], spec.width)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        model: Any = self.backbone
        found: Sequence[Tensor] = model.forward_intermediates(x, indices=self._indices, intermediates_only=True)
        return found


AffinityNet = ResNet38Affinity | TimmAffinity


def affinity_net(backbone: Backbone | str = RESNET38, *, width: int = 64, seed: int = 0) -> AffinityNet:
    """Make an affinity net with a new head, to be trained: in eval mode, on the CPU.

    Args:
        backbone: ``resnet38``, PSA's, or ``timm/NAME``: any that gives feature maps by stages. By default of stride 8
            by removal, as in PSA; 16 is four times as cheap. The checkpoint of a ResNet-38 is any file with its keys,
            e.g. of a trained SEAM or SC-CAM net; heads in it are ignored.
        width: of the head, and of ResNet-38; 64 in PSA.
        seed: of the new weights.

    Raises:
        AdvCAMError: the backbone is unknown, its weights cannot be loaded, or it cannot have the stride.

    Example:
        >>> net = affinity_net(Backbone("timm/mobilenetv2_100", random_weights=True, stride=16))
        >>> net.stride, net(torch.zeros(1, 3, 64, 96)).shape
        (16, torch.Size([1, 448, 4, 6]))
    """
    backbone = Backbone.of(backbone, stride=8, stride_mode="removal")
    backbone.require_unused("an affinity net", "train_from")
    if width < 1:
        raise AdvCAMError(f"the width must be positive, got {width}")
    if backbone.name == RESNET38:
        return _resnet38_affinity(backbone, width, seed)
    if not backbone.is_timm:
        raise AdvCAMError(f"affinity nets are made of {RESNET38} or timm/NAME, not of {backbone.name!r}")
    trunk = timm_trunk(backbone)
    with seeded(seed):
        return TimmAffinity(AffinityNetSpec(backbone, width), trunk).eval()


def _resnet38_affinity(backbone: Backbone, width: int, seed: int) -> ResNet38Affinity:
    if backbone.checkpoint is None and not backbone.random_weights:
        raise AdvCAMError("resnet38 needs a file of its trunk's weights (or random weights, which learn little)")
    for name in ("stride", "mean", "std"):
        value, own = getattr(backbone, name), getattr(ResNet38, name)
        if value not in ("auto", None, own):
            raise AdvCAMError(f"resnet38 has {name} {own}, not {value}")
    with seeded(seed):
        net = ResNet38Affinity(width).eval()
    if backbone.checkpoint is not None:  # of any head; the net's own stays new
        checkpoint = read_checkpoint(backbone.checkpoint)
        weights = without_prefix(checkpoint.weights, _ROOTS)
        own = {key: value for key, value in net.state_dict().items() if key.split(".")[0] in _HEAD}
        others = {key: value for key, value in weights.items() if key.split(".")[0] not in (*_HEAD, *_OTHER_HEADS)}
        load_weights(net, replace(checkpoint, weights={**others, **own}), f"the trunk of {RESNET38}")
    return net


def trained_parts(net: AffinityNet) -> TrainedParts:
    """Return the weights that are not frozen, sorted as PSA trains them."""
    parts = TrainedParts([], [], [], [])
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            parts[2 * (name.split(".")[0] in _HEAD) + name.endswith("bias")].append(parameter)
    return parts


def _published(checkpoint: Checkpoint) -> AffinityNet:
    width = out_channels(without_prefix(checkpoint.weights, _ROOTS), "conv1a", 64)
    net = _resnet38_affinity(Backbone(RESNET38, random_weights=True), width, seed=0)
    load_weights(net, checkpoint, "PSA's AffinityNet")
    return net


AFFINITY_NET = NetKind(AffinityNetSpec, affinity_net, _published)
