"""Published seed generators (IRN, SEAM, SC-CAM) from their authors' weights files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from advcam_attr.networks.authors import irn_cam_weights
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import IRN_BACKBONE, CAMNet, cam_net
from advcam_attr.networks.checkpoint import (
    Checkpoint,
    load_weights,
    out_channels,
    read_checkpoint,
    seeded,
    without_prefix,
)
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.sc_cam import SCCAM
from advcam_attr.networks.seam import SEAM
from advcam_attr.registry import lookup
from advcam_attr.types import AdvCAMError

log = logging.getLogger(__name__)

#: A net of the sizes that a file's weights have, and the weights for it.
Made = tuple[ResNet38 | CAMNet, Checkpoint]

#: What keys of the nets on ResNet-38 start with.
_ROOTS = ("conv1a.", "b2.", "bn7.", "fc8.", "fc8_20.", "f9.")


def _irn(checkpoint: Checkpoint) -> Made:
    found = irn_cam_weights(checkpoint)
    classes = max(1, out_channels(found.checkpoint.weights, "classifier", 20))
    if found.note:
        log.info(found.note)
    return cam_net(Backbone(IRN_BACKBONE, random_weights=True), classes), found.checkpoint


def _seam(checkpoint: Checkpoint) -> Made:
    weights = without_prefix(checkpoint.weights, _ROOTS)
    return SEAM(max(1, out_channels(weights, "fc8", 21) - 1), _width(weights)), checkpoint


def _sc_cam(checkpoint: Checkpoint) -> Made:
    weights = without_prefix(checkpoint.weights, _ROOTS)
    width = _width(weights)
    if "fc8.weight" in weights:
        return SCCAM(out_channels(weights, "fc8", 20), 0, width), checkpoint
    return SCCAM(out_channels(weights, "fc8_20", 20), out_channels(weights, "fc8_200", 200), width), checkpoint


#: The first layer's width, in the published nets 64; a file of a few kilobytes may claim a net of many gigabytes.
_MOST_CHANNELS = 128


def _width(weights: Mapping[str, Tensor]) -> int:
    width = out_channels(weights, "conv1a", 64)
    if width > _MOST_CHANNELS:
        raise AdvCAMError(f"conv1a has {width} channels, and the published nets 64: is it the authors' file?")
    return width


GENERATORS: dict[str, Callable[[Checkpoint], Made]] = {"irn": _irn, "seam": _seam, "sc_cam": _sc_cam}


def load_generator(name: str, path: str | Path) -> ResNet38 | CAMNet:
    """Load a published seed generator from its authors' file: in eval mode, on the CPU, float32.

    It gives the scores of the foreground classes ``(N, K)``, K read from the file; ``mean``, ``std`` and ``stride`` say
    how images are prepared. What is ignored of the file is logged.

    Args:
        name: ``"irn"`` (AdvCAM's classifier is one), ``"seam"`` or ``"sc_cam"``.
        path: a torch file of plain weights, or a safetensors file.
    """
    make = lookup(name, GENERATORS, "generator")
    with seeded(0):
        net, checkpoint = make(read_checkpoint(path))
    load_weights(net, checkpoint, name)
    return net.eval()
