"""Store of localization maps: one small safetensors file per image, written atomically.

Maps of a climb are stored on the net's grids (`GridMaps`, about 23 kB a class for a 500 × 375 image, four scales and
stride 16, against 800 kB resized) and resized when read. Large stores are spread over a thousand sub-folders by a hash
of the id.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advcam_attr.files import remove_leftovers, write_bytes, write_json
from advcam_attr.reading import parse_json
from advcam_attr.refine.seeds import NORMALIZATIONS, GridMaps, class_maps, strided_size
from advcam_attr.tensor_files import DamagedFileError, dump_tensors, read_tensors
from advcam_attr.types import AdvCAMError, Cells, ClassMaps, Sample

Layout = Literal["flat", "spread"]

#: The most images of a flat store, unless a layout is given.
FLAT_LIMIT = 100_000

#: The most numbers of an image's maps, over all its classes: 1 GiB.
MOST_NUMBERS = 1 << 28

_FOLDERS = 1000
_LAYOUT = "layout.json"
_SUFFIX = ".safetensors"
_KEY = "advcam_maps"
_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


class MapReader(Protocol):
    """A source of localization maps by image id, such as a map store."""

    def __contains__(self, id: str, /) -> bool: ...

    def read(self, id: str, /) -> ClassMaps:
        """Return the maps of an image, or raise an `AdvCAMError` that names the file."""


def maps_of(maps: MapReader, sample: Sample) -> ClassMaps:
    """Return the maps of a sample's classes; maps of other classes raise AdvCAMError."""
    found = maps.read(sample.id)
    if tuple(found.classes) != tuple(sample.labels):
        raise AdvCAMError(
            f"the maps of {sample.id} are of the classes {list(found.classes)}, and its labels are "
            f"{list(sample.labels)}: make them again, or read the labels that they were made of"
        )
    return found


@dataclass(frozen=True)
class MapHeader:
    """The metadata of a file: classes (ascending), height and width, and the settings' digest (empty: unknown).

    Maps on grids also have their cells and normalization, see `advcam_attr.refine.seeds.GridMaps`.
    """

    classes: tuple[int, ...]
    size: tuple[int, int]
    settings: str
    cells: tuple[Cells, ...] = ()
    normalization: str = "peak"


class MapStore:
    """A folder of maps; any number of processes may use it at once.

    Args:
        folder: created at the first write.
        settings: digest of the maps' settings; files of others are rejected. Empty accepts all.
        layout: of a new store.

    Example:
        >>> import tempfile
        >>> store = MapStore(Path(tempfile.mkdtemp()) / "maps")
        >>> store.write("cat", GridMaps((7,), (16, 32), (torch.tensor([[[0.0, 1.0]]]),)))
        >>> store.read("cat").high_res.shape, "cat" in store, store.missing(["cat", "dog"])
        (torch.Size([1, 16, 32]), True, ['dog'])
    """

    def __init__(self, folder: Path, *, settings: str = "", layout: Layout = "flat") -> None:
        self.folder, self.settings = Path(folder), settings
        self.layout: Layout = _existing_layout(self.folder) or layout

    def __repr__(self) -> str:
        return f"MapStore({str(self.folder)!r}, layout={self.layout!r})"

    def path(self, id: str) -> Path:
        """Return the path of an image's file, whether it exists or not."""
        if not id or id.startswith(".") or any(c in id for c in "/\\\0"):
            raise AdvCAMError(f"image id {id!r} cannot name a file: use one without slashes that starts with no dot")
        name = id + _SUFFIX
        return self.folder / name if self.layout == "flat" else self.folder / _sub_folder(id) / name

    def __contains__(self, id: str) -> bool:
        return self.path(id).is_file()

    def ids(self) -> Iterator[str]:
        """Yield the ids of the stored images in order."""
        files = self.folder.glob(f"*{_SUFFIX}" if self.layout == "flat" else f"*/*{_SUFFIX}")
        yield from sorted(file.name.removesuffix(_SUFFIX) for file in files if not file.name.startswith("."))

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return those of ``ids`` that are not stored, listing the folder once."""
        stored = set(self.ids())
        return [id for id in ids if id not in stored]

    def header(self, id: str) -> MapHeader | None:
        """Return the metadata of an image's file; None if it is missing or damaged."""
        try:
            with safe_open(self.path(id), framework="pt") as file:
                return _header(file.metadata())
        except _UNREADABLE:
            return None

    def write(self, id: str, maps: GridMaps | ClassMaps) -> None:
        """Write the maps of an image atomically; equal maps make equal bytes."""
        tensors = _tensors(maps)
        path = self.path(id)
        for name, tensor in tensors.items():
            if tensor.ndim != 3 or len(tensor) != len(maps.classes) or not bool(tensor.isfinite().all()):
                raise AdvCAMError(
                    f"maps of {id} are rejected: {name} must be finite, one map for each of {len(maps.classes)} "
                    f"classes, got shape {tuple(tensor.shape)}"
                )
        if isinstance(maps, ClassMaps):
            _check_sizes(maps, path)
        if len(maps.classes) * maps.size[0] * maps.size[1] > MOST_NUMBERS:
            raise AdvCAMError(f"maps of {id} are rejected: {len(maps.classes)} of {maps.size} pixels are too large")
        if self.layout == "spread" and not (self.folder / _LAYOUT).exists():
            write_json(self.folder / _LAYOUT, {"layout": "spread", "folders": _FOLDERS})
        about: dict[str, Any] = {"classes": list(maps.classes), "size": list(maps.size), "settings": self.settings}
        if isinstance(maps, GridMaps) and maps.cells:
            about["cells"] = [[*one.offset, *one.stride] for one in maps.cells]
        if isinstance(maps, GridMaps) and maps.normalization != "peak":
            about["normalization"] = maps.normalization
        write_bytes(path, dump_tensors(tensors, {_KEY: json.dumps(about)}))

    def read(self, id: str) -> ClassMaps:
        """Return the localization maps of an image; missing or damaged files, and those of other settings, raise."""
        maps = self._load(id)
        return class_maps(maps) if isinstance(maps, GridMaps) else maps

    def read_grids(self, id: str) -> GridMaps:
        """Return the maps of an image on the net's grids."""
        maps = self._load(id)
        if isinstance(maps, GridMaps):
            return maps
        raise AdvCAMError(f"{self.path(id)} holds ready maps and no grids: they come from elsewhere")

    def remove_stale(self) -> None:
        """Remove temporary files that killed processes left."""
        for folder in (self.folder, *self.folder.glob("[0-9][0-9][0-9]")):
            remove_leftovers(folder)

    def _load(self, id: str) -> GridMaps | ClassMaps:
        path = self.path(id)
        if not path.is_file():
            raise AdvCAMError(f"no maps of image {id}: {path} is missing; make the seeds first")
        try:
            tensors, metadata = read_tensors(path)
            header = _header(metadata)
            maps = _maps(header, tensors)
        except (DamagedFileError, ValueError, KeyError, TypeError) as error:
            raise AdvCAMError(f"{path} is damaged or no file of maps; remove it and make the seeds again") from error
        if self.settings and header.settings != self.settings:
            raise AdvCAMError(f"{path} was made with other settings than the rest; remove it and make the seeds again")
        return maps


