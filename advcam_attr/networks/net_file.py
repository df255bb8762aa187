"""Files of trained networks: safetensors whose metadata say what the network is made of.

The metadata hold the network's spec as JSON under the name of its kind, and ``classes`` (JSON), ``mean`` and ``std``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from advcam_attr.files import write_bytes
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import Checkpoint, load_weights, read_checkpoint
from advcam_attr.reading import parse_json
from advcam_attr.tensor_files import dump_tensors
from advcam_attr.types import AdvCAMError

#: What specs called the fields of `Backbone` before it existed.
_FLAT_FIELDS = {
    "backbone": "name",
    "model_args": "model_args",
    "stride": "stride",
    "lowered_by": "stride_mode",
    "train_from": "train_from",
}

S = TypeVar("S", bound="NetSpec")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class NetSpec:
    """What a network is made of, without its weights. Networks have theirs as ``spec``.

    Attributes:
        key: the kind's name in the metadata of files.
        title: the kind's name in messages.
        backbone: without the source of its weights, with the normalization.
    """

    key: ClassVar[str]
    title: ClassVar[str]

    backbone: Backbone

    @property
    def num_names(self) -> int:
        """How many class names the network's file has; the background has none."""
        return int(getattr(self, "num_classes", 0))


@dataclass(frozen=True)
class NetKind(Generic[S, N]):
    """A kind of network that files hold: its spec's class, its factory, and a reader of the authors' files, if any."""

    spec: type[S]
    factory: Callable[..., N]
    published: Callable[[Checkpoint], N] | None = None


def save_net(path: Path, net: nn.Module, classes: Sequence[str] = (), notes: Mapping[str, str] | None = None) -> None:
    """Write a network's weights, and in the metadata its spec, normalization and class names; equal nets, equal files.

    The file ends in ``.safetensors`` and is written whole or not at all; ``classes`` are those of the foreground;
    `read_notes` returns further metadata.
    """
    module: Any = net
    spec: NetSpec = module.spec
    if len(classes) != spec.num_names:
        raise AdvCAMError(f"the {spec.title} has {spec.num_names} classes, but {len(classes)} names are given")
    metadata = {
        **(notes or {}),
        spec.key: json.dumps(dataclasses.asdict(spec)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": " ".join(map(str, module.mean)),
        "std": " ".join(map(str, module.std)),
    }
    weights = {key: value.detach().cpu() for key, value in net.state_dict().items()}
    write_bytes(path, dump_tensors(weights, metadata))


def load_net(source: str | Path | Checkpoint, kind: NetKind[S, N]) -> tuple[N, tuple[str, ...]]:
    """Read a network that `save_net` wrote, or an authors' file where the kind has such.

    Args:
        source: the file, or what `read_checkpoint` returned for it.
        kind: e.g. `advcam_attr.networks.cam_net.CAM_NET`.

    Returns:
        The network, in eval mode, on the CPU, and the names of its foreground classes (none in authors' files).

    Raises:
        AdvCAMError: the file is missing, damaged, or of another network; keys that do not fit are named.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    if kind.published is not None and kind.spec.key not in checkpoint.metadata:
        return kind.published(checkpoint), ()
    spec, classes = _read_spec(checkpoint, kind.spec)
    net = kind.factory(**{**vars(spec), "backbone": replace(spec.backbone, random_weights=True)})
    load_weights(net, checkpoint, f"the {spec.title} on {spec.backbone.name}")
    return net, classes


def read_notes(path: Path) -> Mapping[str, str]:
    """Return the metadata of a file that `save_net` wrote; empty if there is no such file."""
    return read_checkpoint(path).metadata if path.is_file() else {}


def _read_spec(checkpoint: Checkpoint, spec: type[S]) -> tuple[S, tuple[str, ...]]:
    try:
        found: dict[str, Any] = parse_json(checkpoint.metadata[spec.key])
        if isinstance(found["backbone"], str):
            found = _nested(found, checkpoint)
        names = {field.name for field in dataclasses.fields(spec)}
        fields = {key: value for key, value in found.items() if key in names}
        classes = parse_json(checkpoint.metadata.get("classes", "[]"))
        return spec(**{**fields, "backbone": Backbone(**found["backbone"])}), tuple(map(str, classes))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AdvCAMError(
            f"{checkpoint.path} does not say which {spec.title} it holds; give a file that was trained here"
        ) from error


def _nested(spec: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """A spec of before version 0.2, with the backbone's fields in one place."""
    backbone = {new: spec[old] for old, new in _FLAT_FIELDS.items() if old in spec}
    for name in ("mean", "std"):
        backbone[name] = spec[name] if name in spec else checkpoint.floats(name)
    return {**spec, "backbone": backbone}
