"""What fuzzing found, each as a case of its own: one line, without the memory or time that a file claims."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save, save_file

from advcam_attr.data.coco import CocoImage, CocoInstances
from advcam_attr.data.instances import read_instances
from advcam_attr.data.samples import missing_images
from advcam_attr.data.shards import read_shards
from advcam_attr.data.wsol_metadata import read_wsol_metadata
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.networks.generators import load_generator
from advcam_attr.pipelines.wsss.score import read_net_score
from advcam_attr.pipelines.wsss.submission import check_submitted
from advcam_attr.report.attribution import attribution_sections
from advcam_attr.report.run import score_sections
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.provenance import image_sizes, read_record
from advcam_attr.types import AdvCAMError, Sample
from tiny_wsol import LISTS, write_lists


@pytest.mark.parametrize("label", ["2147483648", "1" * 5000, "²"])
def test_class_numbers_are_small(tmp_path, label):
    write_lists(tmp_path / "val", {**LISTS, "class_labels": ["001.Gull/5.jpg,0", f"002.Wren/7.jpg,{label}"]})
    with pytest.raises(AdvCAMError, match=r"class_labels\.txt: the class of"):
        read_wsol_metadata(tmp_path, tmp_path, "val")


def test_a_name_that_no_file_can_have_is_missing(tmp_path):
    sample = Sample("a", tmp_path / ("x" * 300) / "a.jpg", ())
    assert missing_images([sample]) == [sample]


def header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    about = tarfile.TarInfo("results/a.png")
    about.size, about.type = abs(size), kind
    block = bytearray(about.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_members_of_negative_length_end_the_reading(tmp_path, kind):
    """Python's tarfile goes back to the same member for ever."""
    (tmp_path / "0.tar").write_bytes(header(-512, kind) + bytes(4096))
    with pytest.raises(AdvCAMError, match="cannot read shard"):
        read_shards(tmp_path)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(header(-512, kind) + bytes(4096)))
    with pytest.raises(AdvCAMError, match=r"a\.tgz is no gzipped tar archive"):
        check_submitted(tmp_path / "a.tgz")


def test_archives_do_not_unpack_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("advcam_attr.pipelines.wsss.submission._LARGEST_TAR", 1 << 16)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(AdvCAMError, match="more than 65536 bytes unpacked"):
        check_submitted(tmp_path / "a.tgz")


def test_a_tar_that_is_no_tar_is_one_line(tmp_path):
    (tmp_path / "a.tgz").write_bytes(gzip.compress(b"x" * 600))
    with pytest.raises(AdvCAMError) as caught:
        check_submitted(tmp_path / "a.tgz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "about",
    [
        {"size": [20000, 20000]}, {"size": [1e400, 5]}, {"size": [8, 5, 3]}, {"size": [True, 5]}, {"classes": [7, 1]},
        {"classes": [1, 1]}, {"classes": [-1, 7]}, {"classes": [1.5, 7]}, {"classes": {"a": 1}},
        {"size": [1 << 62, 1 << 62]},
    ],
)  # fmt: skip
def test_map_stores_claim_no_more_than_they_may(tmp_path, about):
    about = {"classes": [1, 7], "size": [8, 5], "settings": "", **about}
    save_file({"grid0": torch.rand(2, 2, 2)}, tmp_path / "a.safetensors", {"advcam_maps": json.dumps(about)})
    assert MapStore(tmp_path).header("a") is None
    with pytest.raises(AdvCAMError, match=r"a\.safetensors is damaged or no file of maps"):
        MapStore(tmp_path).read("a")


@pytest.mark.parametrize("shape", [(2, 0, 2), (2, 1 << 40, 0), (2, 2)])
def test_maps_have_cells(tmp_path, shape):
    about = {"classes": [1, 7], "size": [8, 5], "settings": ""}
    save_file({"grid0": torch.zeros(shape)}, tmp_path / "a.safetensors", {"advcam_maps": json.dumps(about)})
    with pytest.raises(AdvCAMError, match="damaged or no file of maps"):
        MapStore(tmp_path).read("a")


