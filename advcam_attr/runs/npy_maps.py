"""Class maps as the ``.npy`` dictionaries of the released IRN and PSA code.

IRN (and AdvCAM, RIB): ``{"keys": int64 tensor (K,), "cam": float32 tensor (K, ceil(H/4), ceil(W/4)), "high_res":
float32 array (K, H, W)}``, 0-based classes; an image without classes has neither ``cam`` nor ``high_res``. PSA (and
SEAM, SC-CAM): ``{class: float32 array (H, W)}``. A digest of the file follows its pickle, where NumPy reads nothing.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr.data.npy import read_npy
from advcam_attr.files import write_bytes
from advcam_attr.refine.seeds import GridMaps, class_maps, strided_size
from advcam_attr.registry import lookup
from advcam_attr.runs.map_store import MapStore
from advcam_attr.tensor_files import DamagedFileError
from advcam_attr.types import AdvCAMError, ClassMaps

_MARK = b"\nblake2b "
_TRAILER = len(_MARK) + 32


def irn_dictionary(maps: ClassMaps) -> dict[str, Any]:
    """Return the maps of one image in IRN's format."""
    keys = torch.tensor(maps.classes, dtype=torch.int64)
    if not maps.classes:
        return {"keys": keys}
    return {"keys": keys, "cam": maps.cam.float().contiguous(), "high_res": maps.high_res.float().numpy()}


def psa_dictionary(maps: ClassMaps) -> dict[int, np.ndarray]:
    """Return the maps of one image in PSA's format."""
    return dict(zip(maps.classes, maps.high_res.float().numpy(), strict=True))


DICTIONARIES: dict[str, Callable[[ClassMaps], dict[Any, Any]]] = {"irn": irn_dictionary, "psa": psa_dictionary}


def write_dictionary(path: Path, content: Mapping[Any, Any]) -> None:
    """Write a dictionary as ``numpy.save`` does, readable by NumPy 1 (which the released code runs on) and 2."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    boxed = np.empty((), dtype=object)
    boxed[()] = dict(content)
    whole = header.getvalue() + _for_any_numpy(pickle.dumps(boxed, protocol=3))
    write_bytes(path, whole + _trailer(whole))


def read_dictionary(path: str | Path, size: tuple[int, int] | None = None) -> ClassMaps:
    """Read a dictionary of IRN or PSA, distinguished by its keys, without running the pickle's code.

    PSA's has no quarter-size map; it is resized from the large one, bilinearly.

    Args:
        path: an ``.npy`` file.
        size: height and width of the image; needed if the dictionary has no maps, checked if it has.
    """
    _check_trailer(Path(path))
    content = read_npy(path)
    if not isinstance(content, dict):
        raise AdvCAMError(f"{path} holds no dictionary of IRN or PSA, but a {type(content).__name__}")
    try:
        maps = _from_irn(content) if "keys" in content else _from_psa(content)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise AdvCAMError(f"{path} holds no dictionary of IRN or PSA: its keys are {list(content)[:5]}") from error
    if maps is None:
        if size is None:
            raise AdvCAMError(f"{path} has no maps, so its image's size is unknown: give the size")
        return class_maps(GridMaps((), size, ()))
    if size is not None and maps.size != tuple(size):
        raise AdvCAMError(f"{path} has maps of {maps.size} for an image of {tuple(size)}")
    return maps


def _from_irn(content: Mapping[Any, Any]) -> ClassMaps | None:
    classes = tuple(int(k) for k in np.asarray(content["keys"]).reshape(-1))
    if not classes:
        return None
    return _sorted(classes, _tensor(content["cam"]), _tensor(content["high_res"]))


def _from_psa(content: Mapping[Any, Any]) -> ClassMaps | None:
    if not content:
        return None
    classes = tuple(int(k) for k in content)
    high_res = torch.stack([_tensor(value) for value in content.values()])
    small = strided_size((high_res.shape[1], high_res.shape[2]), 4)
    cam = F.interpolate(high_res[None], small, mode="bilinear", align_corners=False)[0]
    return _sorted(classes, cam, high_res)


def _tensor(maps: Any) -> Tensor:
    return maps.float() if isinstance(maps, Tensor) else torch.from_numpy(np.array(maps, dtype=np.float32, order="C"))


def _sorted(classes: tuple[int, ...], cam: Tensor, high_res: Tensor) -> ClassMaps:
    count, height, width = high_res.shape
    if tuple(cam.shape) != (count, *strided_size((height, width), 4)) or len(set(classes)) != count or min(classes) < 0:
        raise ValueError("shapes that do not fit")
    order = sorted(range(count), key=lambda i: classes[i])
    return ClassMaps(tuple(classes[i] for i in order), (height, width), cam[order], high_res[order])


def export_maps(store: MapStore, folder: Path, dictionary: str = "irn", ids: Iterable[str] | None = None) -> int:
    """Write the maps of a store to ``<id>.npy`` files in the format ``"irn"`` or ``"psa"``; return their number."""
    convert = lookup(dictionary, DICTIONARIES, "dictionary")
    ids = list(store.ids() if ids is None else ids)
    for id in ids:
        write_dictionary(folder / f"{id}.npy", convert(store.read(id)))
    return len(ids)


def npy_files(folder: Path) -> list[Path]:
    """Return the ``.npy`` files of a folder by name; an error if there are none."""
    files = sorted(Path(folder).glob("*.npy"))
    if not files:
        raise AdvCAMError(f"no .npy files in {folder}")
    return files


def import_maps(folder: Path, store: MapStore, sizes: Mapping[str, tuple[int, int]] | None = None) -> int:
    """Read all ``<id>.npy`` files of a folder into a store and return their number.

    Images without maps need their height and width in ``sizes``, by id; for others it is checked.
    """
    files = npy_files(folder)
    for file in files:
        store.write(file.stem, read_dictionary(file, (sizes or {}).get(file.stem)))
    return len(files)


def _trailer(content: bytes) -> bytes:
    return _MARK + hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _check_trailer(path: Path) -> None:
    """Raise if the bytes before the digest at a file's end are others; files without one pass."""
    try:
        content = path.read_bytes()
    except OSError:
        return  # reported by the reader
    body, end = content[:-_TRAILER], content[-_TRAILER:]
    if end.startswith(_MARK) and end != _trailer(body):
        raise DamagedFileError(f"{path} is damaged: its content is not what was written; take a copy, or make it again")


def _for_any_numpy(pickled: bytes) -> bytes:
    """Return a pickle of protocol 3 with NumPy's functions under their names of NumPy 1."""
    parts, done = [], 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and str(argument).startswith("numpy._core."):
            module, name = str(argument).split(" ")
            old = f"c{module}\n{name}\n".encode()
            assert position is not None
            parts += [pickled[done:position], old.replace(b"numpy._core.", b"numpy.core.")]
            done = position + len(old)
    return b"".join([*parts, pickled[done:]])
