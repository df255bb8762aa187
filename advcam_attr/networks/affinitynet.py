"""Images in; embeddings of their cells, near each other where two cells are of one class (AffinityNet), out.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA, CVPR 2018). A head reads three
taps of a trunk, each by a 1 × 1 convolution, and their concatenation by a last one, all with ELU and without biases.
What is made of the embeddings is in `advcam_attr.refine.psa`. With the published trunk, ResNet-38, parameters have the
names of the authors' files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from advcam_attr.files import write_bytes
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, without_prefix
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.timm_trunk import Lowering, TimmTrunk, timm_trunk
from advcam_attr.types import AdvCAMError

#: PSA's trunk, which SEAM and SC-CAM have too.
RESNET38 = "resnet38"

#: The head's layers, and what others' heads on the same trunk are called: none of them is part of the trunk.
_HEAD = ("f8_3", "f8_4", "f8_5", "f9")
_OTHER_HEADS = ("fc8", "fc8_20", "fc8_200")

_ROOTS = ("conv1a.", "b2.", "bn7.", "f9.", "fc8.", "fc8_20.")

#: The note of a file that says what net it is of.
_NOTE = "affinity_net"


@dataclass(frozen=True)
class AffinityNetSpec:
    """What an affinity net is made of, without its weights; see `affinity_net`."""

    backbone: str = RESNET38
    model_args: Mapping[str, Any] = field(default_factory=dict)
    stride: int = 8
    lowered_by: Lowering = "removal"
    width: int = 64


class TrainedParts(NamedTuple):
    """The weights that are trained, by the pace at which PSA trains them: 1, 2, 10 and 20 times the learning rate.

    Attributes:
        weights, biases: of the trunk; PSA's has no bias that is trained.
        new_weights, new_biases: of the head, which has no biases.
    """

    weights: list[nn.Parameter]
    biases: list[nn.Parameter]
    new_weights: list[nn.Parameter]
    new_biases: list[nn.Parameter]


class _AffinityHead(nn.Module):
    """The head, and how an affinity net is trained: with all norms as they are."""

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

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Images ``(N, 3, H, W)`` to three feature maps, the last of them on the net's own grid."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to embeddings ``(N, C, h, w)``; C is 448 for the published net."""
        taps = self.stages(x)
        height, width = taps[-1].shape[2:]
        parts = [
            F.elu(layer(tap if tap.shape[2:] == (height, width) else F.adaptive_avg_pool2d(tap, (height, width))))
            for layer, tap in zip((self.f8_3, self.f8_4, self.f8_5), taps, strict=True)
        ]
        return F.elu(self.f9(torch.cat(parts, 1)))

    def train(self, mode: bool = True) -> _AffinityHead:
        """Training mode for all but the norms with running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        return self

    def _freeze(self, stem: Sequence[str]) -> None:
        """Take the gradient of all norms with running statistics, and of the stem."""
        for name, module in self.named_modules():
            if name in stem or isinstance(module, nn.modules.batchnorm._NormBase):
                module.requires_grad_(False)


class ResNet38Affinity(_AffinityHead, ResNet38):
    """PSA's AffinityNet; its state dict has the authors' keys, and no others.

    ``conv1a``, the blocks ``b2*`` and all norms, statistics and affine weights alike, are frozen.

    Args:
        width: as for the trunk; 64 gives the published net with its 64 + 128 + 256 = 448 channels.

    Example:
        >>> net = ResNet38Affinity(width=2).eval()
        >>> net(torch.rand(1, 3, 40, 64)).shape
        torch.Size([1, 14, 5, 8])
    """

    #: What is frozen besides the norms.
    stem: ClassVar[tuple[str, ...]] = ("conv1a", "b2", "b2_1", "b2_2")

    def __init__(self, width: int = 64) -> None:
        ResNet38.__init__(self, width)
        self.spec = AffinityNetSpec(width=width)
        self._add_head((8 * width, 16 * width, 64 * width), width)
        self._freeze(self.stem)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Images ``(N, 3, H, W)`` to conv4, conv5 and conv6, of ``ceil(H / 8)`` by ``ceil(W / 8)`` cells."""
        return self.features(x)


