"""Progress of a run's stages, counted from files."""

from __future__ import annotations

from pathlib import Path

import torch

from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.progress import Progress, maps_progress, masks_progress, training_progress
from advcam_attr.types import ClassMaps, Sample

SAMPLES = [Sample(name, Path(f"{name}.jpg"), (0,)) for name in ("a", "b")]


def test_steps_of_a_training_are_counted_from_its_log(tmp_path):
    assert training_progress("net", tmp_path, "net.bin", 4).state == "to do"
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert training_progress("net", tmp_path, "net.bin", 4) == Progress("net", 2, 4, "steps")
    (tmp_path / "net.bin").touch()
    assert training_progress("net", tmp_path, "net.bin", 4).state == "done"


def test_masks_of_other_images_are_not_counted(tmp_path):
    assert masks_progress("masks", tmp_path / "none", SAMPLES).done == 0
    for name in ("a", "other"):
        (tmp_path / f"{name}.png").touch()
    assert str(masks_progress("masks", tmp_path, SAMPLES)) == "masks: 1 of 2 images, started"


def test_maps_are_counted_in_their_store(tmp_path):
    maps = ClassMaps((0,), (4, 4), torch.zeros(1, 1, 1), torch.zeros(1, 4, 4))
    MapStore(tmp_path).write("b", maps)
    assert maps_progress("seeds", tmp_path, SAMPLES) == Progress("seeds", 1, 2)
