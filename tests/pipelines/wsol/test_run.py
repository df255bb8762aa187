"""Localization runs by the command line, from a configuration to the paper's tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from places import ROOT

pytest.importorskip("cv2")

from advcam_attr.cli import main as cli
from advcam_attr.cli.wsol import OPTIONS
from advcam_attr.data.class_names import in_classes_of, match_names
from advcam_attr.data.cub import read_cub
from advcam_attr.metrics.bootstrap import Interval
from advcam_attr.metrics.localization import LocalizationScores, compare_tables
from advcam_attr.pipelines.wsol.config import WSOL_SETTINGS, TrainedNet
from advcam_attr.pipelines.wsol.evaluate import load_table
from advcam_attr.pipelines.wsol.run import WSOLRun
from advcam_attr.pipelines.wsol.score import Measured, gain_lines, mean_scores, paper_tables
from tiny_wsol import photograph, write_cub, write_lists

CONFIGS = ROOT / "configs"

CONFIG = """
run: run
data: {root: $BIRDS, val: test}
classifier:
  backbone: {name: timm/test_resnet, random_weights: true, stride: null, mean: [0.5], std: [0.25]}
  epochs: 1
  batch: 2
  resize: 72
  crop: 64
trainings: {CAM: {}, CutMix: {cutmix_probability: 1.0}}
seeds: [1]
maps: {overrides: {steps: 1}, size: 64}
score: {search: levels}
runtime: {workers: 0}
"""

READY = """
run: ready
data: {root: $BIRDS}
net: {model: "ready_net:make", labels: names.txt, mean: [0.5], std: [0.25]}
maps: {overrides: {steps: 1}, size: 64}
score: {search: levels}
runtime: {workers: 0}
"""

FACTORY = """
import torch
from torch import nn
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a CUB of four birds, named by a variable, and configurations."""
    monkeypatch.chdir(tmp_path)
    root = write_cub(tmp_path)
    random = np.random.default_rng(0)
    for file in sorted((root / "images").rglob("*.jpg")):
        coarse = Image.fromarray(random.integers(0, 256, (2, 4, 3), dtype=np.uint8))
        coarse.resize((20, 10), Image.Resampling.BICUBIC).save(file)
    monkeypatch.setenv("BIRDS", str(root))
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "ready.yaml").write_text(READY)
    (tmp_path / "ready_net.py").write_text(FACTORY)
    (tmp_path / "names.txt").write_text("Turdus merula (Blackbird)\nTroglodytes troglodytes (Wren)\nbackground\n")
    return tmp_path


def run(capsys, *argv: str, config: str = "config.yaml") -> tuple[int, str, str]:
    code = cli.main(["wsol", argv[0], "--config", config, "--trust-factory", "ready_net:make", *argv[1:]])
    out, err = capsys.readouterr()
    return code, out, err


def error_of(capsys, *argv: str, config: str = "config.yaml") -> str:
    code, _, err = run(capsys, *argv, config=config)
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("advcam: error: ").rstrip()


def test_from_images_to_tables(capsys, folder):
    code, out, err = run(capsys, "run")
    assert (code, err) == (0, "")
    assert "run/cutmix/seed1/classifier" in out
    assert "run/cam/seed1/maps/climb" in out
    lines = out.splitlines()
    for row in ("CAM ", "CAM + AdvCAM", "CutMix ", "CutMix + AdvCAM"):
        place = next(i for i, line in enumerate(lines) if line.startswith(row) and " paper " in line)
        assert lines[place + 1].startswith(row)
        assert "here, test_resnet, 2 images" in lines[place + 1]
    tables = (folder / "run/tables.md").read_text()
    assert "Table VII" in tables
    assert "Table X" in tables
    assert "here, test_resnet, 2 images, CutMix" in tables
    assert "CutMix, seed 1, advcam - cam: MaxBoxAccV2" in out

    report = json.loads((folder / "run/report.json").read_text())
    assert len(report["maps"]) == 2 * 3
    found = {(one["classifier"], one["seed"], one["method"]): one for one in report["maps"]}
    one = found["CutMix", 1, "advcam"]
    adv, cam = (load_table(Path(found["CutMix", 1, m]["folder"]) / "boxes_all.safetensors") for m in ("advcam", "cam"))
    assert one["gain_over_cam"]["max_box_acc_v2"]["value"] == compare_tables(adv, cam).value
    first = found["CAM", 1, "cam"]["scores"]["all"]["max_box_acc_v2"]
    row = next(line for line in tables.splitlines() if line.startswith("| CAM | here"))
    assert float(row.split("|")[-2]) == pytest.approx(100 * first, abs=0.051)

    maps = {file: file.read_bytes() for file in (folder / "run").rglob("maps/*.safetensors")}
    assert len(maps) == 2 * 3 * 2
    code, out, _ = run(capsys, "run")
    assert code == 0
    assert "epoch" not in out
    assert out.count("0 written") == 6
    assert maps == {file: file.read_bytes() for file in maps}
    recorded = OPTIONS.read(folder / "run/config.json")
    assert recorded.data.root == "$BIRDS"
    assert recorded == OPTIONS.read(folder / "config.yaml")


def test_scores_are_averaged_over_seeds():
    base = LocalizationScores(9, "all", (0.3, 0.5, 0.7), (0.9, 0.6, 0.3), (0.1,) * 3, 0.6, 0.6, 0.1, 0.7, 0.5, 0.1, 0.5)
    better = replace(base, max_box_acc=(0.9, 0.8, 0.4), max_box_acc_v2=0.7, top1_loc=0.6)
    nets = [TrainedNet("CAM", seed, Path()) for seed in (0, 1)]
    found = [Measured(s, "cam", Path(), {"all": one}) for s, one in zip(nets, (base, better), strict=True)]
    mean = mean_scores(found)["CAM", "cam"]
    assert mean.max_box_acc == pytest.approx((0.9, 0.7, 0.35))
    assert (mean.max_box_acc_v2, mean.top1_loc, mean.top1_cls) == pytest.approx((0.65, 0.55, 0.7))
    gain = Interval(0.02, 0.0, 0.04), Interval(0.06, 0.0, 0.1)
    lines = gain_lines({(s, "advcam"): {"max_box_acc_v2": g} for s, g in zip(nets, gain, strict=True)})
    assert lines[-1] == "CAM, advcam - cam over 2 seeds: MaxBoxAccV2 +4.0, standard deviation 2.8"
    vii, ten = paper_tables(found, "cub", "resnet50")
    assert next(row for row in vii.rows if row[1] == "here, resnet50, 9 images, 2 seeds")[-1] == "65.0"
    assert ten.rows[1][:2] == ("no climbing", "here, resnet50, 9 images, 2 seeds, CAM")
    assert paper_tables(found, "cub", "inception_v3")[0].title.startswith("Table VIII")
    assert [table.title[:9] for table in paper_tables(found, "imagenet", "resnet50")] == ["Table VII"]
    assert paper_tables(found, "openimages", "resnet50") == []


def test_methods_have_the_recipes_of_table_x(folder):
    settings = WSOLRun(OPTIONS.read(folder / "config.yaml")).map_settings()
    recipes = {method: one.whole_recipe() for method, one in settings.items()}
    assert recipes["cam"].steps == 0
    assert recipes["climb"].regularizers == ()
    assert type(recipes["climb"].objective).__name__ == "Target"
    assert recipes["climb"].with_(objective=recipes["advcam"].objective, regularizers=0.01).steps == 1
    assert recipes["advcam"].regularizers[0].weight == 0.01


def test_a_ready_net_scores_its_own_classes(capsys, folder):
    code, out, _ = run(capsys, "run", config="ready.yaml")
    assert code == 0
    assert "names.txt has 1 of 2 classes: 1 images; 1 of the others are left out (001.Gull)" in out
    assert "CAM + AdvCAM" in out
    assert len(list((folder / "ready/cam/maps/advcam").rglob("maps/*.safetensors"))) == 1
    config = OPTIONS.read(folder / "ready.yaml")
    (folder / "more.txt").write_text("Wren\nGull\nbackground\n")
    known, unknown = in_classes_of(read_cub(folder, "test"), ("Wren", "Gull", "background"))
    assert unknown == ()
    assert [sample.labels for sample in known.samples] == [(1,), (0,)]
    assert {**known.boxes} == {**read_cub(folder, "test").boxes}
    for scores in WSOLRun(config).evaluate():
        assert scores.scores["all"].images == 1


def test_common_names_are_matched():
    names = [
        "Euphagus cyanocephalus (Brewer's Blackbird)",
        "Agelaius phoeniceus (Red-winged Blackbird)",
        "tench, Tinca",
    ]
    names += ["crane, machine", "crane, bird"]
    assert match_names(["009.Brewer_Blackbird", "010.Red_winged_Blackbird"], names) == {0: 0, 1: 1}
    assert match_names(["Blackbird", "Tench", "tinca", "euphagus cyanocephalus"], names) == {1: 2, 2: 2, 3: 0}
    assert match_names(["crane"], names) == {}, "two classes of that name: none is guessed"


def test_several_processes_leave_the_evaluation(capsys, folder, monkeypatch):
    for rank in ("1", "0"):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        (folder / "names.txt").write_text("Gull\nWren\nbackground\n")
        code, out, _ = run(capsys, "run", "--maps.batch", "1", config="ready.yaml")
        assert code == 0
        assert "run advcam wsol evaluate" in out
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert not Path("ready/report.json").exists()
    assert run(capsys, "evaluate", config="ready.yaml")[0] == 0
    assert json.loads(Path("ready/report.json").read_text())["maps"][0]["scores"]["all"]["images"] == 2


def test_errors_are_one_line(capsys, folder, monkeypatch):
    assert error_of(capsys, "maps").startswith("there is no classifier run/cam/seed1/classifier/")
    assert not Path("run/cam").exists()
    assert "comes trained" in error_of(capsys, "classifier", config="ready.yaml")
    assert "no maps in ready/cam/maps/cam" in error_of(capsys, "evaluate", config="ready.yaml")
    (folder / "names.txt").write_text("Wren\n")
    assert "label file names.txt has 1 names" in error_of(capsys, "maps", config="ready.yaml")
    (folder / "names.txt").write_text("a\nb\nc\n")
    assert error_of(capsys, "maps", config="ready.yaml").startswith("none of the classes of cub test")
    (folder / "names.txt").unlink()
    assert "label file: names.txt" in error_of(capsys, "maps", config="ready.yaml")
    no_model = ["--net.model", "null"]
    assert error_of(capsys, "maps", *no_model, config="ready.yaml").startswith("net names no net")
    no_model += ["--net.checkpoint", "net.pt"]
    assert "net.labels goes with net.model" in error_of(capsys, "maps", *no_model, config="ready.yaml")
    image = next(folder.rglob("gull_a.jpg"))
    monkeypatch.delenv("BIRDS")
    assert error_of(capsys, "run") == "$BIRDS: set the environment variable $BIRDS"
    monkeypatch.setenv("BIRDS", str(folder))
    image.unlink()
    assert "1 of 2 images of CUB-200-2011 test are not there" in error_of(capsys, "maps", config="ready.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--maps.recipe", "wsoll"], "unknown recipe 'wsoll'; did you mean"),
        (["--maps.overrides", "{stepz: 1}"], "did you mean"),
        (["--maps.base", "cem"], "unknown base 'cem'; did you mean"),
        (["--maps.size", "0"], "maps.size"),
        (["--maps.batch", "0"], "maps.batch"),
        (["--maps.methods", "[]"], "maps.methods names no method"),
        (["--maps.methods", "[cam, cam]"], "maps.methods must differ, got cam twice"),
        (["--runtime.workers", "-1"], "runtime.workers must not be negative"),
        (["--score.processes", "0"], "score.processes"),
        (["--score.contours", "[largest]"], "score.contours must have all"),
        (["--data.score", "nope"], "nope"),
        (["--classifier.epochs", "0"], "classifier.epochs"),
        (["--data.kind", "metadata"], "data.kind metadata needs the folder"),
        (["--data.root", "nowhere"], "no CUB-200-2011 at nowhere"),
        (["--seeds", "[]"], "there is no net"),
        (["--seeds", "[1, 1]"], "seeds must differ, got 1 twice"),
        (["--trainings", "{CAM: {}, Cam: {}}"], "got cam twice"),
        (["--trainings", "{A B: {}, a_b: {}}"], "got a_b twice"),
        (["--trainings", "{CAM: {epoch: 2}}"], "trainings.CAM has no 'epoch'; did you mean 'epochs'"),
        (["--trainings", "{CAM: {epochs: q}}"], "trainings.CAM.epochs takes an integer above 0; got 'q'"),
        (["--trainings", "{CAM: {optimizer: {lr: q}}}"], "trainings.CAM.optimizer.lr takes a number; got 'q'"),
        (["--trainings", "{CAM: {lr: 0.1}}"], "trainings.CAM.lr is now trainings.CAM.optimizer.lr"),
        (["--trainings", "{CAM: {optimizer: {lrr: 0.1}}}"], "trainings.CAM.optimizer has no 'lrr'"),
    ],
)
def test_errors_come_before_any_training(options, message, capsys, folder):
    assert message in error_of(capsys, "run", *options)
    assert not Path("run").exists()


@pytest.mark.parametrize("stage", ["run", "maps", "evaluate"])
@pytest.mark.parametrize("config", ["config.yaml", "ready.yaml"])
def test_masks_in_place_of_boxes_raise(stage, config, capsys, folder):
    photograph(folder / "dataset/OpenImages/0.jpg")
    lists = {"image_ids": ["0.jpg"], "class_labels": ["0.jpg,0"]}
    write_lists(folder / "metadata/OpenImages/train", lists)
    truth = {"image_sizes": ["0.jpg,20,10"], "localization": ["0.jpg,m.png,"]}
    write_lists(folder / "metadata/OpenImages/test", {**lists, **truth})
    data = ["--data.kind", "metadata", "--data.metadata", "metadata/OpenImages", "--data.root", "dataset/OpenImages"]
    message = error_of(capsys, stage, *data, config=config)
    assert "has masks and no boxes" in message
    assert "PixelAP" in message
    assert not Path("run").exists()
    assert not Path("ready").exists()


def test_a_box_outside_its_image_raises(capsys, folder):
    file = next(folder.rglob("bounding_boxes.txt"))
    file.write_text(file.read_text().replace("5.0 2.0 30.0 30.0", "25.0 2.0 30.0 30.0"))
    assert "is not in the image of 20x10 pixels" in error_of(capsys, "run", config="ready.yaml")


def test_an_unreadable_image_stops_the_evaluation(capsys, folder):
    (folder / "names.txt").write_text("Gull\nWren\nbackground\n")
    image = next(folder.rglob("wren_b.jpg"))
    image.write_bytes(image.read_bytes()[:-30])
    message = error_of(capsys, "run", config="ready.yaml")
    assert message.startswith("3 maps could not be made: wren_b: ")
    assert not Path("ready/report.json").exists()


@pytest.mark.parametrize("name", ["cub", "cub_inception", "imagenet", "cub_small", "cub_small_trained"])
def test_example_configurations(name, monkeypatch):
    monkeypatch.setenv("ADVCAM_DATA", "data")
    config = OPTIONS.read(CONFIGS / f"{name}.yaml")
    assert len(WSOLRun(config).map_settings()) == len(config.maps.methods)
    if name in ("cub", "cub_inception", "imagenet"):
        net = "inception_v3" if "inception" in name else "resnet50"
        for training in ("CAM", "CutMix"):
            published = WSOL_SETTINGS[f"{name.split('_')[0]}_{net}_{training.lower()}"]
            assert config.training(training) == published


@pytest.mark.slow
def test_real_birds_of_six_species(tmp_path, data_root, monkeypatch, capsys):
    monkeypatch.setenv("ADVCAM_DATA", str(data_root))
    argv = ["--run", str(tmp_path / "run"), "--data.per_class", "1", "--maps.methods", "[cam, advcam]"]
    argv += ["--maps.overrides", "{steps: 2}"]
    assert cli.main(["wsol", "run", "--config", str(CONFIGS / "cub_small.yaml"), *argv]) == 0
    out = capsys.readouterr().out
    assert "has 6 of 10 classes: 6 images; 4 of the others are left out" in out
    found = json.loads((tmp_path / "run/report.json").read_text())["maps"]
    cam, adv = (one["scores"]["all"] for one in found)
    assert cam["images"] == 6
    assert cam["top1_cls"] == adv["top1_cls"] > 0.4
    assert adv["max_box_acc"][0] > 0.7