def test_generators_are_not_wider_than_their_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(save({"conv1a.weight": torch.zeros(5000, 1, 1, 1)}))
    with pytest.raises(AdvCAMError, match="conv1a has 5000 channels"):
        load_generator("seam", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        '{"digest": "../x", "settings": {}}', '{"digest": "0123456789abcdef", "settings": []}',
        '{"digest": 1, "settings": {}}', "[]",
    ],
)  # fmt: skip
def test_records_of_other_types_are_none(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_record(tmp_path / "a.json") is None


def test_records_of_images_have_a_configuration(tmp_path):
    record = {"image": "a.png", "config": [], "targets": [], "files": [], "input_size": [5, 7]}
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert attribution_sections(tmp_path, 5) == []


def test_noted_sizes_are_whole_numbers(tmp_path):
    path = tmp_path / "sizes.json"
    path.write_text('{"a": [1e999, 5], "b": [4, 5], "c": [0, 5], "d": ["4", 5]}')
    assert image_sizes([], path, 0)[0] == {"b": (4, 5)}
    path.write_text('{"b": [4]}')
    assert image_sizes([], path, 0)[0] == {}


def test_numbers_beyond_floats_in_evaluations(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"images": 3, "scores": {"mean_iou": %s}}' % ("1" * 400))
    assert score_sections(tmp_path, 5)
    (tmp_path / "evaluation.json").write_text('{"images": Infinity, "scores": {}}')
    with pytest.raises(AdvCAMError, match="is damaged"):
        read_net_score(tmp_path / "evaluation.json")


@pytest.mark.parametrize(
    ("labels", "counts"),
    [([[9, 1]], (1, 3, 2)), ([[0, 9]], (1, 3, 2)), ([[-1, 1]], (1, 3, 2)), ([[0, 1]], (1, 2, 2)), ([[0, 1]], (1, 3))],
)
def test_counts_of_images_that_are_not_there(labels, counts):
    state = {
        "truth": torch.zeros(1, 3, dtype=torch.int32),
        "labels": torch.tensor(labels),
        "counts": torch.zeros(counts),
    }
    with pytest.raises(AdvCAMError, match="counts of images"):
        ImageCounts.from_state(state)


def test_sweeps_of_shapes_that_do_not_fit():
    with pytest.raises(AdvCAMError, match="not of thresholds and classes"):
        ThresholdSweep.from_state({"thresholds": torch.tensor([0.2]), "histogram": torch.zeros(0, 1 << 40, 2)})


def test_masks_of_an_image_are_not_gigabytes(monkeypatch, tmp_path):
    annotation = {"segmentation": [[1, 1, 5, 1, 5, 5]], "category_id": 1}
    api = type("Api", (), {"imgToAnns": {1: [annotation] * 100}})()
    with pytest.raises(AdvCAMError, match="100 masks of 9000 x 9000 pixels"):
        CocoInstances(api, {1: 0}).draw(CocoImage(1, "a.jpg", (9000, 9000)))
    about = PngImagePlugin.PngInfo()
    about.add_text("advcam_instances", '{"classes": [0, 1], "scores": [1, 1]}')
    content = io.BytesIO()
    Image.frombytes("L", (3, 1), b"\0\1\2").save(content, "PNG", pnginfo=about)
    Path(tmp_path / "a.png").write_bytes(content.getvalue())
    assert len(read_instances(tmp_path / "a.png", 2).classes) == 2
    monkeypatch.setattr("advcam_attr.data.instances._MOST_NUMBERS", 5)
    with pytest.raises(AdvCAMError, match="2 instances of 3x1 pixels are too many"):
        read_instances(tmp_path / "a.png", 2)


def test_messages_are_one_line_of_limited_length():
    message = str(AdvCAMError("a\nb\r\nc\u2028" + "x" * 10_000))
    assert message.startswith("a b c x")
    assert len(message) < 2000
