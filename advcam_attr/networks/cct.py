"""CCT's segmentation net: an encoder, a main decoder, and auxiliary decoders behind perturbations.

Ouali, Hudelot and Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020. The encoder
is a backbone at output stride 8 and a pyramid pooling module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cct_perturbations import PERTURBATIONS, Guide, Perturbation
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, seeded, without_prefix
from advcam_attr.networks.defaults import AUXILIARY, DEEP_BASE, Norms
from advcam_attr.networks.freezing import running_norms
from advcam_attr.networks.net_file import NetKind, NetSpec
from advcam_attr.networks.timm_trunk import TimmTrunk, timm_trunk
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError

#: timm's arguments for `DEEP_BASE`. At output stride 8, timm dilates as the released code does: layer3 by 2, layer4 by
#: 4, and the convolution that has lost its stride by half of that.
_DEEP_BASE_ARGS = {"stem_type": "deep", "stem_width": 64}

#: The stem of the published file ``3x3resnet50-imagenet.pth``, by timm's names.
_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}

#: Sizes of the grids that features are pooled to.
BINS = (1, 2, 3, 6)


@dataclass(frozen=True)
class CCTSpec(NetSpec):
    key: ClassVar[str] = "cct"
    title: ClassVar[str] = "CCT net"

    num_classes: int
    channels: int | None = None
    auxiliary: Mapping[str, int] = field(default_factory=lambda: dict(AUXILIARY))
    norms: Norms = "trained"

    @property
    def num_names(self) -> int:
        return self.num_classes - 1


class PyramidPooling(nn.Module):
    """Features and their means over 1, 4, 9 and 36 regions, mixed by a 3 × 3 convolution.

    Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017; in CCT's released code ``out`` is C / 4.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
            )
            for size in BINS
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(channels + out * len(BINS), out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.interpolate(branch(x), x.shape[2:], mode="bilinear") for branch in self.branches]
        mixed: Tensor = self.bottleneck(torch.cat([x, *pooled], 1))
        return mixed


class CCT(nn.Module):
    """Encoder, main decoder, and auxiliary decoders behind perturbations.

    Images' sides must be multiples of ``stride``, the encoder's output stride. ``main`` alone is used after training;
    the ``auxiliary`` decoders are in the order of `PERTURBATIONS`.
    """

    def __init__(self, spec: CCTSpec, trunk: TimmTrunk) -> None:
        super().__init__()
        self.spec = replace(spec, backbone=spec.backbone.without_weights(trunk.mean, trunk.std))
        self.stride, self.mean, self.std = trunk.stride, trunk.mean, trunk.std
        self.backbone, self._reader = trunk.model, trunk.reader
        channels = trunk.reader.channels
        out = spec.channels or channels // len(BINS)
        steps = doubling_steps(trunk.stride)
        self.pyramid = PyramidPooling(channels, out)
        self.main = Decoder(out, spec.num_classes, steps)
        self.auxiliary = nn.ModuleList(
            AuxiliaryDecoder(perturbation, Decoder(out, spec.num_classes, steps))
            for name, perturbation in PERTURBATIONS.items()
            for _ in range(spec.auxiliary.get(name, 0))
        )

    def features(self, x: Tensor) -> Tensor:
        """Return the encoder's features ``(N, C, H / stride, W / stride)`` of images ``(N, 3, H, W)``."""
        encoded: Tensor = self.pyramid(self._reader(self.backbone, x))
        return encoded

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all decoders for pairs (training), or of the main decoder for images.

        Args:
            x: images ``(N, 3, H, W)``; or pairs ``(N, 2, 3, H, W)``, a labelled image and an unlabelled one, which
                share no batch norm's statistics, as in the released code.

        Returns:
            Scores ``(N, K, H, W)`` of images. Of pairs, ``(N, 2 + A, K, H, W)``: the main decoder's for the labelled
            and for the unlabelled image, and for the latter those of the A auxiliary decoders; without auxiliary
            decoders only the first, ``(N, 1, K, H, W)``.
        """
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise AdvCAMError(f"images of {x.shape[-1]}x{x.shape[-2]} pixels: sides must be multiples of {self.stride}")
        if x.ndim == 4:
            scores: Tensor = self.main(self.features(x))
            return scores
        labelled = self.main(self.features(x[:, 0]))
        if not self.auxiliary:
            return labelled[:, None]
        features = self.features(x[:, 1])
        unlabelled = self.main(features)
        guide = Guide.of(unlabelled)
        return torch.stack([labelled, unlabelled, *(decoder(features, guide) for decoder in self.auxiliary)], 1)

    def train(self, mode: bool = True) -> CCT:
        """Set training mode; the backbone's norms keep using their statistics if ``spec.norms`` is ``"frozen"``."""
        super().train(mode)
        for norm in running_norms(self.backbone) if self.spec.norms == "frozen" else ():
            norm.eval()
        return self


