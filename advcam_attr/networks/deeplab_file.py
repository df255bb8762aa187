"""A DeepLab and its classes in; one safetensors file that the net can be had again from, and back.

deeplab-pytorch's files are read as well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from advcam_attr.files import write_bytes
from advcam_attr.networks.cam_file import in_order
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.networks.deeplab import DeepLab, DeepLabSpec, deeplab
from advcam_attr.networks.deeplab_trunk import RESNET101
from advcam_attr.networks.deeplab_weights import caffe_weights, is_caffe
from advcam_attr.types import AdvCAMError


def save_deeplab(net: DeepLab, path: Path, classes: Sequence[str]) -> None:
    """Write a DeepLab's weights, and in the notes what it is made of, its normalisation and class names.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all; equal nets make equal files.
        classes: K - 1 names, those of the foreground.

    Raises:
        AdvCAMError: the file cannot be written, or the names are not K - 1.

    Example:
        >>> save_deeplab(net, Path("deeplab.safetensors"), data.classes)  # doctest: +SKIP
    """
    if len(classes) + 1 != net.spec.num_labels:
        raise AdvCAMError(
            f"the net has {net.spec.num_labels} labels, the background among them, but {len(classes)} names are given"
        )
    notes = {
        "deeplab": json.dumps(dataclasses.asdict(net.spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, notes)))


def load_deeplab(path: str | Path) -> tuple[DeepLab, tuple[str, ...]]:
    """Read a trained DeepLab: what `save_deeplab` wrote, or a file of deeplab-pytorch's ResNet-101 with its pyramid.

    Nothing of the file is ever run.

    Returns:
        The net, in eval mode, on the CPU, and the names of its foreground classes (none in deeplab-pytorch's files).

    Raises:
        AdvCAMError: the file is missing, damaged, or not of a DeepLab; keys that are missing or unknown are named.

    Example:
        >>> net, classes = load_deeplab("deeplab.safetensors")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    if "deeplab" not in checkpoint.metadata and is_caffe(checkpoint):
        return _from_caffe(checkpoint), ()
    try:
        spec = DeepLabSpec(**json.loads(checkpoint.metadata["deeplab"]))
        classes = tuple(map(str, json.loads(checkpoint.metadata["classes"])))
        mean, std = ([float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std"))
        net = deeplab(**vars(spec), random_weights=True, mean=mean, std=std)
    except AdvCAMError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which DeepLab it is of; give one that was trained here") from error
    load_weights(net, checkpoint, f"DeepLab on {spec.backbone}")
    return net, classes


def _from_caffe(checkpoint: Checkpoint) -> DeepLab:
    found = caffe_weights(checkpoint)
    head = found.weights.get("aspp.0.weight")
    if head is None or not head.ndim:
        raise AdvCAMError(
            f"{checkpoint.path} is a backbone alone, without aspp.c0.weight; give it as the checkpoint of a training"
        )
    mean, std = ([float(v) for v in found.metadata[what].split()] for what in ("mean", "std"))
    net = deeplab(RESNET101, max(2, len(head)), random_weights=True, stride_in="1x1", mean=mean, std=std)
    weights = {key if key.startswith("aspp.") else f"trunk.model.{key}": value for key, value in found.weights.items()}
    load_weights(net, replace(found, weights=weights), f"DeepLab on {RESNET101}")
    return net
