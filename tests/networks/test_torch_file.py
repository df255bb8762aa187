"""Reading of torch files: the same as `torch.load`, and nothing that is not there."""

import collections
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from advcam_attr.networks.torch_file import ForeignPickleError, read_torch_file
from advcam_attr.types import AdvCAMError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content, path: Path, zipped: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_contents_equal_those_of_torch_load(tmp_path, zipped):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    base = torch.arange(24.0)
    content = {
        "net": net.state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "optimizer": optimizer.state_dict(),
        "views": [base.view(4, 6)[1:, ::2], base.view(4, 6).T, base[3:3]],
        "kinds": [torch.arange(3).to(kind) for kind in (torch.float16, torch.bfloat16, torch.int8, torch.bool)],
        "size": net[0].weight.shape,
        "plain": (1, 2.5, None, "a", b"b", True, collections.OrderedDict(z=1)),
    }
    path = save(content, tmp_path / "a.pt", zipped)
    found, wanted = read_torch_file(path), torch.load(path, weights_only=True)
    assert found.pop("plain") == wanted.pop("plain")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found["views"][0].untyped_storage().data_ptr() == found["views"][1].untyped_storage().data_ptr()


def test_numbers_of_numpy_are_read(tmp_path):
    torch.save({"best": np.float64(0.5), "weights": torch.ones(2)}, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt")["best"] == 0.5


def test_storages_that_a_file_lacks_are_not_allocated(tmp_path):
    """`torch.load` returns 400 MB of uninitialised memory from these 325 bytes."""
    content = save({"w": torch.arange(4.0)}, tmp_path / "a.pt", zipped=False).read_bytes()
    claimed = (10**8).to_bytes(4, "little")
    content = content.replace(b"K\x04N", b"J" + claimed + b"N").replace(
        b"K\x00K\x04\x85", b"K\x00J" + claimed + b"\x85"
    )
    (tmp_path / "a.pt").write_bytes(content[: content.rindex(b"\x80\x02]")] + pickle.dumps([], 2))
    with pytest.raises(AdvCAMError, match="cannot read"):
        read_torch_file(tmp_path / "a.pt")


def rewrite(path: Path, change, **options) -> Path:
    """Write the records of an archive again, changed by their names and contents."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, record in records.items():
            archive.writestr(name, change(name, record))
    return path


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda name, record: record.replace(b"K\x04t", b"J\x00\x00\x00\x01t"), {}),
        (lambda name, record: record.replace(b"K\x00K\x04\x85", b"K\x00J\x00\x00\x00\x01\x85"), {}),
        (lambda name, record: record[:-4] if name.endswith("data/0") else record, {}),
        (lambda name, record: b"big" if name.endswith("byteorder") else record, {}),
        (lambda name, record: record, {"compression": zipfile.ZIP_DEFLATED}),
    ],
    ids=["storage", "tensor", "record", "byte order", "compressed"],
)
def test_archives_hold_what_they_claim(tmp_path, change, options):
    path = save({"w": torch.arange(4.0)}, tmp_path / "a.pt", zipped=True)
    assert read_torch_file(rewrite(path, lambda name, record: record))["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(AdvCAMError, match="cannot read"):
        read_torch_file(rewrite(path, change, **options))


def test_a_flipped_bit_of_an_archive_is_found(tmp_path):
    path = save({"w": torch.arange(400.0)}, tmp_path / "a.pt", zipped=True)
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(400, dtype=np.float32).tobytes()) + 801] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["w"].shape == (400,), "torch does not look"
    with pytest.raises(AdvCAMError, match="cannot read"):
        read_torch_file(path)


@FORMATS
def test_modules_are_rejected_by_name(tmp_path, zipped):
    with pytest.raises(ForeignPickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(save(nn.Linear(2, 2), tmp_path / "a.pt", zipped))
