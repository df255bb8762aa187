"""WebDataset shards: the same images as in folders; damaged shards are errors."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from advcam_attr.data.datasets import ShardDataset, SingleLabelDataset
from advcam_attr.data.shards import read_shards
from advcam_attr.data.transforms import wsol_eval
from advcam_attr.types import AdvCAMError, Sample
from tiny_wsol import photograph


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for ending, content in parts.items():
                about = tarfile.TarInfo(f"{key}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def jpeg(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (9, 5), (value,) * 3).save(content, "JPEG")
    return content.getvalue()


def test_shards_hold_the_same_as_folders(tmp_path):
    write_shard(tmp_path / "b-1.tar", {"n1/2": {"cls": b"1", "jpg": jpeg(200), "json": b"{}"}})
    write_shard(tmp_path / "b-0.tar", {"0": {"jpg": jpeg(0), "cls": b"0"}, "1": {"cls": b"2", "JPEG": jpeg(80)}})
    data = read_shards(tmp_path, "b-*.tar", classes=3)
    assert len(data) == 3
    assert data.labels.tolist() == [0, 2, 1]
    dataset = ShardDataset(data, wsol_eval(4, (0.0,) * 3, (1.0,) * 3))
    for index, value in enumerate((0, 80, 200)):
        x, label = dataset[index]
        assert x.shape == (3, 4, 4)
        assert (x * 255 - value).abs().max() <= 1
        assert int(label) == data.labels[index]
        photograph(tmp_path / f"{index}.jpg", (9, 5), (value,) * 3)
        sample = Sample(str(index), tmp_path / f"{index}.jpg", (int(label),))
        same, other = SingleLabelDataset([sample], 3, dataset.transform)[0]
        assert torch.allclose(same, x, atol=1.5 / 255)
        assert (other, other.dtype) == (label, label.dtype)


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        ({"0": {"cls": b"0"}}, r"1 of 1 samples have no image \(/0\)"),
        ({"0": {"jpg": b"", "txt": b"cat"}}, "have no class"),
        ({"0": {"jpg": b"", "cls": b"3"}}, "has the classes 3"),
        ({"0": {"jpg": b"", "cls": b"cat"}}, "cannot read shard"),
        ({}, "holds no samples"),
        (None, "no shards at"),
        (b"no tar" * 200, "not compressed"),
    ],
)
def test_bad_shards_raise(tmp_path, samples, word):
    if isinstance(samples, bytes):
        (tmp_path / "0.tar").write_bytes(samples)
    elif samples is not None:
        write_shard(tmp_path / "0.tar", samples)
    with pytest.raises(AdvCAMError, match=word):
        read_shards(tmp_path, classes=3)


def test_a_damaged_image_is_named_by_its_place(tmp_path):
    write_shard(tmp_path / "0.tar", {"0": {"jpg": b"none", "cls": b"0"}})
    with pytest.raises(AdvCAMError, match=r"0 of the images, at byte 512 of .*0.tar"):
        read_shards(tmp_path).read(0)


def test_shards_that_claim_more_than_they_hold(tmp_path):
    write_shard(tmp_path / "0.tar", {"0": {"cls": b"0", "jpg": jpeg(0)}})
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:1600])
    with pytest.raises(AdvCAMError, match="longer than the shard"):
        read_shards(tmp_path)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 3 << 30
    (tmp_path / "0.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + whole)
    with pytest.raises(AdvCAMError, match="a header or class file of more than"):
        read_shards(tmp_path)
