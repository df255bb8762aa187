"""A backbone's name in; DeepLab-v2 on it (dilated features, four 3 × 3 convolutions summed), at several scales, out.

DeepLab-v2 (Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
Fully Connected CRFs", 2018) is a ResNet-101 whose last two stages are dilated in place of their strides, and a pyramid
of dilated classifiers. The same is made here of any backbone.
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
from advcam_attr.networks.checkpoint import Checkpoint, load_weights
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.resnet101 import RES2NETS, RESNET101, StrideIn, res2net_trunk, resnet_trunk, resnet_weights
from advcam_attr.networks.strides import execution_order, freeze_before, place_of
from advcam_attr.networks.timm_trunk import FeatureReader, timm_trunk
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class DeepLabSpec(NetSpec):
    """What a DeepLab is made of, without its weights; see `deeplab`."""

    key: ClassVar[str] = "deeplab"
    title: ClassVar[str] = "DeepLab"

    num_labels: int
    stride_in: StrideIn = "3x3"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    scales: tuple[float, ...] = (0.5, 0.75)

    @property
    def num_names(self) -> int:
        """How many class names the network's file has."""
        return self.num_labels - 1


class ASPP(nn.ModuleList):
    """Atrous spatial pyramid pooling: 3 × 3 convolutions of several dilations, summed.

    Weights are drawn from N(0, 0.01²), biases are 0.

    Args:
        channels: C, of the features.
        num_labels: K, the background included.
        rates: the dilations, each its convolution's padding too.

    Example:
        >>> ASPP(8, 21, (1, 2))(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 21, 5, 6])
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
        """Let the pyramid begin as a 1 × 1 classifier.

        Args:
            weights: ``(K, C)``; an equal share of them is added to the centre of each convolution.
        """
        for conv in self:
            conv.weight[:, :, 1, 1] += weights / len(self)  # type: ignore[index, operator]

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` to logits ``(N, K, h, w)``."""
        total: Tensor = sum(conv(x) for conv in self)
        return total


class DeepLab(nn.Module):
    """Features and `ASPP`, at the scale of the image.

    Norms with running statistics use these always, in training too, leave them as they are, and their affine weights
    take no gradient (deeplab-pytorch does not give them to its optimiser). Nor does what runs before
    ``spec.train_from``.

    Args:
        spec: what it is made of.
        trunk: images to features.
        channels: C, of these.
        stride: by how many pixels of the image the cells of the maps lie apart.
        mean, std: the normalisation of its images, by channel, for RGB in [0, 1].
    """

    def __init__(
        self,
        spec: DeepLabSpec,
        trunk: nn.Module,
        channels: int,
        stride: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.spec = replace(spec, backbone=spec.backbone.without_weights(mean, std))
        self.stride, self.mean, self.std = stride, tuple(mean), tuple(std)
        self.trunk, self.aspp = trunk, ASPP(channels, spec.num_labels, spec.rates)
        for norm in _norms(trunk):
            norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, K, h, w)`` on the grid of the output stride."""
        logits: Tensor = self.aspp(self.trunk(x))
        return logits

    def train(self, mode: bool = True) -> DeepLab:
        """Training mode for all but the norms with running statistics."""
        super().train(mode)
        for norm in _norms(self):
            norm.eval()
        return self


class MultiScale(nn.Module):
    """DeepLab at several scales with the same weights (deeplab-pytorch's MSC).

    Args:
        net: the net; its ``spec.scales`` are the scales besides 1.
    """

    def __init__(self, net: DeepLab) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images to logits.

        Args:
            x: normalised images ``(N, 3, H, W)``.

        Returns:
            In eval mode the greatest of all scales' logits, element by element, ``(N, K, h, w)`` on the grid of
            scale 1. In training mode those of scale 1, those of each other scale on its own grid, and the greatest.
        """
        first: Tensor = self.net(x)
        others = [
            self.net(F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False))
            for scale in self.net.spec.scales
        ]
        enlarged = (F.interpolate(o, first.shape[2:], mode="bilinear", align_corners=False) for o in others)
        greatest = functools.reduce(torch.maximum, enlarged, first)
        if not self.training:
            return greatest
        return (first, *others, greatest) if others else (first,)


