"""Configuration shared by the pipelines: paths, data splits, the config of a run folder, renamed keys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from advcam_attr.files import difference, write_bytes, write_json
from advcam_attr.reading import parse_json
from advcam_attr.runs.run_log import run_log
from advcam_attr.runs.sharding import shard_of
from advcam_attr.types import AdvCAMError

if TYPE_CHECKING:
    from advcam_attr.data.samples import SegmentationData

#: The file of a run folder that holds its configuration.
CONFIG = "config.json"

Config = TypeVar("Config", bound=Any)

#: Where the values of earlier releases' YAML keys are now. A leading dot is the section in which the old key stood.
RENAMED_KEYS = {
    **dict.fromkeys(("precision", "autocast"), "runtime.autocast"),
    **{name: f"runtime.{name}" for name in ("device", "workers", "overwrite", "seed", "channels_last", "logger")},
    **{name: f".backbone.{name}" for name in ("model_args", "checkpoint", "random_weights", "stride", "train_from",
                                              "mean", "std")},
    **{name: f".optimizer.{name}" for name in ("lr", "momentum", "weight_decay", "power", "nesterov")},
    "backbone": ".backbone.name",
    "lowered_by": ".backbone.stride_mode",
    **dict.fromkeys(("backbone_lr", "edge_lr", "encoder_lr", "body_lr"), ".optimizer.lr"),
    **dict.fromkeys(("classifier_lr", "displacement_lr", "head_lr", "fast_ratio"), ".optimizer.head_lr"),
    "tensorboard": "runtime.logger",
    "known": ".class_map",
    "known_offset": ".class_offset",
    "refresh": ".lr_update_every",
    "average": ".ema_decay",
    "accumulate": ".grad_accum",
    "cut": ".threshold",
    "batch_rows": ".batch",
}  # fmt: skip


@dataclass(frozen=True)
class MaskedData:
    """A segmentation data set. Paths may hold ``~`` and ``$VARIABLES``.

    Attributes:
        root: folder of the data set.
        kind: kind of data set.
        labels: a ``cls_labels.npy`` to read image labels from; None reads the annotations.
        masks: COCO's masks: auto, draw, or a folder of PNGs.
    """

    root: str
    kind: Literal["voc", "coco"] = "voc"
    labels: str | None = None
    masks: str = "auto"

    def read(self, split: str) -> SegmentationData:
        """Return a split, given by its name or the path of its list."""
        from advcam_attr.data.coco import read_coco
        from advcam_attr.data.voc import read_voc

        root = path_of(self.root)
        labels = None if self.labels is None else path_of(self.labels)
        if self.kind == "coco":
            masks = self.masks if self.masks in ("auto", "draw") else path_of(self.masks)
            return read_coco(root, split, masks=masks, labels=labels)
        is_path = "/" in split or split.endswith(".txt")
        return read_voc(root, path_of(split) if is_path else split, labels=labels)


def path_of(text: str | Path) -> Path:
    """Return a path with ``~`` and ``$VARIABLES`` expanded."""
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "$" in expanded:
        raise AdvCAMError(f"{text}: set the environment variable {expanded[expanded.index('$') :].split('/')[0]}")
    return Path(expanded)


def with_paths(config: Config, *names: str) -> Config:
    """Return a dataclass with the fields of these names, its own and nested ones, as expanded paths."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_paths(value, *names)
        elif field.name in names and value is not None:
            changes[field.name] = str(path_of(value))
    return dataclasses.replace(config, **changes)


def config_of(run: Path) -> Path:
    """Return the configuration file of a run folder."""
    if not (run / CONFIG).is_file():
        raise AdvCAMError(f"{run} is no run folder: it has no {CONFIG}; run a stage into it first")
    return run / CONFIG


#: Values on which results do not depend beyond rounding, or which choose among results that are there.
_HARMLESS = ("methods", "seeds.batch", "maps.batch", "checkpoint_every", "tensorboard")


def changed_settings(run: Path, config: Any, *sections: str) -> str:
    """Return how sections of a configuration differ from those that a run folder's results were made with, as text.

    It is empty if they are the same, or if the folder has no configuration. Keys of other releases are not compared.

    Args:
        run: a run folder.
        config: a dataclass, as it is recorded.
        sections: dotted names, e.g. ``"seeds"`` or ``"data.train"``.
    """
    try:
        recorded = parse_json((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    old, new = (dict(_flat(one)) for one in (recorded, json.loads(json.dumps(dataclasses.asdict(config), default=str))))
    common = {
        key
        for key in old.keys() & new.keys()
        if any(f"{key}.".startswith(f"{section}.") for section in sections) and not f".{key}".endswith(
            tuple(f".{name}" for name in _HARMLESS)
        )
    }  # fmt: skip
    return difference({key: old[key] for key in sorted(common)}, {key: new[key] for key in sorted(common)})


def require_unchanged(run: Path, config: Any, *sections: str) -> None:
    """Raise AdvCAMError if a run folder's results were made with other settings, see `changed_settings`."""
    if changes := changed_settings(run, config, *sections):
        raise AdvCAMError(
            f"{run} was made with other settings ({changes}): give --config {run / CONFIG}, or choose another folder"
        )


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, values


@contextmanager
def recorded_config(run: Path, config: Any) -> Iterator[None]:
    """Write a run's configuration into its folder, and the package's log to its ``run.log``.

    The earlier configuration is restored if the block raises `AdvCAMError`.
    """
    path = run / CONFIG
    if shard_of().rank != 0:
        yield
        return
    before = path.read_bytes() if path.is_file() else None
    write_json(path, json.loads(json.dumps(dataclasses.asdict(config), default=str)))
    try:
        with run_log(run):
            yield
    except AdvCAMError:
        if before is not None:
            with contextlib.suppress(AdvCAMError):  # the disk that was full still is: the first error is the cause
                write_bytes(path, before)
        raise


def _new_key(section: str, new: str) -> str:
    """Return a new key in full; one that begins with a dot is relative to the section of the old key."""
    if not new.startswith("."):
        return new
    parts = [part for part in section.split(".") if part]
    words = new[1:].split(".")
    return ".".join(parts + (words[1:] if parts[-1:] == words[:1] else words))


def check_keys(config: type[Any], values: Mapping[str, Any], section: str = "") -> None:
    """Raise AdvCAMError for keys of earlier releases in a mapping read from YAML, naming their new keys.

    Args:
        config: The dataclass that the values are for; its own ``renamed_keys`` precede `RENAMED_KEYS`.
        values: The nested mapping.
        section: Key of the mapping in the whole file.
    """
    kinds, renamed = get_type_hints(config), {**RENAMED_KEYS, **getattr(config, "renamed_keys", {})}
    for key, value in values.items():
        name = f"{section}.{key}" if section else key
        kind = kinds.get(key)
        nested = dataclasses.is_dataclass(kind)
        if key in renamed and (kind is None or (nested and isinstance(value, str))):
            new = renamed[key]
            raise AdvCAMError(f"{name} is now {_new_key(section, new)}")
        if nested and isinstance(value, Mapping):
            check_keys(kind, value, name)  # type: ignore[arg-type]
