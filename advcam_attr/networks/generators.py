"""A published seed generator's name and its authors' file of weights in; the net, ready for use, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.networks.checkpoint import load_weights, read_checkpoint, without_prefix
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.sc_cam import SCCAM
from advcam_attr.networks.seam import SEAM
from advcam_attr.registry import lookup


def _seam(weights: Mapping[str, Tensor]) -> SEAM:
    return SEAM(max(1, _rows(weights, "fc8", 21) - 1), _rows(weights, "conv1a", 64))


def _sc_cam(weights: Mapping[str, Tensor]) -> SCCAM:
    width = _rows(weights, "conv1a", 64)
    if "fc8.weight" in weights:
        return SCCAM(_rows(weights, "fc8", 20), 0, width)
    return SCCAM(_rows(weights, "fc8_20", 20), _rows(weights, "fc8_200", 200), width)


def _rows(weights: Mapping[str, Tensor], layer: str, published: int) -> int:
    """How many channels a layer of the file puts out; as published if the file lacks it (then loading says so)."""
    kernel = weights.get(f"{layer}.weight")
    return published if kernel is None or not kernel.ndim else len(kernel)


#: Weights to a net of the sizes that they have.
GENERATORS: dict[str, Callable[[Mapping[str, Tensor]], ResNet38]] = {"seam": _seam, "sc_cam": _sc_cam}

#: What the keys of all these nets begin with.
_ROOTS = ("conv1a.", "b2.", "bn7.", "fc8.", "fc8_20.", "f9.")


def load_generator(name: str, path: str | Path) -> ResNet38:
    """Load a published seed generator from its authors' file.

    Numbers of classes are read from the file. No code of the file is run; a ``module.`` before all keys is taken off.

    Args:
        name: ``"seam"`` or ``"sc_cam"`` (IRN's files: `advcam_attr.networks.irn_cam.irn_weights`).
        path: a torch file of plain weights, or a safetensors file.

    Returns:
        The net in eval mode, on the CPU, float32; ``net(x)`` are the scores of the foreground classes ``(N, K)``;
        ``net.mean``, ``net.std`` and ``net.stride`` say how images are to be prepared.

    Raises:
        AdvCAMError: an unknown name; a file that is missing, damaged, or not of this net: keys that are missing or
            unexpected, other shapes, or values that are not finite are named.

    Example:
        >>> net = load_generator("seam", "resnet38_SEAM.pth")  # doctest: +SKIP
    """
    make = lookup(name, GENERATORS, "generator")
    checkpoint = read_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        net = make(without_prefix(checkpoint.weights, _ROOTS))
    load_weights(net, checkpoint, name)
    return net.eval()
