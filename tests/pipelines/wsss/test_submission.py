"""The test server's archive: what is packed, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.data.masks import palette, write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.voc import read_voc
from advcam_attr.pipelines.wsss.submission import check_submission, submission_folder, write_submission
from advcam_attr.types import AdvCAMError
from tiny_voc import write_voc

IDS = ("2008_000001", "2008_000002", "2008_000003")
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


@pytest.fixture
def test_split(tmp_path) -> SegmentationData:
    return read_voc(write_voc(tmp_path / "VOC2012", {"test": {id: [] for id in IDS}}), "test")


@pytest.fixture
def predictions(tmp_path) -> Path:
    for n, id in enumerate(IDS):
        write_mask(tmp_path / "predictions" / f"{id}.png", torch.full((6, 8), 10 * n, dtype=torch.uint8), "digest")
    return tmp_path / "predictions"


def png(labels: np.ndarray, colours: np.ndarray | None = None, **options) -> bytes:
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette((palette() if colours is None else colours).ravel().tolist())
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


GOOD = png(np.full((6, 8), 3))


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def whole(**changes: bytes | tarfile.TarInfo) -> dict[str, bytes | tarfile.TarInfo]:
    return {f"{FOLDER}/{id}.png": GOOD for id in IDS} | changes


def test_what_is_packed(predictions, test_split, tmp_path):
    path = write_submission(predictions, test_split, tmp_path / "results.tgz")
    assert check_submission(path, test_split) == []
    with tarfile.open(path, "r:gz") as tar:
        assert tar.getnames() == [f"{FOLDER}/{id}.png" for id in IDS]
        with Image.open(tar.extractfile(f"{FOLDER}/{IDS[2]}.png")) as image:
            assert (image.mode, image.size, set(np.array(image).ravel())) == ("P", (8, 6), {20})
    again = write_submission(predictions, test_split, tmp_path / "again.tgz")
    assert again.read_bytes() == path.read_bytes()
    fifth = write_submission(predictions, test_split, tmp_path / "fifth.tgz", "comp5")
    assert check_submission(fifth, test_split) == []
    with tarfile.open(fifth) as tar:
        assert tar.getnames()[0] == submission_folder("comp5") + f"/{IDS[0]}.png"


def test_what_tar_itself_packs_is_taken(predictions, test_split, tmp_path):
    """With the folders' own members, as ``tar czf results.tgz results`` has them."""
    place = tmp_path / "here" / FOLDER
    place.parent.mkdir(parents=True)
    predictions.rename(place)
    with tarfile.open(tmp_path / "results.tgz", "w:gz") as tar:
        tar.add(tmp_path / "here" / "results", "results")
    assert check_submission(tmp_path / "results.tgz", test_split) == []


def folder_member(name: str, kind: bytes = tarfile.DIRTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


FIRST = f"{FOLDER}/{IDS[0]}.png"
OTHER = palette()[::-1].copy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({FIRST: b"not a PNG"}, "is no PNG that can be read"),
        ({FIRST: GOOD[:60]}, "is no PNG that can be read"),
        ({FIRST: png(np.full((6, 8), 255))}, "holds the labels 255; the server takes 0 to 20 only"),
        ({FIRST: png(np.arange(48).reshape(6, 8))}, "holds the labels 21, 22, 23, 24, 25 and 22 more"),
        ({FIRST: png(np.zeros((5, 8)))}, "is of 8x5 pixels and its image of 8x6"),
        ({FIRST: png(np.full((6, 8), 3), OTHER)}, "has other colours than VOC's palette"),
        ({FIRST: png(np.full((6, 8), 3), bits=4)}, "mode P and 4 bits; the server takes palette PNGs of 8 bits"),
        ({FIRST: None}, "1 of 3 images are missing, e.g. 2008_000001"),
        ({f"{FOLDER}/2007_000001.png": GOOD}, "is of no image of the list test"),
        ({f"{FOLDER}/notes.txt": b"hello"}, "does not belong there: it is no PNG in results"),
        ({"2008_000001.png": GOOD}, "does not belong there: it is no PNG in results"),
        ({f"/{FIRST}": GOOD}, "is not a path within the archive"),
        ({"results/../../2008_000001.png": GOOD}, "is not a path within the archive"),
        ({"link": folder_member(f"{FOLDER}/2008_000001x.png", tarfile.SYMTYPE)}, "is a link or a device"),
        ({"folder": folder_member("results/VOC2007")}, "folder 'results/VOC2007' does not belong there"),
        ({FIRST: None, FIRST.replace("comp6", "comp5"): GOOD}, "in several folders: "),
        ({FIRST: bytes(5 << 20)}, "has 5242880 bytes, far more than a label map"),
    ],
)
def test_each_problem_is_one_line(changes, message, test_split, tmp_path):
    members = {name: content for name, content in whole(**changes).items() if content is not None}
    problems = check_submission(archive(tmp_path / "x.tgz", members), test_split)
    assert len(problems) == 1
    assert message in problems[0]
    assert "\n" not in problems[0]


def test_an_id_twice(test_split, tmp_path):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        for name, content in [*whole().items(), (FIRST, GOOD)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert check_submission(tmp_path / "x.tgz", test_split) == [f"'{FIRST}' is there twice"]


def test_no_more_problems_than_asked_for(test_split, tmp_path):
    path = archive(tmp_path / "x.tgz", {f"stray{n}.png": GOOD for n in range(30)})
    assert len(check_submission(path, test_split, limit=4)) == 5
    assert check_submission(path, test_split, limit=4)[-1] == "... and more"
    assert len(check_submission(path, test_split, limit=40)) == 31


@pytest.mark.parametrize("content", [b"", b"results", gzip.compress(b"no tar" * 400, mtime=0)])
def test_no_archive(content, test_split, tmp_path):
    (tmp_path / "x.tgz").write_bytes(content)
    for name, message in (("x", "is no gzipped tar archive, or damaged"), ("none", "no such archive")):
        with pytest.raises(AdvCAMError, match=message):
            check_submission(tmp_path / f"{name}.tgz", test_split)


def test_what_follows_the_last_file_is_checked(predictions, test_split, tmp_path):
    path = write_submission(predictions, test_split, tmp_path / "results.tgz")
    good = path.read_bytes()
    tar = gzip.decompress(good)
    last = len(tar.rstrip(b"\0"))
    endless = tar[: last + -last % tarfile.BLOCKSIZE]
    checksum = bytes([good[-8] ^ 1])
    for content in (good[:-40], good[:-3], good[:-8] + checksum + good[-7:], good + b"garbage"):
        path.write_bytes(content)
        with pytest.raises(AdvCAMError, match="damaged"):
            check_submission(path, test_split)
    for content in (endless, tar + b"garbage"):
        path.write_bytes(gzip.compress(content))
        (problem,) = check_submission(path, test_split)
        assert "the tar has no end" in problem


@pytest.mark.parametrize(
    ("label", "message"),
    [(255, "holds the labels 255"), (None, "predictions of 1 of 3 images are missing .* 2008_000002")],
)
def test_what_cannot_be_packed_leaves_nothing(label, message, predictions, test_split, tmp_path):
    file = predictions / f"{IDS[1]}.png"
    file.unlink()
    if label is not None:
        write_mask(file, torch.full((6, 8), label, dtype=torch.uint8))
    with pytest.raises(AdvCAMError, match=message):
        write_submission(predictions, test_split, tmp_path / "out" / "results.tgz")
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(AdvCAMError, match="comp5 and comp6, not 'comp7'"):
        write_submission(predictions, test_split, tmp_path / "results.tgz", "comp7")