class TimmAffinity(_AffinityHead):
    """PSA's head over the last three stages of a timm model; taps of a finer grid are averaged to the last one's.

    All norms with running statistics are frozen; all else is trained.

    Args:
        spec: what the trunk was made by.
        trunk: the model without its classifier and pooling; what comes after its last stage is taken off.
    """

    def __init__(self, spec: AffinityNetSpec, trunk: TimmTrunk) -> None:
        super().__init__()
        self.spec, self.stride, self.mean, self.std = spec, trunk.stride, trunk.mean, trunk.std
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
                f"{spec.backbone} does not give the three feature maps that an affinity net reads; choose another"
            ) from error
        self._add_head([tap.shape[1] for tap in taps], spec.width)
        self._freeze(())

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Images ``(N, 3, H, W)`` to what the last three stages give."""
        model: Any = self.backbone
        found: Sequence[Tensor] = model.forward_intermediates(x, indices=self._indices, intermediates_only=True)
        return found


AffinityNet = ResNet38Affinity | TimmAffinity


def affinity_net(
    backbone: str = RESNET38,
    *,
    model_args: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    stride: int = 8,
    lowered_by: Lowering = "removal",
    width: int = 64,
    seed: int = 0,
) -> AffinityNet:
    """Make an affinity net with a new head, to be trained.

    Args:
        backbone: ``resnet38``, PSA's, or ``timm/NAME``: any that gives feature maps by stages.
        model_args: keyword arguments of a timm model.
        checkpoint: the trunk's weights. For ResNet-38 any file with its keys, e.g. of a trained SEAM or SC-CAM net;
            heads in it are not read. For a timm model, its weights with its own classifier.
        random_weights: a trunk as it is initialised; the same in every call.
        stride: of the embeddings: 8 in PSA; 16 is four times as cheap. A timm model whose own is lower keeps it.
        lowered_by: see `advcam_attr.networks.cam_net.cam_net`; not read for ResNet-38.
        width: of the head, and of ResNet-38; 64 in PSA.
        seed: of the new weights; the global random state is left alone.

    Returns:
        The net, in eval mode, on the CPU. ``net(x)`` are embeddings; ``net.mean``, ``net.std`` and ``net.stride`` say
        how images are to be prepared.

    Raises:
        AdvCAMError: an unknown backbone, weights that cannot be had or do not fit, a stride that the net cannot have.

    Example:
        >>> net = affinity_net("timm/mobilenetv2_100", random_weights=True, stride=16)
        >>> net.stride, net(torch.zeros(1, 3, 64, 96)).shape
        (16, torch.Size([1, 448, 4, 6]))
    """
    spec = AffinityNetSpec(backbone, dict(model_args or {}), stride, lowered_by, width)
    if backbone != RESNET38:
        return _make(spec, seed, {"checkpoint": checkpoint, "random_weights": random_weights})
    if (checkpoint is None) != random_weights:
        raise AdvCAMError("resnet38 needs a file of its trunk's weights (or random weights, which learn little)")
    net = _make(spec, seed)
    if checkpoint is not None:
        _load_trunk(net, read_checkpoint(checkpoint))
    return net


def _make(spec: AffinityNetSpec, seed: int, weights: Mapping[str, Any] | None = None) -> AffinityNet:
    if min(spec.stride, spec.width) < 1:
        raise AdvCAMError(f"stride and width must be positive, got {spec.stride} and {spec.width}")
    if spec.backbone == RESNET38:
        if spec.stride != ResNet38.stride:
            raise AdvCAMError(f"resnet38 has stride {ResNet38.stride}, not {spec.stride}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ResNet38Affinity(spec.width).eval()
    if not spec.backbone.startswith("timm/"):
        raise AdvCAMError(f"affinity nets are made of {RESNET38} or timm/NAME, not of {spec.backbone!r}")
    trunk = timm_trunk(
        spec.backbone, spec.model_args, weights or {"random_weights": True}, spec.stride, spec.lowered_by
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmAffinity(spec, trunk).eval()


def _load_trunk(net: AffinityNet, checkpoint: Checkpoint) -> None:
    """Take the trunk from a file, whatever head is in it; the head stays new."""
    weights = without_prefix(checkpoint.weights, _ROOTS)
    own = {key: value for key, value in net.state_dict().items() if key.split(".")[0] in _HEAD}
    others = {key: value for key, value in weights.items() if key.split(".")[0] not in (*_HEAD, *_OTHER_HEADS)}
    load_weights(net, replace(checkpoint, weights={**others, **own}), f"the trunk of {net.spec.backbone}")


def trained_parts(net: AffinityNet) -> TrainedParts:
    """The weights that take gradient, sorted as PSA trains them.

    Example:
        >>> [len(part) for part in trained_parts(ResNet38Affinity(width=1))]
        [35, 0, 4, 0]
    """
    parts = TrainedParts([], [], [], [])
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            parts[2 * (name.split(".")[0] in _HEAD) + name.endswith("bias")].append(parameter)
    return parts


def save_affinity_net(net: AffinityNet, path: Path) -> None:
    """Write an affinity net's weights, and in a note what it is made of and its normalisation.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.

    Raises:
        AdvCAMError: the file cannot be written.
    """
    about = dataclasses.asdict(net.spec) | {"mean": list(net.mean), "std": list(net.std)}
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, save(weights, {_NOTE: json.dumps(about)}))


def load_affinity_net(path: str | Path) -> AffinityNet:
    """Read a trained affinity net: one that was trained here, or the authors' ResNet-38 by its own keys.

    No code of the file is run; a ``module.`` before all keys is taken off.

    Returns:
        The net, in eval mode, on the CPU, float32.

    Raises:
        AdvCAMError: a file that is missing, damaged, or not of an affinity net: keys that are missing or unexpected,
            other shapes, or values that are not finite are named.

    Example:
        >>> net = load_affinity_net("resnet38_aff.pth")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    if _NOTE not in checkpoint.metadata:
        kernel = without_prefix(checkpoint.weights, _ROOTS).get("conv1a.weight")
        net = _make(AffinityNetSpec(width=len(kernel) if kernel is not None and kernel.ndim else 64), seed=0)
        load_weights(net, checkpoint, "PSA's AffinityNet")
        return net
    try:
        about = dict(json.loads(checkpoint.metadata[_NOTE]))
        mean, std = (tuple(float(v) for v in about.pop(what)) for what in ("mean", "std"))
        spec = AffinityNetSpec(**about)
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which affinity net it is of; give one that was trained here") from error
    net = _make(spec, 0, {"random_weights": True, "mean": mean, "std": std})
    load_weights(net, checkpoint, spec.backbone)
    return net
