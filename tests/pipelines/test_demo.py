"""The demonstration, at a tiny size: what it writes, that it repeats itself, and (slow) that AdvCAM earns its name."""

from __future__ import annotations

import json
import time

import pytest
import torch
from PIL import Image

from advcam_attr.attr.cam import CAM
from advcam_attr.data.toy import make_scenes
from advcam_attr.pipelines.demo import DemoSettings, class_maps, label_maps, run_demo, small_net, train_net
from logs import record_log

TINY = DemoSettings(train=32, validation=6, test=8, size=48, epochs=1, shown=2)


def test_what_it_writes(tmp_path):
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    logged = record_log()
    result = run_demo(tmp_path / "demo", TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert any("training" in line for line in logged)
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == ["scenes.png", "scores.json", "table.md"]
    assert [score.method for score in result.scores] == ["CAM", "AdvCAM"]
    for score in result.scores:
        assert f"| {score.method} | {score.miou:.1f} | {score.precision:.1f} |" in result.table
        assert 0 < score.miou < 100
    assert result.table in result.table_file.read_text()
    written = json.loads(result.scores_file.read_text())
    assert written["scores"][1]["miou"] == result.scores[1].miou
    with Image.open(result.figure_file) as figure:
        assert figure.width > 6 * 96
    again = run_demo(tmp_path / "again", TINY)
    assert again.scores == result.scores


def test_maps_are_of_the_classes_that_are_there():
    scenes = make_scenes(4, size=48)
    maps = class_maps(CAM(small_net().eval()), scenes)
    assert maps.shape == (4, 4, 48, 48)
    assert ((maps.amax((2, 3)) > 0) <= scenes.labels).all()
    assert maps.max() <= 1


def test_label_maps():
    maps = torch.tensor([[[[0.9, 0.2]], [[0.3, 0.4]]]])
    assert label_maps(maps, 0.5).tolist() == [[[1, 0]]]
    assert label_maps(maps, 0.3).tolist() == [[[1, 2]]]


def test_training_learns():
    scenes = make_scenes(16, size=48)
    net = train_net(scenes, epochs=25, batch_size=8)
    with torch.no_grad():
        right = ((net((scenes.images - 0.5) / 0.25) > 0) == scenes.labels).float().mean()
    assert right > 0.85
    assert not net.training


@pytest.mark.slow
def test_advcam_finds_more_of_the_animals(tmp_path):
    start = time.monotonic()
    cam, advcam = run_demo(tmp_path).scores
    assert time.monotonic() - start < 110
    assert advcam.miou > cam.miou + 3
    assert advcam.recall > cam.recall
    assert advcam.precision > cam.precision
