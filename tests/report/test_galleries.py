"""Galleries of localization and semi-supervised runs: boxes, label maps, gains, missing files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from advcam_attr.pipelines.evaluate import REPORT
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.provenance import check_settings
from report_runs import TIGHT, Page, localization_run, report, report_error, score_boxes, semi_run
from tiny_wsol import write_lists


def by_name(page: Page, place: int = 0) -> dict[str, dict]:
    return {entry["name"]: entry for entry in page.galleries[place]}


def labels(frames: list[dict]) -> list[str]:
    return [frame["label"] for frame in frames]


@pytest.fixture
def located(tmp_path):
    pytest.importorskip("cv2")
    return localization_run(tmp_path)


def test_boxes_and_gains_of_a_localization_run(capsys, located):
    localization_run(located.parent, methods=("climb",))
    score_boxes(located)
    page = report(capsys, located)
    found = by_name(page)
    gull, wren = found[TIGHT], found["wren"]
    assert labels(gull["steps"]) == ["CAM", "climbing alone", "AdvCAM"]
    assert {one["label"]: one["boxes"] for one in gull["outlines"]} == {
        "truth": [[2, 3, 6, 5]], "CAM": [[2, 3, 3, 5]], "climbing alone": [[1, 3, 7, 5]], "AdvCAM": [[2, 3, 6, 5]],
    }  # fmt: skip
    assert gull["score"] == "IoU of the box: CAM 50.0, climbing alone 85.7, AdvCAM 100.0"
    assert gull["gain"] == 0.5
    assert wren["size"] == [200, 100], "half of the image"
    assert {one["label"]: one["boxes"] for one in wren["outlines"]} == {
        "truth": [[100, 20, 50, 50]], "CAM": [[100, 20, 50, 50]], "climbing alone": [[100, 20, 50, 50]],
        "AdvCAM": [[100, 20, 100, 50]],
    }  # fmt: skip
    assert wren["gain"] == -0.5
    assert wren["classes"] == ["002.Wren"]
    best = json.loads((located / "cam/seed0/maps/cam/localization.json").read_text())["scores"]["all"]
    assert f"GT-known Loc: CAM {best['gt_known_threshold']:.3f}, climbing alone " in page.text
    assert "smallest gain in IoU over CAM first" in page.text


def test_maps_that_are_not_scored_have_no_boxes(capsys, located):
    page = report(capsys, located)
    assert "The maps of CAM and AdvCAM are not scored yet (advcam wsol evaluate): they have no boxes." in page.text
    for entry in page.galleries[0]:
        assert labels(entry["outlines"]) == ["truth"]
        assert (entry["score"], entry["gain"]) == ("", None)


def test_an_unfinished_localization_run(capsys, located):
    (located / "cam/seed0/maps/advcam/maps/wren.safetensors").unlink()
    (located / "cutmix/seed0/classifier").mkdir(parents=True)
    (located / "cutmix/seed0/classifier/training.json").write_text("{}")
    page = report(capsys, located)
    assert set(by_name(page)) == {TIGHT}
    assert "1 others have none, or not of all methods." in page.text
    assert "Gallery of cutmix/seed0 There is no gallery: there are no maps yet (advcam wsol maps)" in page.text


def test_maps_of_older_settings_count_as_missing(capsys, located):
    score_boxes(located)
    out = located / "cam/seed0/maps/advcam"
    digest = check_settings(out / "maps.json", {"method": "another"}, overwrite=True)
    maps = MapStore(out / "maps").read_grids(TIGHT)
    MapStore(out / "maps", settings=digest).write(TIGHT, maps)
    page = report(capsys, located)
    assert set(by_name(page)) == {TIGHT}
    assert "The maps of AdvCAM are not scored yet" in page.text
    (out / "maps/wren.safetensors").write_bytes(b"nothing")
    assert "wren.safetensors" in report_error(capsys, located)


def test_classifiers_share_the_limit_of_images(capsys, located):
    localization_run(located.parent, subject="cutmix/seed0")
    score_boxes(located)
    page = report(capsys, located, "--limit", 2)
    assert [len(gallery) for gallery in page.galleries] == [1, 1]
    assert "Gallery of cam/seed0" in page.text
    assert "Gallery of cutmix/seed0" in page.text
    assert "Shown are the 1 with the largest losses and gains." in page.text


def test_classes_are_those_of_the_net(capsys, located):
    (located / "names.txt").write_text("a\nTroglodytes troglodytes (Wren)\n")
    config = json.loads((located / "config.json").read_text())
    config["net"] = {"model": "x:y", "labels": str(located / "names.txt")}
    (located / "config.json").write_text(json.dumps(config))
    assert by_name(report(capsys, located))["wren"]["classes"] == ["Troglodytes troglodytes (Wren)"]


def test_a_localization_run_without_images_or_configuration(capsys, located):
    score_boxes(located)
    (located / "tables.md").write_text("Birds of cub\n")
    shutil.rmtree(located.parent / "CUB_200_2011" / "images")
    page = report(capsys, located)
    assert page.galleries == []
    assert "There is no gallery: 2 of 2 images of CUB-200-2011 test are not there" in page.text
    assert "Birds of cub" in page.text
    (located / "config.json").unlink()
    assert "config.json is missing or damaged" in report(capsys, located).text


def test_missing_images_are_counted(capsys, located):
    """Read from lists, which do not check that the images exist."""
    files = [f"001.Bird/{TIGHT}.jpg", "002.Bird/wren.jpg"]
    lists = {
        "image_ids": files, "class_labels": [f"{files[0]},0", f"{files[1]},1"],
        "image_sizes": [f"{files[0]},20,10", f"{files[1]},400,200"],
        "localization": [f"{files[0]},2,3,7,7", f"{files[1]},200,40,299,139"],
    }  # fmt: skip
    write_lists(located / "CUB" / "test", lists)
    images = located.parent / "CUB_200_2011" / "images"
    data = {"root": str(images), "kind": "metadata", "metadata": str(located / "CUB"), "score": "test"}
    (located / "config.json").write_text(json.dumps({"data": data, "net": None}))
    (images / files[1]).unlink()
    page = report(capsys, located)
    assert set(by_name(page)) == {TIGHT}
    assert "1 image files are missing, e.g. " in page.text


def test_damaged_scores_of_boxes_are_named(capsys, located):
    (located / "cam/seed0/maps/cam/localization.json").write_text("{}")
    assert "maps/cam/localization.json is damaged" in report_error(capsys, located)


def test_label_maps_of_a_semi_run(capsys, tmp_path):
    page = report(capsys, semi_run(tmp_path))
    found = by_name(page)
    assert labels(found["b"]["labels"]) == ["prediction", "truth"]
    assert found["b"]["steps"] == found["b"]["outlines"] == []
    assert found["b"]["classes"] == ["cat", "dog"]
    assert (found["a"]["gain"], found["a"]["score"]) == (1.0, "mean IoU: prediction 100.0")
    assert found["b"]["gain"] == pytest.approx(448 / 512 / 3), "cat and dog are missed, 64 of 512 pixels"
    assert found["b"]["score"] == "mean IoU: prediction 29.2"
    assert "Gallery of val" in page.text
    assert "smallest mean IoU first" in page.text


def test_label_maps_before_and_after_the_crf(capsys, tmp_path):
    run = semi_run(tmp_path, ("predictions", "predictions_crf"))
    shutil.copy(run / "predictions_crf/val/b.png", run / "predictions_crf/val/a.png")
    entry = by_name(report(capsys, run))["a"]
    assert labels(entry["labels"]) == ["prediction", "prediction after the CRF", "truth"]
    assert entry["score"] == "mean IoU: prediction 100.0, prediction after the CRF 46.9"
    assert entry["gain"] == pytest.approx(480 / 512 / 2), "the order is by the last"


def test_an_unfinished_semi_run(capsys, tmp_path):
    run = semi_run(tmp_path)
    (run / "predictions" / "val" / "b.png").unlink()
    page = report(capsys, run)
    assert set(by_name(page)) == {"a"}
    assert "1 others have none." in page.text
    (tmp_path / "VOC2012" / "JPEGImages" / "b.jpg").unlink()
    assert "1 image files are missing, e.g. " in report(capsys, run).text
    shutil.rmtree(run / "predictions")
    assert "There is no gallery: nothing is predicted yet (advcam semi evaluate)" in report(capsys, run).text


def test_images_without_a_true_mask_are_shown(capsys, tmp_path):
    run = semi_run(tmp_path)
    shutil.rmtree(tmp_path / "VOC2012" / "SegmentationClass")
    page = report(capsys, run)
    assert [(labels(e["labels"]), e["gain"]) for e in page.galleries[0]] == [(["prediction"], None)] * 2
    assert "No image has a true mask: the order is by name." in page.text


def own_split(folder: Path, name: str) -> Path:
    """Return a run whose split is a list file."""
    run = semi_run(folder)
    (folder / f"{name}.txt").write_text("b\n")
    (run / "predictions" / "val").rename(run / "predictions" / name)
    config = json.loads((run / "config.json").read_text())
    config["predict"]["split"] = str(folder / f"{name}.txt")
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_a_split_from_a_list_file(capsys, tmp_path):
    assert set(by_name(report(capsys, own_split(tmp_path, "some")))) == {"b"}


def test_a_semi_run_without_images(capsys, tmp_path):
    run = semi_run(tmp_path)
    (run / "predictions" / "val" / REPORT).write_text('{"data": "voc val", "scores": {"mean_iou": 0.5}}')
    shutil.rmtree(tmp_path / "VOC2012")
    page = report(capsys, run)
    assert page.galleries == []
    assert "There is no gallery: " in page.text
    assert "mIoU, %" in page.text


def test_a_damaged_label_map_is_named(capsys, tmp_path):
    run = semi_run(tmp_path)
    (run / "predictions" / "val" / "b.png").write_bytes(b"nothing")
    assert "predictions/val/b.png" in report_error(capsys, run)


def semi_of_an_unsafe_name(folder: Path) -> Path:
    return own_split(folder, TIGHT)


@pytest.mark.parametrize("make", [localization_run, semi_of_an_unsafe_name])
def test_names_are_escaped_and_nothing_is_fetched(make, capsys, tmp_path):
    pytest.importorskip("cv2")
    page = report(capsys, make(tmp_path))
    text = (tmp_path / "run" / "report.html").read_text()
    assert TIGHT in page.text or TIGHT in by_name(page)
    assert "<b>" not in text
    assert "<i>" not in text
    assert page.tags.count("script") == 2, "the gallery's data and the page's own"
    assert all(where.startswith(("data:", "#")) for where in page.fetched)
    assert "http" not in text.replace("http-equiv", "")