def cct_net(
    backbone: Backbone | str,
    num_classes: int,
    *,
    channels: int | None = None,
    auxiliary: Mapping[str, int] | None = None,
    norms: Norms = "trained",
    seed: int = 0,
) -> CCT:
    """Make a net for cross-consistency training on a pretrained backbone: in eval mode, on the CPU.

    Args:
        backbone: ``deepbase_resnet50``, the released code's, whose published weights are given as its checkpoint
            (``3x3resnet50-imagenet.pth``); or ``timm/NAME``. By default of stride 8 by dilation, as in the released
            code; a power of two.
        num_classes: K, including the background.
        channels: of the pyramid's branches and result; by default a quarter of the backbone's (ResNet-50: 512).
        auxiliary: the number of decoders of each perturbation; by default the released code's 30.
        norms: ``"trained"`` as in the released code; ``"frozen"`` fixes the statistics and affine weights of the
            backbone's batch norms, e.g. for weights whose norms were folded into convolutions.
        seed: of the new weights.

    Raises:
        AdvCAMError: an unknown name or perturbation, weights that cannot be loaded, or a stride that the backbone or
            the decoders cannot have.

    Example:
        >>> few = {"dropout": 1, "feature_noise": 1}
        >>> net = cct_net(Backbone("timm/resnet18", random_weights=True), 21, auxiliary=few)
        >>> net(torch.zeros(2, 3, 64, 96)).shape, net(torch.zeros(2, 2, 3, 64, 64)).shape
        (torch.Size([2, 21, 64, 96]), torch.Size([2, 4, 21, 64, 64]))
    """
    counts = dict(AUXILIARY if auxiliary is None else auxiliary)
    for name, count in counts.items():
        lookup(name, PERTURBATIONS, "perturbation")
        if count < 0:
            raise AdvCAMError(f"{name}: there cannot be {count} decoders")
    if num_classes < 2 or (channels is not None and channels < 1):
        raise AdvCAMError(f"a net of {num_classes} classes and {channels} channels; give 2 or more, and 1 or more")
    backbone = Backbone.of(backbone, stride=8, stride_mode="dilation")
    backbone.require_unused("CCT", "train_from")
    if backbone.max_stride is not None:
        doubling_steps(backbone.max_stride)
    if backbone.name == DEEP_BASE:
        trunk = _deep_base(backbone)
    elif backbone.is_timm:
        trunk = timm_trunk(backbone)
    else:
        raise AdvCAMError(f"nets for CCT are made of {DEEP_BASE} or timm/NAME, not of {backbone.name!r}")
    spec = CCTSpec(replace(backbone, stride=trunk.stride), num_classes, channels, counts, norms)
    with seeded(seed):
        net = CCT(spec, trunk)
    for norm in running_norms(net.backbone) if norms == "frozen" else ():
        norm.requires_grad_(False)
    return net.eval()


def _deep_base(backbone: Backbone) -> TimmTrunk:
    if backbone.checkpoint is None and not backbone.random_weights:
        raise AdvCAMError(
            f"the weights of {DEEP_BASE} cannot be downloaded by name: give checkpoint 3x3resnet50-imagenet.pth, or "
            "random_weights, or another backbone, e.g. timm/resnet50d"
        )
    args = {**_DEEP_BASE_ARGS, **backbone.model_args}
    trunk = timm_trunk(replace(backbone, name="timm/resnet50", model_args=args, checkpoint=None, random_weights=True))
    if backbone.checkpoint is not None:
        load_weights(trunk.model, deep_base_weights(read_checkpoint(backbone.checkpoint)), DEEP_BASE)
    return trunk


def deep_base_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Return the published weights of the deep ResNet-50 by timm's names, without its classifier."""
    weights = without_prefix(checkpoint.weights, ["conv1.", "fc.", "layer1."])
    named = {re.sub(r"^(resinit|prefix)\.", "", key): value for key, value in weights.items()}
    renamed = {
        ".".join([_STEM.get(stem, stem), rest]): value
        for key, value in named.items()
        for stem, _, rest in [key.partition(".")]
        if stem != "fc"
    }
    return replace(checkpoint, weights=renamed)


