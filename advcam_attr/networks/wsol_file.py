"""A classifier for localization in; one safetensors file that it can be had again from, and back; or others' files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from advcam_attr.files import write_bytes
from advcam_attr.networks.cam_file import in_order
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, without_prefix
from advcam_attr.networks.wsol_net import wsol_net
from advcam_attr.networks.wsol_parts import TELLTALES, WSOLNet, WSOLNetSpec
from advcam_attr.types import AdvCAMError

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
