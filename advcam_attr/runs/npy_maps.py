"""Class maps in, the ``.npy`` dictionaries of the released IRN and PSA code out, and back; pickles are read safely.

IRN (and AdvCAM, RIB): ``{"keys": int64 tensor (K,), "cam": float32 tensor (K, ceil(H/4), ceil(W/4)), "high_res":
float32 array (K, H, W)}``, 0-based classes; an image without classes has no ``cam`` and no ``high_res``. PSA (and SEAM,
SC-CAM): ``{class: float32 array (H, W)}``.
"""

from __future__ import annotations

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
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import AdvCAMError, ClassMaps


def irn_dictionary(maps: ClassMaps) -> dict[str, Any]:
    """The maps of one image as IRN keeps them.

    Example:
        >>> found = irn_dictionary(ClassMaps((7,), (4, 8), torch.ones(1, 1, 2), torch.ones(1, 4, 8)))
        >>> found["keys"], found["cam"].shape, found["high_res"].shape
        (tensor([7]), torch.Size([1, 1, 2]), (1, 4, 8))
    """
    keys = torch.tensor(maps.classes, dtype=torch.int64)
    if not maps.classes:
        return {"keys": keys}
    return {"keys": keys, "cam": maps.cam.float().contiguous(), "high_res": maps.high_res.float().numpy()}


def psa_dictionary(maps: ClassMaps) -> dict[int, np.ndarray]:
    """The maps of one image as PSA keeps them.

    Example:
        >>> found = psa_dictionary(ClassMaps((7,), (4, 8), torch.ones(1, 1, 2), torch.ones(1, 4, 8)))
        >>> {k: v.shape for k, v in found.items()}
        {7: (4, 8)}
    """
    return dict(zip(maps.classes, maps.high_res.float().numpy(), strict=True))


#: The dictionaries that maps can be exported to.
DICTIONARIES: dict[str, Callable[[ClassMaps], dict[Any, Any]]] = {"irn": irn_dictionary, "psa": psa_dictionary}


def write_dictionary(path: Path, content: Mapping[Any, Any]) -> None:
    """Write a dictionary as ``numpy.save`` does, for any NumPy to read.

    NumPy 2 names its own functions in pickles so that earlier ones, which the released code runs on, cannot read them;
    here they are named the old way, which all can read.

    Raises:
        AdvCAMError: the file cannot be written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    boxed = np.empty((), dtype=object)
    boxed[()] = dict(content)
    write_bytes(path, header.getvalue() + _for_any_numpy(pickle.dumps(boxed, protocol=3)))


def read_dictionary(path: str | Path, size: tuple[int, int] | None = None) -> ClassMaps:
    """Read a dictionary of IRN or of PSA; which of the two is seen from its keys.

    PSA's has no map of a quarter of the size; it is made from the large one, bilinearly.

    Args:
        path: an ``.npy`` file.
        size: the image's height and width; needed where the dictionary has no maps, and checked where it has.

    Raises:
        AdvCAMError: damaged, rejected (see `advcam_attr.data.npy`), no such dictionary, or of another size.
    """
    content = read_npy(path)
    if not isinstance(content, dict):
        raise AdvCAMError(f"{path} holds no dictionary of IRN or PSA, but a {type(content).__name__}")
    try:
        maps = _from_irn(content) if "keys" in content else _from_psa(content)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise AdvCAMError(f"{path} holds no dictionary of IRN or PSA: its keys are {list(content)[:5]}") from error
    if maps is None:
        if size is None:
            raise AdvCAMError(f"{path} has no maps, so its image's size is not known: give the size")
        return ClassMaps((), size, torch.zeros(0, *strided_size(size, 4)), torch.zeros(0, *size))
    if size is not None and maps.size != tuple(size):
        raise AdvCAMError(f"{path} has maps of {maps.size} for an image of {tuple(size)}")
    return maps


def _from_irn(content: Mapping[Any, Any]) -> ClassMaps | None:
    classes = tuple(int(k) for k in np.asarray(content["keys"]).reshape(-1))
    if not classes:
        return None
    return _checked(classes, _stack(content["cam"]), _stack(content["high_res"]))


def _from_psa(content: Mapping[Any, Any]) -> ClassMaps | None:
    if not content:
        return None
    by_class = {int(k): _stack(content[k]) for k in content}
    classes = tuple(sorted(by_class))
    high_res = torch.stack([by_class[k] for k in classes])
    small = strided_size((high_res.shape[1], high_res.shape[2]), 4)
    cam = F.interpolate(high_res[None], small, mode="bilinear", align_corners=False)[0]
    return _checked(classes, cam, high_res)


def _stack(maps: Any) -> Tensor:
    return maps.float() if isinstance(maps, Tensor) else torch.from_numpy(np.array(maps, dtype=np.float32, order="C"))


def _checked(classes: tuple[int, ...], cam: Tensor, high_res: Tensor) -> ClassMaps:
    """Maps in the order of their classes.

    Raises:
        ValueError: the shapes do not fit.
    """
    count, height, width = high_res.shape
    if tuple(cam.shape) != (count, *strided_size((height, width), 4)) or len(set(classes)) != count or min(classes) < 0:
        raise ValueError("shapes that do not fit")
    order = sorted(range(count), key=lambda i: classes[i])
    return ClassMaps(tuple(classes[i] for i in order), (height, width), cam[order], high_res[order])


def export_maps(store: MapStore, folder: Path, dictionary: str = "irn", ids: Iterable[str] | None = None) -> int:
    """Write the maps of a store as ``<id>.npy``, one an image, and return how many.

    Args:
        store: where the maps are.
        folder: where the files go.
        dictionary: ``"irn"`` or ``"psa"``.
        ids: of the images; None takes all of the store.

    Raises:
        AdvCAMError: no such dictionary; maps that cannot be read; a full disk.
    """
    if dictionary not in DICTIONARIES:
        raise AdvCAMError(f"unknown dictionary {dictionary!r}; there are {', '.join(sorted(DICTIONARIES))}")
    count = 0
    for id in store.ids() if ids is None else ids:
        write_dictionary(folder / f"{id}.npy", DICTIONARIES[dictionary](store.read(id)))
        count += 1
    return count


def npy_files(folder: Path) -> list[Path]:
    """The ``.npy`` files of a folder, by name.

    Raises:
        AdvCAMError: there are none.
    """
    files = sorted(Path(folder).glob("*.npy"))
    if not files:
        raise AdvCAMError(f"no .npy files in {folder}")
    return files


def import_maps(folder: Path, store: MapStore, sizes: Mapping[str, tuple[int, int]] | None = None) -> int:
    """Read every ``<id>.npy`` of a folder into a store, and return how many.

    Args:
        folder: dictionaries of IRN or PSA.
        store: where the maps go.
        sizes: heights and widths by id, for images without maps; sizes of others are checked.

    Raises:
        AdvCAMError: no such file in the folder, or one that cannot be used.
    """
    files = npy_files(folder)
    for file in files:
        store.write(file.stem, read_dictionary(file, (sizes or {}).get(file.stem)))
    return len(files)


def _for_any_numpy(pickled: bytes) -> bytes:
    """A pickle of protocol 3 with NumPy's functions under their old names."""
    parts, done = [], 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and str(argument).startswith("numpy._core."):
            module, name = str(argument).split(" ")
            old = f"c{module}\n{name}\n".encode()
            assert position is not None
            parts += [pickled[done:position], old.replace(b"numpy._core.", b"numpy.core.")]
            done = position + len(old)
    return b"".join([*parts, pickled[done:]])
