"""Weights files of the original authors: their tensors by the names that the nets here use, each once.

IRN's nets register their modules several times (``resnet50``, ``stage1`` ..., ``backbone``, and lists of new layers),
so a file names most tensors three times. deeplab-pytorch's nets, converted from Caffe, have other names and read BGR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advcam_attr.networks.checkpoint import Checkpoint, without_prefix
from advcam_attr.types import AdvCAMError

#: The parts of ResNet-50 by stage and position, in IRN's CAM net and in IRN's own. The positions between are ReLU and
#: max pool, which have no weights.
_CAM_STAGES = {
    "stage1.0": "conv1",
    "stage1.1": "bn1",
    "stage1.4": "layer1",
    "stage2.0": "layer2",
    "stage3.0": "layer3",
    "stage4.0": "layer4",
}
_IRN_STAGES = {
    "stage1.0": "conv1",
    "stage1.1": "bn1",
    "stage2.0": "layer1",
    "stage3.0": "layer2",
    "stage4.0": "layer3",
    "stage5.0": "layer4",
}

_CAM_ROOTS = ("resnet50.", "stage1.", "backbone.", "classifier.", "newly_added.")
_IRN_ROOTS = ("resnet50.", "stage1.", "backbone.", "fc_edge1.", "fc_dp1.", "edge_layers.", "dp_layers.", "mean_shift.")

#: Patterns of keys that are not used, and why.
_CAM_UNUSED = {r"resnet50\.fc\.": "ImageNet's classifier, which the net does not use"}
_IRN_UNUSED = {**_CAM_UNUSED, r"path_indices\d+$|disp_target$": "indices of paths, which are computed"}


@dataclass(frozen=True)
class IRNWeights:
    """The used part of a file, with unknown keys so that loading reports them, and the ignored keys with reasons."""

    checkpoint: Checkpoint
    ignored: Mapping[str, str]

    @property
    def note(self) -> str:
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        parts = (f"{len(keys)} keys ({_roots(keys)}): {reason}" for reason, keys in reasons.items())
        return "ignored " + "; ".join(parts) if reasons else ""


def irn_cam_weights(checkpoint: Checkpoint) -> IRNWeights:
    """Return the weights of IRN's CAM net, each once: ``resnet50.{conv1 .. layer4}.*`` and ``classifier.weight``."""

    def own_name(key: str) -> str:
        return "classifier.weight" if key == "newly_added.0.weight" else _resnet50_name(key, _CAM_STAGES)

    return _each_once(checkpoint, _CAM_ROOTS, own_name, _CAM_UNUSED)


def irnet_weights(checkpoint: Checkpoint) -> IRNWeights:
    """Return the weights of a file of IRN's own net, each once and by the names of `IRNet`."""

    def own_name(key: str) -> str:
        if layer := re.fullmatch(r"(edge|dp)_layers\.(\d)\.(.+)", key):
            key = f"fc_{layer[1]}{int(layer[2]) + 1}.{layer[3]}"
        return "mean_shift.running_mean" if key == "fc_dp7.4.running_mean" else _resnet50_name(key, _IRN_STAGES)

    found = _each_once(checkpoint, _IRN_ROOTS, own_name, _IRN_UNUSED)
    weights = {re.sub(r"^resnet50\.", "trunk.resnet50.", key): v for key, v in found.checkpoint.weights.items()}
    return replace(found, checkpoint=replace(found.checkpoint, weights=weights))


def _resnet50_name(key: str, stages: Mapping[str, str]) -> str:
    inner = re.fullmatch(r"backbone\.(\d)\.(.+)", key)
    part = re.fullmatch(r"(stage\d\.\d+)\.(.+)", f"stage{int(inner[1]) + 1}.{inner[2]}" if inner else key)
    return f"resnet50.{stages[part[1]]}.{part[2]}" if part and part[1] in stages else key


def _each_once(
    checkpoint: Checkpoint, roots: Collection[str], own_name: Callable[[str], str], unused: Mapping[str, str]
) -> IRNWeights:
    weights = without_prefix(checkpoint.weights, roots)
    used: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in sorted(weights, key=lambda key: own_name(key) != key):
        reason = next((reason for pattern, reason in unused.items() if re.match(pattern, key)), None)
        if reason is not None:
            ignored[key] = reason
            continue
        name = own_name(key)
        if name not in used:
            used[name], origin[name] = weights[key], key
        elif torch.equal(used[name], weights[key]):
            ignored[key] = "further names of weights that are used"
        else:
            raise AdvCAMError(
                f"checkpoint {checkpoint.path} is rejected: {origin[name]} and {key} are one tensor in IRN's net, but "
                "hold different weights; save the net again"
            )
    return IRNWeights(replace(checkpoint, weights=used), ignored)


def _roots(keys: list[str]) -> str:
    return ", ".join(sorted({f"{key.split('.', 1)[0]}.*" for key in keys}))


# --- deeplab-pytorch --------------------------------------------------------------------------------------------------

#: What deeplab-pytorch subtracts from RGB values of 0 to 255; it does not divide them.
CAFFE_MEAN = (122.675, 116.669, 104.008)

#: Keys start with one of these once ``base.`` (the net at several scales) and ``module.`` are removed.
_CAFFE_ROOTS = ("layer1.", "layer2.", "layer3.", "layer4.", "layer5.", "aspp.", "conv1.", "bn1.", "fc.")

#: deeplab-pytorch's parts of a bottleneck, and torchvision's convolution and norm.
_CAFFE_PARTS = {
    "reduce": {"conv": "conv1", "bn": "bn1"},
    "conv3x3": {"conv": "conv2", "bn": "bn2"},
    "increase": {"conv": "conv3", "bn": "bn3"},
    "shortcut": {"conv": "downsample.0", "bn": "downsample.1"},
}


def is_caffe(checkpoint: Checkpoint) -> bool:
    return any(re.search(r"(^|\.)layer\d\.block\d+\.", key) for key in checkpoint.weights)


def caffe_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Return deeplab-pytorch's weights by torchvision's names of a ResNet, and ``aspp.N`` for the pyramid.

    Its nets read BGR from 0 to 255 less a mean: the first convolution's channels are reversed, and the normalization is
    noted, so that the result reads RGB.
    """
    named = {_caffe_name(key): value for key, value in without_prefix(checkpoint.weights, _CAFFE_ROOTS).items()}
    first = named.get("conv1.weight")
    if first is not None:
        if first.ndim != 4 or first.shape[1] != 3:
            raise AdvCAMError(f"checkpoint {checkpoint.path}: conv1 is {tuple(first.shape)}, not of three channels")
        named["conv1.weight"] = first.flip(1)
    mean, std = (" ".join(str(v / 255) for v in values) for values in (CAFFE_MEAN, (1.0, 1.0, 1.0)))
    return replace(checkpoint, weights=named, metadata={"mean": mean, "std": std})


def _caffe_name(key: str) -> str:
    if stem := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", key):
        return f"{stem[1]}1.{stem[2]}"
    part = re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", key)
    if part and part[3] in _CAFFE_PARTS:
        return f"layer{int(part[1]) - 1}.{int(part[2]) - 1}.{_CAFFE_PARTS[part[3]][part[4]]}.{part[5]}"
    return re.sub(r"^aspp\.c(\d)\.", r"aspp.\1.", key)
