"""A CAM net and its classes in; one safetensors file that the net can be had again from, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from advcam_attr.files import write_bytes
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.resnet_cam import CAMNet, CAMNetSpec, cam_net
from advcam_attr.types import AdvCAMError


def save_cam_net(net: CAMNet, path: Path, classes: Sequence[str]) -> None:
    """Write a CAM net's weights, and in the notes its architecture, normalisation and class names.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.
        classes: K names.

    Raises:
        AdvCAMError: the file cannot be written, or the names are not K.

    Example:
        >>> save_cam_net(net, Path("classifier.safetensors"), ["cat", "dog"])  # doctest: +SKIP
    """
    if len(classes) != net.spec.num_classes:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, but {len(classes)} names are given")
    notes = {
        "cam_net": json.dumps(dataclasses.asdict(net.spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, notes)))


def in_order(content: bytes) -> bytes:
    """A safetensors file with its notes sorted, so that equal nets make equal files; the library shuffles them."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_cam_net(path: str | Path) -> tuple[CAMNet, tuple[str, ...]]:
    """Read what `save_cam_net` wrote.

    Returns:
        The net, in eval mode, on the CPU, and the names of its classes.

    Raises:
        AdvCAMError: the file is missing, damaged, or not of a CAM net.

    Example:
        >>> net, classes = load_cam_net("classifier.safetensors")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    try:
        spec = CAMNetSpec(**json.loads(checkpoint.metadata["cam_net"]))
        classes = tuple(map(str, json.loads(checkpoint.metadata["classes"])))
        mean, std = ([float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which CAM net it is of; give one that was trained here") from error
    net = cam_net(**vars(spec), random_weights=True, mean=mean, std=std)
    load_weights(net, checkpoint, spec.backbone)
    return net, classes
