"""A net for cross-consistency training and its classes in; one safetensors file that holds it, and back.

The auxiliary decoders are kept too, so that a file says all that was trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save

from advcam_attr.files import write_bytes
from advcam_attr.networks.cam_file import in_order
from advcam_attr.networks.cct import CCT, CCTSpec, cct_net
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.types import AdvCAMError


def save_cct(net: CCT, path: Path, classes: Sequence[str], notes: Mapping[str, str] | None = None) -> None:
    """Write a net's weights, and in the notes its architecture, normalisation and class names.

    Args:
        net: the net.
        path: ends in ``.safetensors``; written whole or not at all.
        classes: the names of the foreground classes, K - 1.
        notes: more of them; `read_notes` gives them back.

    Raises:
        AdvCAMError: the file cannot be written, or the names are not K - 1.
    """
    if len(classes) + 1 != net.spec.num_classes:
        raise AdvCAMError(f"the net has {net.spec.num_classes} classes, but {len(classes)} names and the background")
    about = {
        **(notes or {}),
        "cct": json.dumps(dataclasses.asdict(net.spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, net.mean)),
        "std": " ".join(map(str, net.std)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_bytes(path, in_order(save(weights, about)))


def load_cct(path: str | Path) -> tuple[CCT, tuple[str, ...]]:
    """Read what `save_cct` wrote.

    Returns:
        The net, in eval mode, on the CPU, and the names of its foreground classes.

    Raises:
        AdvCAMError: the file is missing, damaged, or not of such a net.

    Example:
        >>> net, classes = load_cct("run/semi/cct.safetensors")  # doctest: +SKIP
    """
    checkpoint = read_checkpoint(path)
    try:
        spec = CCTSpec(**json.loads(checkpoint.metadata["cct"]))
        classes = tuple(map(str, json.loads(checkpoint.metadata["classes"])))
        mean, std = ([float(v) for v in checkpoint.metadata[what].split()] for what in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise AdvCAMError(f"{path} does not say which net it is of; give one that was trained by CCT here") from error
    net = cct_net(**vars(spec), random_weights=True, mean=mean, std=std)
    load_weights(net, checkpoint, f"CCT on {spec.backbone}")
    return net, classes


def read_notes(path: Path) -> Mapping[str, str]:
    """The notes of a file that `save_cct` wrote; empty where there is no such file.

    Raises:
        AdvCAMError: the file is damaged.
    """
    return read_checkpoint(path).metadata if path.is_file() else {}
