"""The stages of localization, from a configuration file to the paper's tables, by the command line."""

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
from advcam_attr.pipelines.wsol import run as wsol
from advcam_attr.pipelines.wsol.config import Subject, subjects_of
from advcam_attr.pipelines.wsol.evaluate import load_table
from advcam_attr.pipelines.wsol.score import Measured, gain_lines, mean_scores, paper_tables
from tiny_wsol import photograph, write_cub, write_lists

CONFIGS = ROOT / "configs"

CONFIG = """
run: run
data: {root: $BIRDS, val: test}
classifier: {backbone: timm/test_resnet, random_weights: true, stride: null, mean: [0.5], std: [0.25], epochs: 1,
  batch: 2, resize: 72, crop: 64, workers: 0}
trainings: {CAM: {}, CutMix: {cutmix_probability: 1.0}}
seeds: [1]
maps: {overrides: {steps: 1}, size: 64, workers: 0}
score: {search: levels}
"""

READY = """
run: ready
data: {root: $BIRDS}
net: {model: "ready_net:make", labels: names.txt, mean: [0.5], std: [0.25]}
maps: {overrides: {steps: 1}, size: 64, workers: 0}
score: {search: levels}
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
    code = cli.main(["wsol", argv[0], "--config", config, *argv[1:]])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv: str, config: str = "config.yaml") -> str:
    code, _, err = run(capsys, *argv, config=config)
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("advcam: error: ").rstrip()


def test_from_pictures_to_tables(capsys, folder):
    code, out, err = run(capsys, "run")
    assert (code, err) == (0, "")
    assert "2 images of cub train to train on" in out
    assert "training CutMix with seed 1 in run/cutmix/seed1/classifier" in out
    assert "making maps of CAM by climb in run/cam/seed1/maps/climb" in out
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
    assert out.count("is there: nothing to train") == 2
    assert out.count("0 written, 2 kept") == 6
    assert maps == {file: file.read_bytes() for file in maps}
    kept = OPTIONS.read(folder / "run/config.json")
    assert kept.data.root == "$BIRDS"
    assert subjects_of(kept) == subjects_of(wsol_config(folder / "config.yaml"))


def test_seeds_are_averaged_and_their_spread_is_told():
    base = LocalizationScores(9, "all", (0.3, 0.5, 0.7), (0.9, 0.6, 0.3), (0.1,) * 3, 0.6, 0.6, 0.1, 0.7, 0.5, 0.1, 0.5)
    better = replace(base, max_box_acc=(0.9, 0.8, 0.4), max_box_acc_v2=0.7, top1_loc=0.6)
    subjects = [Subject("CAM", seed, Path()) for seed in (0, 1)]
    found = [Measured(s, "cam", Path(), {"all": one}) for s, one in zip(subjects, (base, better), strict=True)]
    mean = mean_scores(found)["CAM", "cam"]
    assert mean.max_box_acc == pytest.approx((0.9, 0.7, 0.35))
    assert (mean.max_box_acc_v2, mean.top1_loc, mean.top1_cls) == pytest.approx((0.65, 0.55, 0.7))
    gain = Interval(0.02, 0.0, 0.04), Interval(0.06, 0.0, 0.1)
    lines = gain_lines({(s, "advcam"): {"max_box_acc_v2": g} for s, g in zip(subjects, gain, strict=True)})
    assert lines[-1] == "CAM, advcam - cam over 2 seeds: MaxBoxAccV2 +4.0, standard deviation 2.8"
    vii, ten = paper_tables(found, "cub", "resnet50")
    assert next(row for row in vii.rows if row[1] == "here, resnet50, 9 images, 2 seeds")[-1] == "65.0"
    assert ten.rows[1][:2] == ("no climbing", "here, resnet50, 9 images, 2 seeds, CAM")
    assert paper_tables(found, "cub", "inception_v3")[0].title.startswith("Table VIII")
    assert [table.title[:9] for table in paper_tables(found, "imagenet", "resnet50")] == ["Table VII"]
    assert paper_tables(found, "openimages", "resnet50") == []


def wsol_config(path: Path):
    return OPTIONS.read(path)


def test_methods_are_what_table_x_calls_them(folder):
    config = wsol_config(folder / "config.yaml")
    recipes = {method: wsol.map_settings(config, method).whole_recipe() for method in ("cam", "climb", "advcam")}
    assert recipes["cam"].steps == 0
    assert recipes["climb"].regularizers == ()
    assert type(recipes["climb"].objective).__name__ == "Target"
    assert recipes["climb"].with_(objective=recipes["advcam"].objective, regularizers=0.01).steps == 1
    assert recipes["advcam"].regularizers[0].weight == 0.01


def test_a_ready_net_scores_the_classes_that_it_knows(capsys, folder):
    code, out, _ = run(capsys, "run", config="ready.yaml")
    assert code == 0
    assert "names.txt has 1 of 2 classes: 1 images; 1 of the others are left out (001.Gull)" in out
    assert "CAM + AdvCAM" in out
    assert len(list((folder / "ready/cam/maps/advcam").rglob("maps/*.safetensors"))) == 1
    config = wsol_config(folder / "ready.yaml")
    (folder / "more.txt").write_text("Wren\nGull\nbackground\n")
    known, unknown = in_classes_of(read_cub(folder, "test"), ("Wren", "Gull", "background"))
    assert unknown == ()
    assert [sample.labels for sample in known.samples] == [(1,), (0,)]
    assert {**known.boxes} == {**read_cub(folder, "test").boxes}
    for scores in wsol.evaluate(config):
        assert scores.scores["all"].images == 1


def test_names_are_matched_as_people_read_them():
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


def test_what_cannot_be_used_is_one_line(capsys, folder, monkeypatch):
    assert refused(capsys, "maps").startswith("there is no classifier run/cam/seed1/classifier/classifier.safetensors")
    assert not Path("run").exists()
    assert refused(capsys, "classifier", config="ready.yaml").startswith("the net comes trained")
    assert refused(capsys, "evaluate", config="ready.yaml").startswith("no maps in ready/cam/maps/cam")
    assert refused(capsys, "run", "--data.kind", "metadata").startswith("data.kind metadata needs the folder")
    assert refused(capsys, "run", "--data.root", "nowhere").startswith("no CUB-200-2011 at nowhere")
    assert refused(capsys, "run", "--seeds", "[]").startswith("there is no net")
    assert refused(capsys, "run", "--maps.methods", "[]").startswith("maps.methods names no method")
    assert refused(capsys, "run", "--score.contours", "[largest]").startswith("score.contours must have all")
    assert "'epoch', which the classifier has not" in refused(capsys, "run", "--trainings", "{CAM: {epoch: 2}}")
    assert "did you mean" in refused(capsys, "maps", "--maps.recipe", "wsoll", config="ready.yaml")
    assert "did you mean" in refused(capsys, "maps", "--maps.overrides", "{stepz: 2}", config="ready.yaml")
    assert not Path("ready").exists(), "a typo is told before anything is made"
    (folder / "names.txt").write_text("Wren\n")
    assert (
        refused(capsys, "maps", config="ready.yaml")
        == "label file names.txt has 1 names, but ready_net:make has 3 classes"
    )
    (folder / "names.txt").write_text("a\nb\nc\n")
    assert refused(capsys, "maps", config="ready.yaml").startswith("none of the classes of cub test")
    (folder / "names.txt").unlink()
    assert refused(capsys, "maps", config="ready.yaml").startswith("cannot read label file names.txt")
    assert refused(capsys, "maps", "--net.model", "null", config="ready.yaml").startswith("net names no net")
    picture = next(folder.rglob("gull_a.jpg"))
    monkeypatch.delenv("BIRDS")
    assert refused(capsys, "run") == "$BIRDS: set the environment variable $BIRDS"
    monkeypatch.setenv("BIRDS", str(folder))
    picture.unlink()
    assert "1 of 2 images of CUB-200-2011 test are not there" in refused(capsys, "maps", config="ready.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--maps.recipe", "wsoll"], "unknown recipe 'wsoll'; did you mean"),
        (["--maps.overrides", "{stepz: 1}"], "did you mean"),
        (["--maps.base", "cem"], "unknown base 'cem'; did you mean"),
        (["--maps.size", "0"], "maps.size must be at least 1, got 0"),
        (["--maps.batch", "0"], "maps.batch must be at least 1, got 0"),
        (["--maps.workers", "-1"], "maps.workers must be at least 0, got -1"),
        (["--score.processes", "0"], "score.processes must be at least 1, got 0"),
        (["--data.score", "nope"], "nope"),
        (["--seeds", "[1, 1]"], "seeds has 1 twice"),
        (["--maps.methods", "[cam, cam]"], "maps.methods names cam twice"),
        (["--trainings", "{CAM: {}, Cam: {}}"], "trainings 'CAM' and 'Cam' would share the folder cam"),
        (["--trainings", "{A B: {}, a_b: {}}"], "trainings 'A B' and 'a_b' would share the folder a_b"),
    ],
)
def test_what_later_stages_refuse_is_told_before_any_training(options, message, capsys, folder):
    assert message in refused(capsys, "run", *options)
    assert not Path("run").exists()


@pytest.mark.parametrize("stage", ["run", "maps", "evaluate"])
@pytest.mark.parametrize("config", ["config.yaml", "ready.yaml"])
def test_masks_in_place_of_boxes_are_refused_before_anything_is_made(stage, config, capsys, folder):
    photograph(folder / "dataset/OpenImages/0.jpg")
    lists = {"image_ids": ["0.jpg"], "class_labels": ["0.jpg,0"]}
    write_lists(folder / "metadata/OpenImages/train", lists)
    truth = {"image_sizes": ["0.jpg,20,10"], "localization": ["0.jpg,m.png,"]}
    write_lists(folder / "metadata/OpenImages/test", {**lists, **truth})
    data = ["--data.kind", "metadata", "--data.metadata", "metadata/OpenImages", "--data.root", "dataset/OpenImages"]
    message = refused(capsys, stage, *data, config=config)
    assert message.startswith("openimages test has masks and no boxes, and MaxBoxAcc needs boxes: in Python, ")
    assert message.endswith("(PxAP) by advcam_attr.metrics.localization.PixelAP")
    assert not Path("run").exists()
    assert not Path("ready").exists()


def test_a_box_that_is_not_in_its_image_is_named(capsys, folder):
    file = next(folder.rglob("bounding_boxes.txt"))
    file.write_text(file.read_text().replace("5.0 2.0 30.0 30.0", "25.0 2.0 30.0 30.0"))
    assert "is not in the image of 20x10 pixels" in refused(capsys, "run", config="ready.yaml")


def test_a_picture_that_cannot_be_read_is_named_and_stops_the_evaluation(capsys, folder):
    (folder / "names.txt").write_text("Gull\nWren\nbackground\n")
    picture = next(folder.rglob("wren_b.jpg"))
    picture.write_bytes(picture.read_bytes()[:-30])
    message = refused(capsys, "run", config="ready.yaml")
    assert message.startswith("3 maps could not be made: wren_b: ")
    assert not Path("ready/report.json").exists()


@pytest.mark.parametrize("name", ["cub", "cub_inception", "imagenet", "cub_small", "cub_small_trained"])
def test_configurations_are_what_they_say(name, monkeypatch):
    monkeypatch.setenv("ADVCAM_DATA", "data")
    config = wsol_config(CONFIGS / f"{name}.yaml")
    for method in config.maps.methods:
        wsol.map_settings(config, method).whole_recipe()
    if name in ("cub", "cub_inception", "imagenet"):
        from advcam_attr.pipelines.wsol.config import SETTINGS

        net = "inception_v3" if "inception" in name else "resnet50"
        for training in ("CAM", "CutMix"):
            same = SETTINGS[f"{name.split('_')[0]}_{net}_{training.lower()}"]
            assert config.training(training, 0) == same


@pytest.mark.slow
def test_real_birds_of_six_species(tmp_path, data_root, monkeypatch, capsys):
    monkeypatch.setenv("ADVCAM_DATA", str(data_root))
    out = ["--run", str(tmp_path / "run"), "--data.per_class", "1", "--maps.methods", "[cam, advcam]"]
    out += ["--maps.overrides", "{steps: 2}"]
    assert cli.main(["wsol", "run", "--config", str(CONFIGS / "cub_small.yaml"), *out]) == 0
    told = capsys.readouterr().out
    assert "has 6 of 10 classes: 6 images; 4 of the others are left out" in told
    found = json.loads((tmp_path / "run/report.json").read_text())["maps"]
    cam, adv = (one["scores"]["all"] for one in found)
    assert cam["images"] == 6
    assert cam["top1_cls"] == adv["top1_cls"] > 0.4
    assert adv["max_box_acc"][0] > 0.7
