"""A published seed generator's name and its authors' file of weights in; the net, ready for use, out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.networks.authors import irn_weights
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import IRN_BACKBONE, CAMNet, cam_net
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint, without_prefix
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.sc_cam import SCCAM
from advcam_attr.networks.seam import SEAM
from advcam_attr.registry import lookup

logger = logging.getLogger(__name__)


#: A net of the sizes that a file's weights have, the weights that are for it, and a line on the others, or "".
Made = tuple[ResNet38 | CAMNet, Checkpoint, str]

#: What the keys of the nets on ResNet-38 begin with.
_ROOTS = ("conv1a.", "b2.", "bn7.", "fc8.", "fc8_20.", "f9.")


def _irn(checkpoint: Checkpoint) -> Made:
    found = irn_weights(checkpoint)
    classes = max(1, _rows(found.checkpoint.weights, "classifier", 20))
    return cam_net(Backbone(IRN_BACKBONE, random_weights=True), classes), found.checkpoint, found.note


def _seam(checkpoint: Checkpoint) -> Made:
    weights = without_prefix(checkpoint.weights, _ROOTS)
    return SEAM(max(1, _rows(weights, "fc8", 21) - 1), _rows(weights, "conv1a", 64)), checkpoint, ""


def _sc_cam(checkpoint: Checkpoint) -> Made:
    weights = without_prefix(checkpoint.weights, _ROOTS)
    width = _rows(weights, "conv1a", 64)
    if "fc8.weight" in weights:
        return SCCAM(_rows(weights, "fc8", 20), 0, width), checkpoint, ""
    return SCCAM(_rows(weights, "fc8_20", 20), _rows(weights, "fc8_200", 200), width), checkpoint, ""


def _rows(weights: Mapping[str, Tensor], layer: str, published: int) -> int:
    """How many channels a layer of the file puts out; as published if the file lacks it (then loading says so)."""
    kernel = weights.get(f"{layer}.weight")
    return published if kernel is None or not kernel.ndim else len(kernel)


GENERATORS: dict[str, Callable[[Checkpoint], Made]] = {"irn": _irn, "seam": _seam, "sc_cam": _sc_cam}


def load_generator(
    name: str,
    path: str | Path,
) -> ResNet38 | CAMNet:
    """Load a published seed generator from its authors' file.

    Numbers of classes are read from the file. No code of the file is run; a ``module.`` before all keys is taken off.

    Args:
        name: ``"irn"`` (AdvCAM's classifier is one), ``"seam"`` or ``"sc_cam"``.
        path: a torch file of plain weights, or a safetensors file.

    Returns:
        The net in eval mode, on the CPU, float32; ``net(x)`` are the scores of the foreground classes ``(N, K)``;
        ``net.mean``, ``net.std`` and ``net.stride`` say how images are to be prepared.

    Raises:
        AdvCAMError: an unknown name; a file that is missing, damaged, or not of this net: keys that are missing or
            unexpected, other shapes, or values that are not finite are named.

    Example:
        >>> net = load_generator("seam", "resnet38_SEAM.pth")  # doctest: +SKIP
        >>> net = load_generator("irn", "res50_cam.pth")  # doctest: +SKIP
    """
    make = lookup(name, GENERATORS, "generator")
    with torch.random.fork_rng(devices=[]):
        net, checkpoint, note = make(read_checkpoint(path))
    load_weights(net, checkpoint, name)
    if note:
        logger.info(note)
    return net.eval()
