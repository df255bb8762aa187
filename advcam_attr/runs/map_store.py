"""The maps of a data set's images in; a folder of small files, one an image, written whole or not at all, out.

A file holds the maps of the classes that an image shows, and no others. Maps of a climb are kept as the net gives them,
on its own grids (`GridMaps`, about 23 kB a class for a 500 × 375 picture, four scales and stride 16), and the maps of
the image's size are made from them when they are read (800 kB a class); ready maps from elsewhere are kept as they are.

A folder is flat, or for many images spread over a thousand sub-folders by a hash of the id. Shards of a thousand packed
images were no faster on a local disk, and a finished file, not a finished shard, is what an interrupted run keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from advcam_attr.files import remove_leftovers, write_bytes, write_json
from advcam_attr.refine.seeds import GridMaps, class_maps, strided_size
from advcam_attr.types import AdvCAMError, ClassMaps

Layout = Literal["flat", "spread"]

#: More images than this are spread over sub-folders, unless a layout is asked for.
FLAT_LIMIT = 100_000

_FOLDERS = 1000
_LAYOUT = "layout.json"
_SUFFIX = ".safetensors"
#: One key, because files hold several in no fixed order, and equal maps shall make equal bytes.
_KEY = "advcam_maps"
#: Temporary files older than this, in seconds, were left by killed processes: a write takes milliseconds.
_DEAD = 3600.0


class MapReader(Protocol):
    """Where localization maps are: a map store, or anything that reads them by id."""

    def __contains__(self, id: str, /) -> bool:
        """Whether there are maps of this image."""

    def read(self, id: str, /) -> ClassMaps:
        """The maps of an image; an `AdvCAMError` that names the file where they cannot be read."""


@dataclass(frozen=True)
class MapHeader:
    """What a file says of itself.

    Attributes:
        classes: 0-based, ascending.
        size: the image's height and width.
        settings: a digest of all that the maps depend on; empty for maps from elsewhere.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    settings: str