class BackboneFeatures(nn.Module):
    """A backbone's last maps.

    Args:
        model: without classifier and pooling.
        reader: how its maps are read.
    """

    def __init__(self, model: nn.Module, reader: FeatureReader) -> None:
        super().__init__()
        self.model, self.reader = model, reader

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to ``(N, C, h, w)``."""
        return self.reader(self.model, x)


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
    """Make a DeepLab-v2 with a new pyramid of classifiers.

    The backbone's weights are its pretrained ones (of ``torchvision/resnet101``: ``IMAGENET1K_V1``) unless
    ``checkpoint`` or ``random_weights`` says otherwise. For ResNet-101, a checkpoint may have torchvision's keys, or
    those of deeplab-pytorch's nets, which were converted from Caffe: these read BGR values from 0 to 255, which is
    brought into the first convolution and the normalisation here.

    Args:
        backbone: ``torchvision/resnet101``, the paper's; ``timm/NAME``; or ``res2net152_26w_4s`` or ``res2net152d``,
            which timm has no name for. Output stride 8 by dilation, unless it says otherwise. Its ``train_from`` may be
            ``"aspp"``, which trains the pyramid alone; None trains all, as deeplab-pytorch does.
        num_labels: K, the background included.
        stride_in: which convolution of a ResNet-101's bottleneck has the stride: ``"1x1"`` as in Caffe, ``"3x3"`` as in
            torchvision. By default as the weights were trained with, by their keys.
        rates: the pyramid's dilations, in cells of the features.
        scales: those besides 1 that `MultiScale` adds; none leaves it out.
        seed: of the pyramid's weights; the global random state is left alone.
        class_map: for some of the labels, the classes of the backbone's own linear classifier that depict them; the
            pyramid starts as a classifier of these, see `advcam_attr.networks.cam_net.mapped_weights`. It helps where
            images are few.

    Returns:
        The net, in eval mode, on the CPU; its ``stride`` is what was reached.

    Raises:
        AdvCAMError: an unknown name, weights that cannot be had or do not fit, a stride that the net cannot have, a
            ``train_from`` that it does not have, or ``class_map`` classes that it does not have.

    Example:
        >>> net = deeplab(Backbone("timm/test_resnet", random_weights=True), 21)
        >>> net(torch.zeros(1, 3, 65, 64)).shape, MultiScale(net).train()(torch.zeros(1, 3, 64, 64))[1].shape
        (torch.Size([1, 21, 9, 8]), torch.Size([1, 21, 4, 4]))
    """
    _check(num_labels, rates, scales)
    backbone = Backbone.of(backbone, stride=8, stride_mode="dilation")
    name = backbone.name
    spec = DeepLabSpec(backbone, num_labels, stride_in or "3x3", tuple(map(int, rates)), tuple(map(float, scales)))
    if name == RESNET101:
        weights, own_place = resnet_weights(backbone)
        spec = replace(spec, stride_in=stride_in or own_place)
        made = resnet_trunk(backbone, weights, spec.stride_in)
    elif name in RES2NETS:
        made = res2net_trunk(backbone)
    elif backbone.is_timm:
        made = timm_trunk(backbone)
    else:
        raise AdvCAMError(f"DeepLab is made of {RESNET101}, timm/NAME or {' or '.join(RES2NETS)}, not of {name!r}")
    trunk = BackboneFeatures(made.model, made.reader)
    mean, std = backbone.mean or made.mean, backbone.std or made.std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DeepLab(spec, trunk, made.reader.channels, made.stride, mean, std).eval()
    if class_map is not None:
        net.aspp.start_from(mapped_weights(made.classifier, class_map, num_labels, made.reader.channels, name))
    if backbone.train_from is not None:
        order = execution_order(net, size=made.size)
        freeze_before(net, order, place_of(backbone.train_from, order, "trunk.model", name))
    return net


def _check(num_labels: int, rates: Sequence[int], scales: Sequence[float]) -> None:
    if num_labels < 2:
        raise AdvCAMError(f"DeepLab needs the background and at least one class, got num_labels={num_labels}")
    if not rates or min(rates) < 1 or any(not scale > 0 for scale in scales):
        raise AdvCAMError(
            f"DeepLab: rates must be at least 1 and scales above 0, got rates {tuple(rates)}, scales {tuple(scales)}"
        )


def _norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


def _published(checkpoint: Checkpoint) -> DeepLab:
    """Read a file of deeplab-pytorch's ResNet-101 with its pyramid."""
    if not is_caffe(checkpoint):
        raise AdvCAMError(f"{checkpoint.path} does not say which DeepLab it holds; give a file that was trained here")
    found = caffe_weights(checkpoint)
    head = found.weights.get("aspp.0.weight")
    if head is None or not head.ndim:
        raise AdvCAMError(
            f"{checkpoint.path} is a backbone alone, without aspp.c0.weight; give it as the checkpoint of a training"
        )
    mean, std = ([float(v) for v in found.metadata[what].split()] for what in ("mean", "std"))
    net = deeplab(Backbone(RESNET101, random_weights=True, mean=mean, std=std), max(2, len(head)), stride_in="1x1")
    weights = {key if key.startswith("aspp.") else f"trunk.model.{key}": value for key, value in found.weights.items()}
    load_weights(net, replace(found, weights=weights), f"DeepLab on {RESNET101}")
    return net


def _build(spec: DeepLabSpec) -> DeepLab:
    options = {name: getattr(spec, name) for name in ("stride_in", "rates", "scales")}
    return deeplab(spec.backbone, spec.num_labels, **options)


DEEPLAB = NetKind(DeepLabSpec, _build, _published)
