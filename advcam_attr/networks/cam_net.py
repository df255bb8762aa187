"""A backbone's name in; the CAM net that is made of it (features, global average pooling, 1 × 1 convolution), out.

The net that AdvCAM's seeds come from is IRN's: a ResNet-50 whose last stride is removed, with a bias-free 1 × 1
convolution as its classifier. The same is made here of any backbone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from advcam_attr.files import write_bytes
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.load import LoadedModel, first_published, load_model
from advcam_attr.networks.strides import execution_order, freeze_before, place_of, weight_owners
from advcam_attr.networks.timm_trunk import Lowering, TimmTrunk, timm_trunk
from advcam_attr.types import AdvCAMError

#: IRN's backbone.
IRN_BACKBONE = "torchvision/resnet50"


@dataclass(frozen=True)
class CAMNetSpec:
    """What a CAM net is made of, without its weights; see `cam_net`."""

    backbone: str
    num_classes: int
    model_args: Mapping[str, Any] = field(default_factory=dict)
    stride: int | None = 16
    lowered_by: Lowering = "removal"
    train_from: str | None = None


class CAMNet(nn.Module):
    """Features, global average pooling, and a 1 × 1 convolution without bias; so class activation maps are exact.

    Norms with running statistics use these always, in training too, and leave them as they are. The stem and what
    comes before ``spec.train_from`` take no gradient.

    Attributes:
        spec: what it was made of.
        stride: by how many pixels of the image the cells of its maps lie apart.
        mean, std: the normalisation of its images, by channel, for RGB in [0, 1].
        classifier: the 1 × 1 convolution; weights ``(K, C, 1, 1)``.
    """

    def __init__(
        self, spec: CAMNetSpec, stride: int, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.spec, self.stride = spec, stride
        self.mean, self.std = tuple(mean), tuple(std)
        self.classifier = nn.Conv2d(channels, spec.num_classes, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to what is pooled, ``(N, C, h, w)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, K)``."""
        pooled = self.features(x).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(pooled)[:, :, 0, 0]
        return logits

    def train(self, mode: bool = True) -> CAMNet:
        """Training mode for all but the norms with running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        return self


class ResNet50CAM(CAMNet):
    """IRN's CAM net; its state dict has IRN's keys ``resnet50.*`` and ``classifier.weight``, and no others.

    Args:
        spec: output stride 16 is layer4 with stride 1; 8 is layer3 too. By dilation, the convolutions of these layers
            are dilated by 2, except in the first block of each (IRN's stride-8 option).
        resnet: torchvision's ResNet-50; changed in place.
        mean, std: the normalisation.
    """

    def __init__(self, spec: CAMNetSpec, resnet: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        stride = min(spec.stride or 32, 32)
        if stride not in (8, 16, 32):
            raise AdvCAMError(f"{spec.backbone} has no output stride {stride}; there are 8, 16 and 32")
        super().__init__(spec, stride, 2048, mean, std)
        net: Any = resnet
        net.avgpool = net.fc = nn.Identity()
        for layer in {8: (net.layer3, net.layer4), 16: (net.layer4,), 32: ()}[stride]:
            layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
            for block in layer[1:] if spec.lowered_by == "dilation" else ():
                block.conv2.dilation = block.conv2.padding = (2, 2)
        self.resnet50 = net

    def features(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to ``(N, 2048, ceil(H / stride), ceil(W / stride))``."""
        net = self.resnet50
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        out: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return out


class TimmCAM(CAMNet):
    """The CAM net of a timm model.

    Args:
        spec: what the trunk was made by.
        trunk: the model without its classifier and pooling.
        mean, std: the normalisation.
    """

    def __init__(self, spec: CAMNetSpec, trunk: TimmTrunk, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(spec, trunk.stride, trunk.reader.channels, mean, std)
        self.backbone, self._reader = trunk.model, trunk.reader

    def features(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to ``(N, C, h, w)``."""
        return self._reader(self.backbone, x)


def cam_net(
    backbone: str,
    num_classes: int,
    *,
    model_args: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    stride: int | None = 16,
    lowered_by: Lowering = "removal",
    train_from: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    known: Mapping[int, Sequence[int]] | None = None,
) -> CAMNet:
    """Make a CAM net: a backbone's features, global average pooling, and a new 1 × 1 convolution without bias.

    The backbone's weights are its pretrained ones unless ``checkpoint`` or ``random_weights`` says otherwise. Those of
    ``torchvision/resnet50`` are ``IMAGENET1K_V1``, which IRN starts from. The normalisation is found as
    `advcam_attr.networks.load_model` finds it, and travels with the net.

    A lowered stride gives a grid of ceil(H / stride) where all strided layers pad, as ResNets do; nets that drop a
    rest (2 × 2 patches without padding: ConvNeXt, DenseNet) go on dropping it in the strides that they keep.

    Args:
        backbone: ``torchvision/resnet50``, IRN's; or ``timm/NAME``.
        num_classes: K.
        model_args: keyword arguments of the backbone as its weights need them, e.g. ``{"num_classes": 1001}``.
        checkpoint: weights of the backbone and of its own classifier, which is dropped.
        random_weights: a backbone as it is initialised; the same in every call.
        stride: the output stride. A net whose own is at or below it is left as it is. None keeps the net's own.
        lowered_by: ``"removal"`` sets the last strides to 1 and leaves all else (IRN, and so AdvCAM);
            ``"dilation"`` also spreads the convolutions behind them, as timm's ``output_stride`` does (for
            ``torchvision/resnet50``: as IRN's stride-8 option does).
        train_from: the module of the backbone from which on weights are trained, e.g. ``"layer3"`` as in IRN;
            ``"classifier"`` trains the new convolution alone. None trains all but the stem, as AdvCAM's copy of IRN
            does. The stem, which is all up to the first norm, is always frozen (ResNet: conv1 and bn1).
        mean, std: another normalisation than the backbone's own.
        seed: of the new convolution's weights (default initialisation); the global random state is left alone.
        known: for some of the new classes, the classes of the backbone's own linear classifier that depict them. Their
            weights start from the mean of these, less the mean of all of its classes; those of the other classes from
            zero. It helps where images are few.

    Returns:
        The net, in eval mode, on the CPU; its ``stride`` is what was reached.

    Raises:
        AdvCAMError: an unknown name, weights that cannot be had or do not fit, a stride that the net cannot have, a
            ``train_from`` that it does not have, or ``known`` classes that it does not have.

    Example:
        >>> net = cam_net("timm/resnet18", 20, random_weights=True)
        >>> net.stride, net.features(torch.zeros(1, 3, 65, 64)).shape, net(torch.zeros(1, 3, 65, 64)).shape
        (16, torch.Size([1, 512, 5, 4]), torch.Size([1, 20]))
    """
    if num_classes < 1:
        raise AdvCAMError(f"a CAM net needs at least one class, got num_classes={num_classes}")
    if stride is not None and stride < 1:
        raise AdvCAMError(f"the output stride must be positive, got {stride}; None keeps the backbone's own")
    if lowered_by not in ("removal", "dilation"):
        raise AdvCAMError(f"strides are lowered by 'removal' or 'dilation', not by {lowered_by!r}")
    spec = CAMNetSpec(backbone, num_classes, dict(model_args or {}), stride, lowered_by, train_from)
    weights = {"checkpoint": checkpoint, "random_weights": random_weights, "mean": mean, "std": std}
    net: CAMNet
    size = 256
    if backbone == IRN_BACKBONE:
        loaded = _irn_resnet(spec, weights)
        own: Any = loaded.model.fc
        with _seeded(seed):
            net = ResNet50CAM(spec, loaded.model, loaded.preprocessing.mean or (), loaded.preprocessing.std or ())
    elif backbone.startswith("timm/"):
        trunk = timm_trunk(backbone, spec.model_args, weights, stride, lowered_by)
        size, own = trunk.size, trunk.classifier
        with _seeded(seed):
            net = TimmCAM(spec, trunk, trunk.mean, trunk.std)
    else:
        raise AdvCAMError(f"CAM nets are made of {IRN_BACKBONE} or timm/NAME, not of {backbone!r}")
    if known is not None:
        start = known_weights(own, known, num_classes, net.classifier.in_channels, backbone)
        net.classifier.weight.data.copy_(start[:, :, None, None])
    _freeze(net, size)
    return net.eval()


def _irn_resnet(spec: CAMNetSpec, weights: Mapping[str, Any]) -> LoadedModel:
    """torchvision's ResNet-50, with its first ImageNet weights where none are given."""
    published = weights["checkpoint"] is None and not weights["random_weights"]
    options = {**weights, "random_weights": published or weights["random_weights"]}
    loaded = load_model(spec.backbone, model_args=spec.model_args, **options)
    if published:
        load_weights(loaded.model, first_published(spec.backbone), spec.backbone)
    return loaded


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block whose random numbers come from a seed, and that leaves the global state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _freeze(net: CAMNet, size: int) -> None:
    """Take the gradient of the stem, and of what runs before ``train_from``."""
    order = execution_order(net, size=size)
    wanted, within = net.spec.train_from, "resnet50" if net.spec.backbone == IRN_BACKBONE else "backbone"
    first = 0 if wanted is None else place_of(wanted, order, within, net.spec.backbone)
    owners = weight_owners(net)
    norms = [order[name] for name in owners if name in order and _is_norm(net.get_submodule(name))]
    stem = min(norms or [min(order[name] for name in owners if name in order)])
    freeze_before(net, order, max(first, stem + 1))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


class UnknownClassError(AdvCAMError):
    """A class that the backbone, or the new net, does not have."""


def known_weights(
    own: nn.Module, known: Mapping[int, Sequence[int]], classes: int, channels: int, backbone: str
) -> Tensor:
    """The mean weights of the known classes that depict each new class, less the mean of all known classes.

    Args:
        own: the backbone's classifier, a linear one on its last maps.
        known: for some of the new classes, the classes of ``own`` that depict them.
        classes: K, how many new classes there are.
        channels: C, of the last maps.
        backbone: its name, for messages.

    Returns:
        ``(K, C)``; zeros for classes that nothing depicts.

    Raises:
        UnknownClassError: classes that the backbone or the new net does not have.
        AdvCAMError: another classifier.

    Example:
        >>> own = nn.Linear(2, 3)
        >>> _ = own.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        >>> known_weights(own, {1: (0, 2)}, 2, 2, "timm/resnet18")
        tensor([[ 0.0000,  0.0000],
                [ 0.5000, -1.0000]])
    """
    if not isinstance(own, nn.Linear) or own.in_features != channels:
        raise AdvCAMError(f"{backbone} has no linear classifier on its last maps to take known classes from")
    start = torch.zeros(classes, channels)
    for new, depicting in known.items():
        wrong = [c for c in depicting if not 0 <= c < own.out_features]
        if wrong or not 0 <= new < classes:
            named = ", ".join(map(str, (wrong or [new])[:3])) + (
                f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            )
            raise UnknownClassError(
                f"{backbone} has {own.out_features} classes and the new net {classes}: there is no {named}"
            )
        if depicting:
            start[new] = (own.weight[list(depicting)].mean(0) - own.weight.mean(0)).detach()
    return start


def save_cam_net(net: CAMNet, path: Path, classes: Sequence[str]) -> None:
    """Write a CAM net's weights, and in the notes its architecture, normalisation and class names.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.
        classes: K names.

    Raises:
        AdvCAMError: the file cannot be written, or the names are not K.

    Example:
        >>> save_cam_net(net, Path("classifier.safetensors"), ["cat", "dog"])  # doctest: +SKIP
    """
    if len(classes) != net.spec.num_classes:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, but {len(classes)} names are given")
    notes = {
        "cam_net": json.dumps(dataclasses.asdict(net.spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, notes)))


def in_order(content: bytes) -> bytes:
    """A safetensors file with its notes sorted, so that equal nets make equal files; the library shuffles them."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_cam_net(path: str | Path) -> tuple[CAMNet, tuple[str, ...]]:
    """Read what `save_cam_net` wrote.

    Returns:
        The net, in eval mode, on the CPU, and the names of its classes.

    Raises:
        AdvCAMError: the file is missing, damaged, or not of a CAM net.

    Example:
        >>> net, classes = load_cam_net("classifier.safetensors")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    try:
        spec = CAMNetSpec(**json.loads(checkpoint.metadata["cam_net"]))
        classes = tuple(map(str, json.loads(checkpoint.metadata["classes"])))
        mean, std = ([float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which CAM net it is of; give one that was trained here") from error
    net = cam_net(**vars(spec), random_weights=True, mean=mean, std=std)
    load_weights(net, checkpoint, spec.backbone)
    return net, classes
