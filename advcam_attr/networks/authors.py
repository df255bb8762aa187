"""The weights of IRN's ResNet-50 CAM net as its authors' code saves them in; the same, each once, out.

Their net registers its modules several times: ResNet-50 as ``resnet50``, its parts again as ``stage1`` to ``stage4``
and as ``backbone``, and the classifier again in ``newly_added``. So a file names most tensors three times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advcam_attr.networks.checkpoint import Checkpoint, without_prefix
from advcam_attr.types import AdvCAMError

#: The parts of a stage by their place in it. The places between are ReLU and max pool, which have no weights.
_STAGES = {
    "stage1.0": "conv1", "stage1.1": "bn1", "stage1.4": "layer1",
    "stage2.0": "layer2", "stage3.0": "layer3", "stage4.0": "layer4",
}  # fmt: skip
_STAGE = re.compile(r"(stage\d\.\d+)\.(.+)")
_BACKBONE = re.compile(r"backbone\.(\d)\.(.+)")

#: ResNet-50's own classifier, of ImageNet's classes, which the CAM net does not read.
_UNREAD = r"resnet50\.fc\."


@dataclass(frozen=True)
class IRNWeights:
    """What is used of a file, and what is not.

    Attributes:
        checkpoint: weights under ``resnet50.{conv1, bn1, layer1 .. layer4}.*`` and ``classifier.weight``; keys that are
            none of IRN's are kept, so that loading refuses them by name.
        ignored: the keys that are not used, and why.
    """

    checkpoint: Checkpoint
    ignored: Mapping[str, str]

    @property
    def note(self) -> str:
        """One line on what is ignored; empty if nothing is."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        parts = (f"{len(keys)} keys ({_roots(keys)}): {reason}" for reason, keys in reasons.items())
        return "ignored " + "; ".join(parts) if reasons else ""


def irn_weights(checkpoint: Checkpoint) -> IRNWeights:
    """The weights of a file of IRN's ResNet-50 CAM net (AdvCAM's classifier is one), each once.

    The names under ``resnet50`` count, and those of ``stage*`` and ``backbone`` in their place where a file lacks them.

    Raises:
        AdvCAMError: two names of one tensor hold different weights.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> kernel = torch.rand(64, 3, 7, 7)
        >>> keys = ["module.resnet50.conv1.weight", "module.stage1.0.weight", "module.backbone.0.0.weight"]
        >>> found = irn_weights(Checkpoint(Path("res50_cam.pth"), dict.fromkeys(keys, kernel), {}))
        >>> list(found.checkpoint.weights)
        ['resnet50.conv1.weight']
        >>> found.note
        'ignored 2 keys (backbone.*, stage1.*): further names of weights that are used'
    """
    roots = ("resnet50.", "stage1.", "backbone.", "classifier.", "newly_added.")
    return each_once(checkpoint, roots, _own_name, {_UNREAD: "ImageNet's classifier, which the net does not read"})


def each_once(
    checkpoint: Checkpoint, roots: Collection[str], own_name: Callable[[str], str], unread: Mapping[str, str]
) -> IRNWeights:
    """The weights of a file in which tensors have several names, by one name each.

    Args:
        checkpoint: the file's.
        roots: what keys of the net begin with, which tells prefixes that wrappers have put before them.
        own_name: the one name of a key's tensor; other names are kept as they are.
        unread: patterns of keys that are not used, each with the reason.

    Raises:
        AdvCAMError: two names of one tensor hold different weights.
    """
    weights = without_prefix(checkpoint.weights, roots)
    used: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in sorted(weights, key=lambda key: own_name(key) != key):
        reason = next((reason for pattern, reason in unread.items() if re.match(pattern, key)), None)
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
                f"checkpoint {checkpoint.path} is refused: {origin[name]} and {key} are one tensor in IRN's net, but "
                "hold different weights; save the net anew"
            )
    return IRNWeights(replace(checkpoint, weights=used), ignored)


def _own_name(key: str) -> str:
    """The name under ``resnet50`` or ``classifier`` of a tensor that is registered under another; others stay."""
    inner = _BACKBONE.fullmatch(key)
    path = f"stage{int(inner[1]) + 1}.{inner[2]}" if inner else key
    part = _STAGE.fullmatch(path)
    if part and part[1] in _STAGES:
        return f"resnet50.{_STAGES[part[1]]}.{part[2]}"
    return "classifier.weight" if key == "newly_added.0.weight" else key


def _roots(keys: list[str]) -> str:
    return ", ".join(sorted({f"{key.split('.', 1)[0]}.*" for key in keys}))


#: What deeplab-pytorch subtracts from RGB values of 0 to 255; it does not divide them.
CAFFE_MEAN = (122.675, 116.669, 104.008)

#: Keys begin with one of these once ``base.`` (the net at several scales) and ``module.`` are taken off.
_ROOTS = ("layer1.", "layer2.", "layer3.", "layer4.", "layer5.", "aspp.", "conv1.", "bn1.", "fc.")

#: The parts of a bottleneck: deeplab-pytorch's, and torchvision's convolution and norm.
_PARTS = {
    "reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}  # fmt: skip


def is_caffe(checkpoint: Checkpoint) -> bool:
    """Whether weights have deeplab-pytorch's names.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> is_caffe(Checkpoint(Path("x.pth"), {"base.layer2.block1.reduce.conv.weight": torch.zeros(1)}, {}))
        True
    """
    return any(re.search(r"(^|\.)layer\d\.block\d+\.", key) for key in checkpoint.weights)


def caffe_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Weights by torchvision's names of a ResNet, and ``aspp.N`` for the pyramid.

    The nets read BGR values from 0 to 255 less a mean: the first convolution's channels are reversed, and the
    normalisation is noted, so that the result reads RGB as all nets here do.

    Args:
        checkpoint: of deeplab-pytorch's net, at one scale or several; names that are none of its stay as they are.

    Raises:
        AdvCAMError: the first convolution does not read three channels.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> keys = ["layer1.conv1.conv.weight", "layer4.block23.shortcut.bn.bias", "aspp.c3.bias"]
        >>> found = caffe_weights(Checkpoint(Path("x.pth"), {f"base.{k}": torch.zeros(1, 3, 1, 1) for k in keys}, {}))
        >>> list(found.weights)
        ['conv1.weight', 'layer3.22.downsample.1.bias', 'aspp.3.bias']
    """
    named = {_own_name_deeplab_weights(key): value for key, value in without_prefix(checkpoint.weights, _ROOTS).items()}
    first = named.get("conv1.weight")
    if first is not None:
        if first.ndim != 4 or first.shape[1] != 3:
            raise AdvCAMError(f"checkpoint {checkpoint.path}: conv1 is {tuple(first.shape)}, not of three channels")
        named["conv1.weight"] = first.flip(1)
    mean, std = (" ".join(str(v / 255) for v in values) for values in (CAFFE_MEAN, (1.0, 1.0, 1.0)))
    return replace(checkpoint, weights=named, metadata={"mean": mean, "std": std})


def _own_name_deeplab_weights(key: str) -> str:
    if stem := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", key):
        return f"{stem[1]}1.{stem[2]}"
    if part := re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", key):
        names = _PARTS.get(part[3])
        if names:
            return f"layer{int(part[1]) - 1}.{int(part[2]) - 1}.{names[part[4] == 'bn']}.{part[5]}"
    if rate := re.fullmatch(r"aspp\.c(\d)\.(\w+)", key):
        return f"aspp.{rate[1]}.{rate[2]}"
    return key
