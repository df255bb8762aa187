"""IRN's net in; one safetensors file that it can be had again from, and back; its authors' files in as well.

The authors' net registers its modules several times: ResNet-50 as ``resnet50``, its parts again as ``stage1`` to
``stage5`` and as ``backbone``, the branches again in ``edge_layers`` and ``dp_layers``, and the mean displacement again
at the end of ``fc_dp7``. A file of a training also holds the indices of paths, which no inference reads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from advcam_attr.files import write_bytes
from advcam_attr.networks.cam_file import in_order
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.networks.irn_cam import IRNWeights, each_once
from advcam_attr.networks.irnet import IRNet, irnet
from advcam_attr.networks.resnet_cam import CAMNetSpec
from advcam_attr.types import AdvCAMError

#: What keys of the authors' net begin with.
_ROOTS = ("resnet50.", "stage1.", "backbone.", "fc_edge1.", "fc_dp1.", "edge_layers.", "dp_layers.", "mean_shift.")

#: The parts of ResNet-50 by stage and place. The places between are ReLU and max pool, which have no weights.
_STAGES = {
    "stage1.0": "conv1", "stage1.1": "bn1",
    "stage2.0": "layer1", "stage3.0": "layer2", "stage4.0": "layer3", "stage5.0": "layer4",
}  # fmt: skip

_UNREAD = {
    r"resnet50\.fc\.": "ImageNet's classifier, which the net does not read",
    r"path_indices\d+$|disp_target$": "indices of paths, which are made anew",
}


def save_irnet(net: IRNet, path: Path) -> None:
    """Write IRN's net: the weights, and in the notes its backbone and normalisation.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.

    Raises:
        AdvCAMError: the file cannot be written.
    """
    notes = {
        "irnet": json.dumps(dataclasses.asdict(net.trunk.spec)),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, notes)))


def load_irnet(path: str | Path) -> tuple[IRNet, str]:
    """Read IRN's net from a file that `save_irnet` wrote, or that its authors' code did (``res50_irn.pth``).

    Nothing of the file is ever run. Authors' files are of ResNet-50; all keys have to fit but those that are further
    names of the same tensors, or indices of paths.

    Returns:
        The net, in eval mode, on the CPU, and a line on keys that were not used (empty if there are none).

    Raises:
        AdvCAMError: the file is missing, damaged, or of another net.

    Example:
        >>> net, note = load_irnet("res50_irn.pth")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    if "irnet" not in checkpoint.metadata:
        found = irnet_weights(checkpoint)
        net = irnet(random_weights=True)
        load_weights(net, found.checkpoint, "IRN's net on ResNet-50")
        return net, found.note
    try:
        spec = CAMNetSpec(**json.loads(checkpoint.metadata["irnet"]))
        mean, std = ([float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which backbone it is of; give one that was trained here") from error
    net = irnet(spec.backbone, model_args=spec.model_args, random_weights=True, mean=mean, std=std)
    load_weights(net, checkpoint, f"IRN's net on {spec.backbone}")
    return net, ""


def irnet_weights(checkpoint: Checkpoint) -> IRNWeights:
    """The weights of an authors' file of IRN's net, each once and by the names of `IRNet`.

    Raises:
        AdvCAMError: two names of one tensor hold different weights.

    Example:
        >>> import torch
        >>> keys = ["resnet50.layer1.0.bn1.bias", "stage2.0.0.bn1.bias", "edge_layers.5.bias", "fc_dp7.4.running_mean"]
        >>> tensors = {key: torch.zeros(1) for key in [*keys, "path_indices0"]}
        >>> found = irnet_weights(Checkpoint(Path("res50_irn.pth"), tensors, {}))
        >>> sorted(found.checkpoint.weights)
        ['fc_edge6.bias', 'mean_shift.running_mean', 'trunk.resnet50.layer1.0.bn1.bias']
        >>> sorted(found.ignored)
        ['path_indices0', 'stage2.0.0.bn1.bias']
    """
    found = each_once(checkpoint, _ROOTS, _own_name, _UNREAD)
    weights = {
        f"trunk.{key}" if key.startswith("resnet50.") else key: value for key, value in found.checkpoint.weights.items()
    }
    return replace(found, checkpoint=replace(found.checkpoint, weights=weights))


def _own_name(key: str) -> str:
    """The name under ``resnet50``, ``fc_*`` or ``mean_shift`` of a tensor; names of no tensor of the net stay."""
    if inner := re.fullmatch(r"backbone\.([0-4])\.(.+)", key):
        key = f"stage{int(inner[1]) + 1}.{inner[2]}"
    elif inner := re.fullmatch(r"(edge|dp)_layers\.(\d)\.(.+)", key):
        key = f"fc_{inner[1]}{int(inner[2]) + 1}.{inner[3]}"
    if (part := re.fullmatch(r"(stage\d\.\d+)\.(.+)", key)) and part[1] in _STAGES:
        return f"resnet50.{_STAGES[part[1]]}.{part[2]}"
    return "mean_shift.running_mean" if key == "fc_dp7.4.running_mean" else key
