"""Classifiers for weakly supervised localization: making, initializing and loading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch import Tensor

from advcam_attr.networks.backbone import Backbone, channels
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, seeded, without_prefix
from advcam_attr.networks.freezing import apply_train_from
from advcam_attr.networks.load import first_published
from advcam_attr.networks.net_file import NetKind, load_net
from advcam_attr.networks.timm_trunk import timm_trunk
from advcam_attr.networks.wsol_parts import ARCHITECTURES, SIGNATURE_KEYS, Norms, TimmWSOL, WSOLNet, WSOLNetSpec
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

#: ImageNet's, of RGB values in 0..1; Choe et al. use them for Inception-V3, too.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Started(NamedTuple):
    """The keys of a net that a file has and lacks, and the file's keys that the net does not have."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unread: tuple[str, ...]


def wsol_net(
    backbone: Backbone | str = "torchvision/resnet50", num_classes: int = 200, *, norms: Norms = "batch", seed: int = 0
) -> WSOLNet:
    """Make a classifier whose class activation maps localize, to be trained: in eval mode, on the CPU.

    Pretrained weights of torchvision are its first (``IMAGENET1K_V1``). The classifier is reused if it has
    ``num_classes`` classes (ResNet-50 on ImageNet), and new otherwise; the heads of Inception-V3 and VGG-16, and of
    timm models, always are.

    Args:
        backbone: ``torchvision/resnet50``, ``torchvision/inception_v3``, ``torchvision/vgg16``, or ``timm/NAME``. By
            default of stride 16 by removal, which gives maps of 14 × 14 cells at 224 pixels; 8 gives 28 × 28 (Choe et
            al.'s ``large_feature_map``). Norms before its ``train_from`` keep their running statistics; None trains
            all, as Choe et al. do.
        num_classes: K.
        norms: ``"batch"`` as Choe et al.; ``"running"`` for weights whose norms hold no statistics (folded), or for
            small batches.
        seed: of new weights.

    Raises:
        AdvCAMError: the backbone is unknown, its weights cannot be loaded, or it cannot have the stride or
            ``train_from``.

    Example:
        >>> import torch
        >>> net = wsol_net(Backbone("timm/resnet18", random_weights=True), 10)
        >>> net.stride, net(torch.zeros(1, 3, 64, 64)).shape
        (16, torch.Size([1, 10]))
    """
    if num_classes < 1:
        raise AdvCAMError(f"a classifier needs at least one class, got num_classes={num_classes}")
    if norms not in get_args(Norms):
        raise AdvCAMError(f"norms use the statistics of {' or '.join(map(repr, get_args(Norms)))}, not of {norms!r}")
    backbone = Backbone.of(backbone, stride=16, stride_mode="removal")
    if backbone.stride_mode != "removal":
        raise AdvCAMError("classifiers for localization have strides lowered by removal; leave stride_mode out")
    spec = WSOLNetSpec(backbone, num_classes, norms)
    net: WSOLNet
    size = 256
    if backbone.name in ARCHITECTURES:
        if backbone.model_args:
            raise AdvCAMError(
                f"{backbone.name} takes no model arguments for localization, got {dict(backbone.model_args)}"
            )
        architecture: Any = ARCHITECTURES[backbone.name]
        with seeded(seed):
            net = architecture(spec)
        net.mean, net.std = tuple(backbone.mean or _MEAN), tuple(backbone.std or _STD)
        if backbone.checkpoint is not None:
            start_from(net, read_checkpoint(backbone.checkpoint))
        elif not backbone.random_weights:
            start_from(net, first_published(backbone.name))
    elif backbone.is_timm:
        trunk = timm_trunk(backbone)
        with seeded(seed):
            net = TimmWSOL(spec, trunk)
        net.mean, net.std, size = trunk.mean, trunk.std, trunk.size
    else:
        raise AdvCAMError(
            f"classifiers for localization are made of {', '.join(ARCHITECTURES)} or timm/NAME, not of "
            f"{backbone.name!r}{nearest(backbone.name, ARCHITECTURES)}"
        )
    net.spec = replace(spec, backbone=backbone.without_weights(net.mean, net.std))
    apply_train_from(net, backbone, "backbone", size)
    return net.eval()