class Decoder(nn.Sequential):
    """A 1 × 1 convolution from C to K channels, followed by ``steps`` that double the size, for a stride of 2 ^ steps.

    A step is a 1 × 1 convolution to 4 K channels, a ReLU and a pixel shuffle. The last step has a ReLU too, as in the
    released code: scores are never below 0.
    """

    def __init__(self, channels: int, classes: int, steps: int) -> None:
        first = nn.Conv2d(channels, classes, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        super().__init__(first, *(_doubling(classes) for _ in range(steps)))


def _doubling(classes: int) -> nn.Sequential:
    convolution = nn.Conv2d(classes, 4 * classes, 1)
    icnr(convolution.weight)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.PixelShuffle(2))


@torch.no_grad()
def icnr(weight: Tensor, factor: int = 2) -> None:
    """Initialize a sub-pixel convolution so that the pixels of each cell are equal, without a checkerboard.

    Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017. The weights ``(C · factor², C', 1, 1)`` are
    changed in place: Kaiming-normal, each kernel ``factor²`` times.
    """
    kernels = torch.empty(len(weight) // factor**2, *weight.shape[1:], dtype=weight.dtype, device=weight.device)
    nn.init.kaiming_normal_(kernels)
    weight.copy_(kernels.repeat_interleave(factor**2, dim=0))


class AuxiliaryDecoder(nn.Module):
    def __init__(self, perturbation: Perturbation, decoder: Decoder) -> None:
        super().__init__()
        self.perturbation, self.decoder = perturbation, decoder

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        scores: Tensor = self.decoder(self.perturbation(x, guide, self.decoder))
        return scores

    def extra_repr(self) -> str:
        return repr(self.perturbation)


def doubling_steps(stride: int) -> int:
    """Return how often a map's size is doubled to reach the image's, log2 of its stride."""
    steps = round(math.log2(stride)) if stride > 0 else -1
    if 2**steps != stride:
        raise AdvCAMError(f"decoders double sizes, so the encoder's stride must be a power of two, got {stride}")
    return steps


#: The authors' names of a trained net's parts, and the names here.
_AUTHORS = (
    *((rf"^encoder\.base\.0\.0\.{theirs}\.", f"backbone.{own}.") for theirs, own in _STEM.items()),
    (r"^encoder\.base\.([1-4])\.", r"backbone.layer\1."),
    (r"^encoder\.psp\.stages\.", "pyramid.branches."),
    (r"^encoder\.psp\.bottleneck\.", "pyramid.bottleneck."),
    (r"(\.upsample\.\d+)\.conv\.", r"\1.0."),
    (r"^main_decoder\.upsample\.", "main."),
    (r"^aux_decoders\.(\d+)\.upsample\.", r"auxiliary.\1.decoder."),
)


def _published(checkpoint: Checkpoint) -> CCT:
    """A net that the authors' code has trained: ``encoder.*``, ``main_decoder.*`` and ``aux_decoders.*``."""
    weights = without_prefix(checkpoint.weights, ["encoder.", "main_decoder.", "aux_decoders."])
    first = weights.get("main_decoder.upsample.0.weight")
    if first is None or first.ndim != 4 or len(first) < 2:
        raise AdvCAMError(
            f"{checkpoint.path} holds no CCT net: it has no main_decoder.upsample.0.weight, as the authors' files, and "
            "was not trained here"
        )
    numbers = {int(found[1]) for key in weights if (found := re.match(r"aux_decoders\.(\d+)\.", key))}
    if len(numbers) not in (0, sum(AUXILIARY.values())):
        raise AdvCAMError(
            f"{checkpoint.path} has {len(numbers)} auxiliary decoders, the released configuration "
            f"{sum(AUXILIARY.values())}, so their perturbations are unknown; remove aux_decoders.* from it"
        )
    net = cct_net(
        Backbone(DEEP_BASE, random_weights=True), len(first), channels=first.shape[1], auxiliary=None if numbers else {}
    )
    named = {_own_name(key): value for key, value in weights.items()}
    load_weights(net, replace(checkpoint, weights=named), "CCT's net, by its names here")
    return net


def _own_name(key: str) -> str:
    for pattern, name in _AUTHORS:
        key = re.sub(pattern, name, key)
    return key


CCT_NET = NetKind(CCTSpec, cct_net, _published)