class MapStore:
    """A folder of maps, one safetensors file an image.

    Any number of processes may read and write at once, each image being written by one of them at a time.

    Args:
        folder: made at the first write.
        settings: digest of what the maps depend on; it is written into each file, and files of others are refused.
            Empty: written as such, and any file is read.
        layout: of a store that is not there yet; one that is there keeps its own.

    Example:
        >>> import tempfile
        >>> store = MapStore(Path(tempfile.mkdtemp()) / "maps")
        >>> store.write("cat", GridMaps((7,), (16, 32), (torch.tensor([[[0.0, 1.0]]]),)))
        >>> store.read("cat").high_res.shape, "cat" in store, store.missing(["cat", "dog"])
        (torch.Size([1, 16, 32]), True, ['dog'])
    """

    def __init__(self, folder: Path, *, settings: str = "", layout: Layout = "flat") -> None:
        self.folder, self.settings = Path(folder), settings
        self.layout: Layout = _layout_there(self.folder) or layout

    def __repr__(self) -> str:
        return f"MapStore({str(self.folder)!r}, layout={self.layout!r})"

    def path(self, id: str) -> Path:
        """Where the maps of an image are, or would be.

        Raises:
            AdvCAMError: an id that cannot name a file.
        """
        if not id or id.startswith(".") or any(c in id for c in "/\\\0"):
            raise AdvCAMError(f"image id {id!r} cannot name a file: use one without slashes that starts with no dot")
        name = id + _SUFFIX
        return self.folder / name if self.layout == "flat" else self.folder / _sub_folder(id) / name

    def __contains__(self, id: str) -> bool:
        return self.path(id).is_file()

    def ids(self) -> Iterator[str]:
        """The images whose maps are there, in the order of their ids."""
        files = self.folder.glob(f"*{_SUFFIX}" if self.layout == "flat" else f"*/*{_SUFFIX}")
        yield from sorted(file.name.removesuffix(_SUFFIX) for file in files if not file.name.startswith("."))

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` whose maps are not there, in their order; the folder is read once."""
        there = set(self.ids())
        return [id for id in ids if id not in there]

    def header(self, id: str) -> MapHeader | None:
        """What the file of an image says of itself; None where it is missing or damaged."""
        try:
            with safe_open(self.path(id), framework="pt") as file:
                return _header(file.metadata())
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def write(self, id: str, maps: GridMaps | ClassMaps) -> None:
        """Write the maps of an image, whole or not at all; equal maps make equal bytes.

        Raises:
            AdvCAMError: maps that do not fit their classes or size or are not finite; a full disk.
        """
        tensors = _tensors(maps)
        path = self.path(id)
        for name, tensor in tensors.items():
            if tensor.ndim != 3 or len(tensor) != len(maps.classes) or not bool(tensor.isfinite().all()):
                raise AdvCAMError(
                    f"maps of {id} are refused: {name} must be finite, one map for each of {len(maps.classes)} "
                    f"classes, got shape {tuple(tensor.shape)}"
                )
        if isinstance(maps, ClassMaps):
            _check_sizes(maps, path)
        if self.layout == "spread" and not (self.folder / _LAYOUT).exists():
            write_json(self.folder / _LAYOUT, {"layout": "spread", "folders": _FOLDERS})
        about = {"classes": list(maps.classes), "size": list(maps.size), "settings": self.settings}
        write_bytes(path, save(tensors, {_KEY: json.dumps(about)}))

    def read(self, id: str) -> ClassMaps:
        """The localization maps of an image, made from its grids or as they were stored.

        Raises:
            AdvCAMError: missing, damaged, no file of maps, or made with other settings.
        """
        maps = self._load(id)
        return class_maps(maps) if isinstance(maps, GridMaps) else maps

    def read_grids(self, id: str) -> GridMaps:
        """The maps of an image on the net's own grids.

        Raises:
            AdvCAMError: as `read`, and where the store holds ready maps.
        """
        maps = self._load(id)
        if isinstance(maps, GridMaps):
            return maps
        raise AdvCAMError(f"{self.path(id)} holds ready maps and no grids: they come from elsewhere")

    def remove_dead(self) -> None:
        """Remove temporary files that processes left behind when they were killed, more than an hour ago."""
        for folder in (self.folder, *self.folder.glob("[0-9][0-9][0-9]")):
            remove_leftovers(folder, older_than=_DEAD)

    def _load(self, id: str) -> GridMaps | ClassMaps:
        path = self.path(id)
        if not path.is_file():
            raise AdvCAMError(f"no maps of image {id}: {path} is missing; make the seeds first")
        try:
            with safe_open(path, framework="pt") as file:
                header = _header(file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            maps = _maps(header, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise AdvCAMError(f"{path} is damaged or no file of maps; remove it and make the seeds again") from error
        if self.settings and header.settings != self.settings:
            raise AdvCAMError(f"{path} was made with other settings than the rest; remove it and make the seeds again")
        return maps


def _layout_there(folder: Path) -> Layout | None:
    """The layout of a store that is there."""
    if (folder / _LAYOUT).is_file():
        return "spread"
    return "flat" if next(folder.glob(f"*{_SUFFIX}"), None) is not None else None


def _sub_folder(id: str) -> str:
    return f"{int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) % _FOLDERS:03d}"


def _header(metadata: Any) -> MapHeader:
    about = json.loads(metadata[_KEY])
    height, width = (int(side) for side in about["size"])
    if min(height, width) < 1:
        raise ValueError("an image has at least one pixel")
    return MapHeader(tuple(int(k) for k in about["classes"]), (height, width), str(about["settings"]))


def _tensors(maps: GridMaps | ClassMaps) -> dict[str, Tensor]:
    named = (
        {f"grid{i}": grid for i, grid in enumerate(maps.grids)}
        if isinstance(maps, GridMaps)
        else {"cam": maps.cam, "high_res": maps.high_res}
    )
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in named.items()}


def _maps(header: MapHeader, tensors: dict[str, Tensor]) -> GridMaps | ClassMaps:
    if any(t.ndim != 3 or len(t) != len(header.classes) or t.dtype != torch.float32 for t in tensors.values()):
        raise ValueError("a map does not fit the classes")
    if "high_res" in tensors:
        return ClassMaps(header.classes, header.size, tensors["cam"], tensors["high_res"])
    grids = tuple(tensors[f"grid{i}"] for i in range(len(tensors)))
    if header.classes and not grids:
        raise ValueError("no maps for the classes")
    return GridMaps(header.classes, header.size, grids)


def _check_sizes(maps: ClassMaps, path: Path) -> None:
    wanted = strided_size(maps.size, 4), maps.size
    found = tuple(maps.cam.shape[1:]), tuple(maps.high_res.shape[1:])
    if found != wanted:
        raise AdvCAMError(f"maps for {path} are refused: sizes {found} where the image's {maps.size} needs {wanted}")
