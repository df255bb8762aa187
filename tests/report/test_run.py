"""The report of a run: sections of each kind of folder, escaped names, no requests."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from advcam_attr.data.voc import read_voc
from advcam_attr.files import write_json
from advcam_attr.pipelines.evaluate import evaluate_seeds, write_seed_evaluation
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.report.page import heat_uri, labels_uri, parse_tables, render
from advcam_attr.runs.map_store import MapStore
from advcam_attr.tables.segmentation import table_i
from advcam_attr.tables.table import Table
from report_runs import NASTY, WORSE, attribution_run, report, report_error
from tiny_voc import write_voc


@pytest.fixture
def attributed(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return attribution_run(tmp_path)


@pytest.fixture
def segmented(tmp_path) -> Path:
    """Return a run folder of ``advcam wsss`` with seeds of three images."""
    root = write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"], "b": ["cat", "dog"], "c": ["cat"]}}, size=(16, 32))
    run = tmp_path / "run"
    write_json(run / "config.json", {"data": {"root": str(root), "kind": "voc", "train": "train", "score": "train"}})
    generator = torch.Generator().manual_seed(0)
    for name in ("cam", "advcam"):
        store = MapStore(run / "seeds" / name / "maps")
        for sample in read_voc(root, "train").samples:
            maps = torch.rand(len(sample.labels), 2, 4, generator=generator)
            store.write(sample.id, GridMaps(sample.labels, (16, 32), (maps,)))
        write_json(run / "seeds" / name / "seeds.json", {"digest": "", "settings": {}})
    return run


def score(run: Path) -> None:
    root = Path(json.loads((run / "config.json").read_text())["data"]["root"])
    for name in ("cam", "advcam"):
        folder = run / "seeds" / name
        write_seed_evaluation(evaluate_seeds(MapStore(folder / "maps"), read_voc(root, "train")), folder)


def test_steps_are_stored_for_the_report(attributed):
    maps = load_file(attributed / "plain.safetensors")
    assert maps["steps"].shape[:2] == (2, 3)
    large = torch.nn.functional.interpolate(maps["steps"][:, 2][:, None], maps["advcam"].shape[1:], mode="bilinear")[
        :, 0
    ]
    torch.testing.assert_close(large, maps["advcam"], rtol=1e-4, atol=1e-5)


def test_of_an_attribution(capsys, attributed):
    page = report(capsys, attributed)
    entries = page.galleries[0]
    assert len(entries) == 4, "two images, two classes each"
    assert [frame["label"] for frame in entries[0]["steps"]] == ["CAM, t = 0", "AdvCAM, t = 1", "AdvCAM, t = 2"]
    assert entries[0]["score"].startswith("logit ")
    assert "Scores of each class before and after the climb" in page.text
    assert all(alt is not None for alt in page.alts)


def test_names_are_escaped_and_nothing_is_fetched(capsys, attributed):
    page = report(capsys, attributed)
    assert "onerror" not in " ".join(page.tags)
    assert page.tags.count("script") == 2, "the gallery's data and the page's own"
    assert "b" not in page.tags
    assert NASTY in {entry["name"] for entry in page.galleries[0]}
    assert WORSE in {name for entry in page.galleries[0] for name in entry["classes"]}
    assert WORSE in page.text, "in the table"
    assert all(where.startswith(("data:", "#")) for where in page.fetched)
    assert "http" not in (attributed / "report.html").read_text().replace("http-equiv", "")


def test_unfinished_images_are_left_out_and_damaged_ones_named(capsys, attributed):
    (attributed / "plain.safetensors").write_bytes(b"nothing")
    assert "plain.json are damaged" in report_error(capsys, attributed)
    assert not (attributed / "report.html").exists()
    (attributed / "plain.json").unlink()
    assert len(report(capsys, attributed).galleries[0]) == 2


@pytest.mark.parametrize("overlay", ["/etc/hosts", "../plain.png", "sub/plain.png"])
def test_an_overlay_outside_of_the_folder_raises(capsys, attributed, overlay):
    record = json.loads((attributed / "plain.json").read_text())
    record["targets"][0]["overlay"] = overlay
    write_json(attributed / "plain.json", record)
    assert f"plain.json names {overlay!r}, which is no file in" in report_error(capsys, attributed)


@pytest.mark.parametrize("name", ["plain.safetensors", "tables.md", "landscape.png"])
def test_links_out_of_the_folder_raise(capsys, attributed, name, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (attributed / "landscape.json").write_text("{}")
    (attributed / name).unlink(missing_ok=True)
    (attributed / name).symlink_to(tmp_path / "secret")
    assert "which is no file in" in report_error(capsys, attributed)


def test_the_largest_losses_and_gains_are_shown(capsys, attributed):
    everything = report(capsys, attributed).galleries[0]
    page = report(capsys, attributed, "--limit", 2)
    gains = sorted(entry["gain"] for entry in everything)
    assert sorted(entry["gain"] for entry in page.galleries[0]) == [gains[0], gains[-1]]
    assert "the 2 of 4 maps" in page.text


def test_of_a_run_that_is_not_scored(capsys, segmented):
    assert "limit must be at least 1" in report_error(capsys, segmented, "--limit", 0)
    page = report(capsys, segmented)
    assert "The seeds are not scored yet" in page.text
    entries = page.galleries[0]
    assert [entry["classes"] for entry in entries] == [["dog"], ["cat", "dog"], ["cat"]]
    assert [frame["label"] for frame in entries[0]["steps"]] == ["CAM", "AdvCAM"]
    assert [frame["label"] for frame in entries[0]["labels"]] == ["truth"]
    assert entries[0]["gain"] is None


def test_of_a_scored_run_with_tables_log_and_masks(capsys, segmented):
    score(segmented)
    (segmented / "tables.md").write_text("Seeds of voc\n\n" + table_i({"IRN": (0.481, None, 0.66)}).markdown() + "\n")
    (segmented / "classifier").mkdir()
    (segmented / "classifier" / "log.jsonl").write_text('{"step": 0, "loss": 0.7}\n{"step": 1, "loss": 0.5}\n')
    masks = segmented / "refined" / "advcam" / "masks"
    masks.mkdir(parents=True)
    Image.fromarray(np.full((16, 32), 12, np.uint8)).save(masks / "a.png")
    page = report(capsys, segmented)
    assert "Table I: mean IoU on PASCAL VOC train, %" in page.text
    assert "48.1" in page.text
    assert "seeds/advcam" in page.text, "the row of its evaluation"
    assert "loss of classifier: from 0.7 to 0.5 in 2 records" in page.text
    first = next(entry for entry in page.galleries[0] if entry["name"] == "a")
    assert [frame["label"] for frame in first["labels"]] == [
        "seed of CAM",
        "seed of AdvCAM",
        "mask from AdvCAM",
        "truth",
    ]
    gains = [entry["gain"] for entry in page.galleries[0]]
    assert all(gain is not None for gain in gains)


def test_other_evaluations_are_shown_as_they_are(capsys, segmented):
    score(segmented)
    write_json(segmented / "boxes" / "evaluation.json", {"data": "cub test", "top1_loc": 0.635, "levels": [0.3]})
    text = report(capsys, segmented).text
    assert "top1_loc" in text
    assert "0.635" in text
    assert "mIoU, %" in text
    assert "F1, % mean of the classes' F1, % noise, %" in text, "shares are all in percent"


def test_the_slider_shows_a_sweep_over_steps(capsys, segmented):
    for steps in (0, 1, 10):
        source = segmented / "seeds" / "cam" / "maps"
        shutil.copytree(source, segmented / "analysis" / "maps" / "with" / "maps" / f"T{steps:02d}")
    entry = report(capsys, segmented).galleries[0][0]
    assert [frame["label"] for frame in entry["steps"]] == ["CAM, t = 0", "AdvCAM, t = 1", "AdvCAM, t = 10"]


def test_without_images_the_rest_is_shown(capsys, segmented):
    score(segmented)
    shutil.rmtree(segmented.parent / "VOC2012")
    page = report(capsys, segmented)
    assert page.galleries == []
    assert "There is no gallery: " in page.text
    assert "All evaluations" in page.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: None, "no such run folder"),
        (lambda run: run.mkdir(), "holds no results of advcam"),
        (lambda run: write_json(run / "package.json", {"name": "foreign"}), "holds no results of advcam"),
        (lambda run: write_json(run / "evaluation.json", ["foreign"]), "evaluation.json is damaged"),
    ],
)
def test_folders_without_a_report(capsys, tmp_path, make, message):
    make(tmp_path / "run")
    assert message in report_error(capsys, tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def test_tables_are_read_as_they_were_written():
    tables = [table_i({"a|b": (0.5, None, 0.25)}), Table("Other", ("name", "n"), (("x", "1"),), words=1)]
    found, lines = parse_tables("\n\n".join(table.markdown() for table in tables))
    assert [table.rows for table in found] == [table.rows for table in tables]
    assert [table.words for table in found] == [2, 1]
    assert lines == (*tables[0].notes,)


def test_maps_without_evidence_and_of_any_shape():
    labels = np.array([[0, 255], [20, 1]], np.uint8)
    for uri in (heat_uri(np.full((3, 200), -1.0)), heat_uri(np.array([[np.nan, np.inf]])), labels_uri(labels)):
        assert uri.startswith("data:image/png;base64,")


def test_the_pages_heat_is_as_opaque_as_it_is_bright():
    """The SVG filter's first step takes the alpha of a pixel from its grey level, which the colour map needs too."""
    page = render("title", "", [])
    (values,) = re.findall(r'<filter id="turbo"[^>]*><feColorMatrix values="([^"]+)"/><feComponentTransfer>', page)
    matrix = np.array(values.split(), float).reshape(4, 5)
    assert (matrix @ [0.25, 0.25, 0.25, 1, 1]).tolist() == [0.25] * 4
    assert (matrix @ [0, 0, 0, 1, 1]).tolist() == [0] * 4
