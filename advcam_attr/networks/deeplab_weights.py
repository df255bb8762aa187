"""Weights by deeplab-pytorch's names, as they were converted from Caffe, in; the same by this package's names out."""

from __future__ import annotations

import re
from dataclasses import replace

from advcam_attr.networks.checkpoint import Checkpoint, without_prefix
from advcam_attr.types import AdvCAMError

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
    named = {_own_name(key): value for key, value in without_prefix(checkpoint.weights, _ROOTS).items()}
    first = named.get("conv1.weight")
    if first is not None:
        if first.ndim != 4 or first.shape[1] != 3:
            raise AdvCAMError(f"checkpoint {checkpoint.path}: conv1 is {tuple(first.shape)}, not of three channels")
        named["conv1.weight"] = first.flip(1)
    mean, std = (" ".join(str(v / 255) for v in values) for values in (CAFFE_MEAN, (1.0, 1.0, 1.0)))
    return replace(checkpoint, weights=named, metadata={"mean": mean, "std": std})


def _own_name(key: str) -> str:
    if stem := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", key):
        return f"{stem[1]}1.{stem[2]}"
    if part := re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", key):
        names = _PARTS.get(part[3])
        if names:
            return f"layer{int(part[1]) - 1}.{int(part[2]) - 1}.{names[part[4] == 'bn']}.{part[5]}"
    if rate := re.fullmatch(r"aspp\.c(\d)\.(\w+)", key):
        return f"aspp.{rate[1]}.{rate[2]}"
    return key