def start_from(net: WSOLNet, checkpoint: Checkpoint) -> Started:
    """Load the weights of a published backbone of torchvision's into a net of the same kind, as far as they fit.

    The checkpoint's own classifier is used if it has as many classes. On an error the net stays unchanged.
    """
    own = net.state_dict()
    weights = net.own_keys(without_prefix(checkpoint.weights, [*own, *net.unread]))
    unread = {key for key in weights if key.startswith(net.unread) and key not in own} if net.unread else set()
    for key, value in weights.items():
        if key.startswith(net.head) and key in own and value.shape != own[key].shape:
            unread |= {other for other in weights if other.startswith(net.head)}
    used: dict[str, Tensor] = {key: value for key, value in weights.items() if key not in unread}
    new = [key for key in own if key.startswith(net.head) and key not in used]
    filled = {**used, **{key: own[key] for key in new}}
    load_weights(net, replace(checkpoint, weights=filled), net.spec.backbone.name)
    return Started(tuple(key for key in own if key in used), tuple(new), tuple(key for key in weights if key in unread))


def load_wsol_net(
    path: str | Path,
    *,
    stride: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[WSOLNet, tuple[str, ...]]:
    """Load a trained net: one that `advcam_attr.networks.net_file.save_net` wrote, or an authors' file.

    Authors' files are those of Choe et al. or of CutMix: torch files with the weights under ``state_dict``, by
    torchvision's keys, from which their architecture is found. CutMix's ResNet-50 was trained with a stride in layer4,
    which it does not have here. No code of a file is run.

    Args:
        path: the file.
        stride: 16 or 8, of authors' files of ResNet-50 and Inception-V3, which do not record it; 16 by default, as
            with ``large_feature_map=False``. Other files have their own.
        mean, std: another normalization than the file's own, or than ImageNet's.

    Returns:
        The net, in eval mode, on the CPU, and the names of its classes (none in authors' files).

    Raises:
        AdvCAMError: the file is missing, damaged or of another net, or its stride is another.
    """
    checkpoint = read_checkpoint(path)
    if WSOLNetSpec.key not in checkpoint.metadata:
        return _published(checkpoint, Backbone("", stride=stride or "auto", mean=mean, std=std)), ()
    net, classes = load_net(checkpoint, WSOL_NET)
    if stride not in (None, net.spec.backbone.stride):
        raise AdvCAMError(f"{path} was trained with output stride {net.spec.backbone.stride}, not {stride}")
    net.mean, net.std = channels("mean", mean) or net.mean, channels("std", std) or net.std
    net.spec = replace(net.spec, backbone=net.spec.backbone.without_weights(net.mean, net.std))
    return net, classes


def _published(checkpoint: Checkpoint, options: Backbone | None = None) -> WSOLNet:
    roots = ("conv1.", "features.", "Conv2d_1a_3x3.", "layer1.")
    weights = without_prefix(checkpoint.weights, roots)
    name = next((name for key, name in SIGNATURE_KEYS if key in weights), None)
    head = weights.get("SPG_A4.weight" if name == "torchvision/inception_v3" else "fc.weight")
    if name is None or head is None:
        raise AdvCAMError(
            f"checkpoint {checkpoint.path} is none of a ResNet-50, Inception-V3 or VGG-16 for localization; "
            "start from it by Backbone(..., checkpoint=...) if it is a backbone's"
        )
    options = options or Backbone(name)
    stride = options.stride
    if name == "torchvision/vgg16":
        own = 16 if "features.28.weight" in weights else 8
        if stride not in ("auto", own):
            raise AdvCAMError(f"checkpoint {checkpoint.path} is of a VGG-16 of output stride {own}, not {stride}")
        stride = own
    net = wsol_net(replace(options, name=name, random_weights=True, stride=stride), len(head))
    load_weights(net, replace(checkpoint, weights=weights), name)
    return net


WSOL_NET = NetKind(WSOLNetSpec, wsol_net, _published)