def _existing_layout(folder: Path) -> Layout | None:
    if (folder / _LAYOUT).is_file():
        return "spread"
    return "flat" if next(folder.glob(f"*{_SUFFIX}"), None) is not None else None


def _sub_folder(id: str) -> str:
    return f"{int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) % _FOLDERS:03d}"


def _header(metadata: Any) -> MapHeader:
    about = parse_json(metadata[_KEY])
    (height, width), classes = about["size"], tuple(about["classes"])
    if any(type(number) is not int for number in (height, width, *classes)) or min(height, width) < 1:
        raise ValueError("an image has at least one pixel, and classes are whole numbers")
    if sorted(set(classes)) != list(classes) or min(classes, default=0) < 0:
        raise ValueError("classes do not ascend")
    if max(1, len(classes)) * height * width > MOST_NUMBERS:
        raise ValueError("maps that are too large")
    cells = [tuple(float(value) for value in one) for one in about.get("cells", ())]
    if not all(len(one) == 4 and all(map(math.isfinite, one)) and min(one[2:]) > 0 for one in cells):
        raise ValueError("cells that no grid has")
    return MapHeader(
        classes,
        (height, width),
        str(about["settings"]),
        tuple(Cells((y, x), (down, right)) for y, x, down, right in cells),
        str(about.get("normalization", "peak")),
    )


def _tensors(maps: GridMaps | ClassMaps) -> dict[str, Tensor]:
    if isinstance(maps, GridMaps):
        named = {f"grid{i}": grid for i, grid in enumerate(maps.grids)}
    else:
        named = {"cam": maps.cam, "high_res": maps.high_res}
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in named.items()}


def _maps(header: MapHeader, tensors: dict[str, Tensor]) -> GridMaps | ClassMaps:
    if any(t.ndim != 3 or len(t) != len(header.classes) or t.dtype != torch.float32 for t in tensors.values()):
        raise ValueError("a map does not fit the classes")
    if any(not min(t.shape[1:]) or max(t.shape[1:]) > MOST_NUMBERS for t in tensors.values() if header.classes):
        raise ValueError("a map without cells")
    if "high_res" in tensors:
        maps = ClassMaps(header.classes, header.size, tensors["cam"], tensors["high_res"])
        _check_sizes(maps, "an image")
        return maps
    grids = tuple(tensors[f"grid{i}"] for i in range(len(tensors)))
    if header.classes and not grids:
        raise ValueError("no maps for the classes")
    if header.normalization not in NORMALIZATIONS or (header.cells and len(header.cells) != len(grids)):
        raise ValueError("cells or a normalization that do not fit the maps")
    return GridMaps(header.classes, header.size, grids, header.cells, header.normalization)


def _check_sizes(maps: ClassMaps, path: object) -> None:
    expected = strided_size(maps.size, 4), maps.size
    found = tuple(maps.cam.shape[1:]), tuple(maps.high_res.shape[1:])
    if found != expected:
        raise AdvCAMError(f"maps for {path} are rejected: sizes {found}, but its image of {maps.size} needs {expected}")
