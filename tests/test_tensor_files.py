"""Digests of files: one flipped bit is found, equal content makes equal bytes, and files without digest are read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.checkpoint import read_checkpoint
from advcam_attr.networks.irnet import IRNetSpec
from advcam_attr.networks.net_file import save_net
from advcam_attr.refine.seeds import GridMaps, class_maps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.npy_maps import irn_dictionary, psa_dictionary, read_dictionary, write_dictionary
from advcam_attr.tensor_files import DamagedFileError, dump_tensors, read_tensors
from advcam_attr.training.checkpoint import read_training, save_checkpoint
from advcam_attr.types import AdvCAMError

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 300))
MAPS = GridMaps((3, 7), (40, 60), (torch.rand(2, 10, 15), torch.rand(2, 5, 8)))


def write_net(path: Path) -> None:
    spec = IRNetSpec(Backbone("timm/test_resnet"))
    save_net(path, SimpleNamespace(spec=spec, mean=(0.5,), std=(0.25,), state_dict=NET.state_dict))


def write_training(path: Path) -> None:
    optimizer = torch.optim.SGD(NET.parameters(), 0.1, momentum=0.9)
    NET(torch.rand(1, 3, 9, 6)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_checkpoint(path, SimpleNamespace(model=NET, optimizer=optimizer, scaler=scaler, step=3, ema=None), {"a": "b"})


#: By file name: what writes the file, and what reads it to comparable content.
FILES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "weights.safetensors": (write_net, lambda path: vars(read_checkpoint(path)) | {"path": ""}),
    "checkpoint.pt": (write_training, read_training),
    "weights.pt": (write_training, lambda path: dict(read_checkpoint(path).weights)),
    "maps.safetensors": (
        lambda path: MapStore(path.parent).write("maps", MAPS),
        lambda path: vars(MapStore(path.parent).read_grids("maps")),
    ),
    "irn.npy": (
        lambda path: write_dictionary(path, irn_dictionary(class_maps(MAPS))),
        lambda path: vars(read_dictionary(path)),
    ),
    "psa.npy": (
        lambda path: write_dictionary(path, psa_dictionary(class_maps(MAPS))),
        lambda path: vars(read_dictionary(path)),
    ),
}


def plain(content: Any) -> Any:
    """Content that can be compared by ``==``: tensors as lists."""
    if isinstance(content, torch.Tensor):
        return str(content.dtype), content.tolist()
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    return [plain(one) for one in content] if isinstance(content, list | tuple) else content


def error_of(read: Callable[[Path], Any], path: Path, as_ever: Any) -> str | None:
    """The message of the error that a file's reading raises; None if it is read as ever."""
    try:
        assert plain(read(path)) == as_ever
    except AdvCAMError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(name, tmp_path):
    """Of bits anywhere in the file; those that change nothing that is read, as in padding, may pass."""
    write, read = FILES[name]
    path, draw, passed = tmp_path / name, random.Random(14), 0
    write(path)
    whole, found = path.read_bytes(), plain(read(path))
    for _ in range(30 if name.endswith(".pt") else 100):
        place = draw.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        message = error_of(read, path, found)
        passed += message is None
        assert message is None or (path.name in message and "\n" not in message)
    assert passed < (9 if name.endswith(".pt") else 3)


def test_every_bit_of_a_tensor_counts(tmp_path):
    content = dump_tensors({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, {"note": "x"})
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(8 * start, 8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "a.safetensors").write_bytes(changed)
        with pytest.raises(DamagedFileError, match=r"a\.safetensors is damaged"):
            read_tensors(tmp_path / "a.safetensors")


def test_equal_content_makes_equal_bytes_and_is_read_back(tmp_path):
    tensors = {"b": torch.rand(2, 3).T, "a": torch.tensor(4), "none": torch.zeros(0, 2)}
    about = {"z": "1", "a": "ö", "m": "\u202e"}
    content = dump_tensors(tensors, about)
    assert content == dump_tensors(dict(reversed(tensors.items())), dict(reversed(about.items())))
    (tmp_path / "a.safetensors").write_bytes(content)
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == about
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_files_without_digest_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"by": "others"})
    assert read_tensors(tmp_path / "a.safetensors")[1] == {"by": "others"}
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt").weights) == ["a"]
    np.save(tmp_path / "a.npy", irn_dictionary(class_maps(MAPS)), allow_pickle=True)
    assert read_dictionary(tmp_path / "a.npy").classes == (3, 7)


@pytest.mark.parametrize("name", ["irn.npy", "psa.npy"])
def test_numpy_reads_maps_with_a_digest(name, tmp_path):
    FILES[name][0](tmp_path / name)
    assert isinstance(np.load(tmp_path / name, allow_pickle=True).item(), dict)
