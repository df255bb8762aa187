"""A backbone's name in; the classifier for weakly supervised localization that is made of it, with its weights, out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from advcam_attr.files import write_bytes
from advcam_attr.networks.cam_net import in_order
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, without_prefix
from advcam_attr.networks.load import channels
from advcam_attr.networks.strides import execution_order, freeze_before, place_of
from advcam_attr.networks.timm_trunk import timm_trunk
from advcam_attr.networks.wsol_parts import ARCHITECTURES, TELLTALES, Norms, TimmWSOL, WSOLNet, WSOLNetSpec
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError

#: Of RGB values in 0..1, over ImageNet; Choe et al. use them for Inception-V3, too.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Started(NamedTuple):
    """What became of the weights that a net starts from.

    Attributes:
        loaded: keys of the net that came from the file.
        new: keys of the net that are as they were initialised.
        unread: keys of the file that the net has no place for.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unread: tuple[str, ...]


def wsol_net(
    backbone: str = "torchvision/resnet50",
    num_classes: int = 200,
    *,
    model_args: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    stride: int | None = 16,
    train_from: str | None = None,
    norms: Norms = "batch",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> WSOLNet:
    """Make a classifier whose class activation maps localize, to be trained.

    Weights are ImageNet's published ones unless ``checkpoint`` or ``random_weights`` says otherwise; those of
    torchvision are its first (``IMAGENET1K_V1``). The classifier is kept where it has ``num_classes`` classes
    (ResNet-50 on ImageNet), and new otherwise; the heads of Inception-V3 and VGG-16, and of timm models, always are.

    Args:
        backbone: ``torchvision/resnet50``, ``torchvision/inception_v3``, ``torchvision/vgg16``, or ``timm/NAME``.
        num_classes: K.
        model_args: keyword arguments of a timm model as its weights need them, e.g. ``{"num_classes": 1001}``.
        checkpoint: weights to start from, by torchvision's (or for ``timm/NAME``, timm's) keys; a ``module.`` before
            all of them is taken off.
        random_weights: as initialised; the same in every call.
        stride: 16 gives maps of 14 × 14 cells at 224 pixels, 8 of 28 × 28 (Choe et al.'s ``large_feature_map``). By
            removal of the last strides, without dilation. timm models may have others; None keeps their own.
        train_from: the module from which on weights are trained, e.g. ``"layer4"``, ``"blocks.5"``, ``"fc"``; norms
            before it keep their running statistics. None trains all, as Choe et al. do.
        norms: ``"batch"`` as Choe et al.; ``"running"`` for weights whose norms hold no statistics (folded), or for
            small batches.
        mean, std: another normalisation than the backbone's own.
        seed: of new weights; the global random state is left alone.

    Returns:
        The net, in eval mode, on the CPU.

    Raises:
        AdvCAMError: an unknown name, weights that cannot be had or do not fit, a stride that the net cannot have, or a
            ``train_from`` that it does not have.

    Example:
        >>> net = wsol_net("timm/resnet18", 10, random_weights=True)
        >>> net.stride, net(torch.zeros(1, 3, 64, 64)).shape
        (16, torch.Size([1, 10]))
    """
    if num_classes < 1:
        raise AdvCAMError(f"a classifier needs at least one class, got num_classes={num_classes}")
    if norms not in get_args(Norms):
        raise AdvCAMError(f"norms use the statistics of {' or '.join(map(repr, get_args(Norms)))}, not of {norms!r}")
    if checkpoint is not None and random_weights:
        raise AdvCAMError("a checkpoint and random weights exclude each other: give one of the two")
    spec = WSOLNetSpec(backbone, num_classes, dict(model_args or {}), stride, train_from, norms)
    net: WSOLNet
    size = 256
    if backbone in ARCHITECTURES:
        net = _build(spec, seed)
        net.mean, net.std = channels("mean", mean) or _MEAN, channels("std", std) or _STD
        if checkpoint is not None:
            start_from(net, read_checkpoint(checkpoint))
        elif not random_weights:
            start_from(net, _published(backbone))
    elif backbone.startswith("timm/"):
        weights = {"checkpoint": checkpoint, "random_weights": random_weights, "mean": mean, "std": std}
        trunk = timm_trunk(backbone, spec.model_args, weights, stride, "removal")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = TimmWSOL(spec, trunk)
        net.mean, net.std, size = trunk.mean, trunk.std, trunk.size
    else:
        raise AdvCAMError(
            f"classifiers for localization are made of {', '.join(ARCHITECTURES)} or timm/NAME, not of {backbone!r}"
            + nearest(backbone, ARCHITECTURES)
        )
    _freeze(net, size)
    return net.eval()


def _build(spec: WSOLNetSpec, seed: int) -> WSOLNet:
    if spec.model_args:
        raise AdvCAMError(f"{spec.backbone} takes no model arguments for localization, got {dict(spec.model_args)}")
    architecture: Any = ARCHITECTURES[spec.backbone]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: WSOLNet = architecture(spec)
    return net


def _published(backbone: str) -> Checkpoint:
    from torchvision.models import get_model_weights

    start: Any = get_model_weights(backbone.partition("/")[2])["IMAGENET1K_V1"]
    try:
        return Checkpoint(Path(start.url), start.get_state_dict(progress=False, check_hash=True), {})
    except OSError as error:
        raise AdvCAMError(
            f"the pretrained weights of {backbone} cannot be downloaded (no network?); "
            "give a checkpoint or random weights"
        ) from error


def start_from(net: WSOLNet, checkpoint: Checkpoint) -> Started:
    """Put the weights of a published backbone into a net of the same kind, where they fit.

    Args:
        net: changed in place, unless an error is raised; made of a name of torchvision's.
        checkpoint: of the backbone; of its own classifier, too, which is kept where it has as many classes.

    Returns:
        Which weights came from the file, which are new, and which of the file are not read.

    Raises:
        AdvCAMError: weights of the backbone are missing, are of other shapes or are not finite, or there are others
            than the net knows of.
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
    load_weights(net, dataclasses.replace(checkpoint, weights=filled), net.spec.backbone)
    return Started(tuple(key for key in own if key in used), tuple(new), tuple(key for key in weights if key in unread))


def _freeze(net: WSOLNet, size: int) -> None:
    """Take the gradient of what runs before ``train_from``."""
    if net.spec.train_from is not None:
        order = execution_order(net, size=size)
        freeze_before(net, order, place_of(net.spec.train_from, order, "backbone", net.spec.backbone))


_NOTE = "wsol_net"


def save_wsol_net(net: WSOLNet, path: Path, classes: Sequence[str]) -> None:
    """Write a net's weights, and in the notes its architecture, normalisation and class names.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.
        classes: K names.

    Raises:
        AdvCAMError: the file cannot be written, or the names are not K.
    """
    if len(classes) != net.spec.num_classes:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, but {len(classes)} names are given")
    notes = {
        _NOTE: json.dumps(dataclasses.asdict(net.spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, notes)))


def load_wsol_net(
    path: str | Path,
    *,
    stride: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[WSOLNet, tuple[str, ...] | None]:
    """Read a trained net: one that `save_wsol_net` wrote, or an authors' file of Choe et al. or of CutMix.

    The latter are torch files with the weights under ``state_dict``, by torchvision's keys, with or without ``module.``
    before them; what they are of is told from the keys. CutMix's ResNet-50 was trained with a stride in layer4, which
    it has not here. No code of a file is run.

    Args:
        path: the file.
        stride: 16 or 8, which authors' files of ResNet-50 and Inception-V3 do not tell; 16 if it is not given, which
            is ``large_feature_map=False``. A net of `save_wsol_net` has its own.
        mean, std: another normalisation than the file's own, or than ImageNet's.

    Returns:
        The net, in eval mode, on the CPU, and the names of its classes, or None where the file does not tell.

    Raises:
        AdvCAMError: the file is missing, damaged or of another net, or its stride is another.

    Example:
        >>> net, classes = load_wsol_net("classifier.safetensors")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    if _NOTE not in checkpoint.metadata:
        return _authors(checkpoint, stride, mean, std), None
    try:
        spec = WSOLNetSpec(**json.loads(checkpoint.metadata[_NOTE]))
        classes = tuple(map(str, json.loads(checkpoint.metadata["classes"])))
        noted = {what: [float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std")}
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which classifier it is of; give one that was trained here") from error
    if stride not in (None, spec.stride):
        raise AdvCAMError(f"{path} was trained with output stride {spec.stride}, not {stride}")
    net = wsol_net(**vars(spec), random_weights=True, mean=mean or noted["mean"], std=std or noted["std"])
    load_weights(net, checkpoint, spec.backbone)
    return net, classes


def _authors(
    checkpoint: Checkpoint, stride: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> WSOLNet:
    roots = ("conv1.", "features.", "Conv2d_1a_3x3.", "layer1.")
    weights = without_prefix(checkpoint.weights, roots)
    backbone = next((name for key, name in TELLTALES if key in weights), None)
    head = weights.get("SPG_A4.weight" if backbone == "torchvision/inception_v3" else "fc.weight")
    if backbone is None or head is None:
        raise AdvCAMError(
            f"checkpoint {checkpoint.path} is none of a ResNet-50, Inception-V3 or VGG-16 for localization; "
            "start from it by wsol_net(checkpoint=...) if it is a backbone's"
        )
    if backbone == "torchvision/vgg16":
        told = 16 if "features.28.weight" in weights else 8
        if stride not in (None, told):
            raise AdvCAMError(f"checkpoint {checkpoint.path} is of a VGG-16 of output stride {told}, not {stride}")
        stride = told
    net = wsol_net(backbone, len(head), random_weights=True, stride=stride or 16, mean=mean, std=std)
    load_weights(net, dataclasses.replace(checkpoint, weights=weights), backbone)
    return net
