"""The stages of weakly supervised segmentation, from a configuration file to the tables, by the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.cli import main as cli
from advcam_attr.cli import semi
from advcam_attr.cli.wsss import OPTIONS
from advcam_attr.pipelines.config import config_of
from advcam_attr.pipelines.semi.config import SemiNetConfig, SemiSettings
from advcam_attr.pipelines.wsss.segment import SETTINGS
from advcam_attr.runs.npy_maps import write_dictionary
from places import ROOT
from tiny_voc import write_voc

CONFIGS = ROOT / "configs"

CONFIG = """
run: run
data: {root: $PICTURES, train: train, val: val, score: train}
net: {backbone: {name: timm/test_resnet, random_weights: true, mean: [0.5], std: [0.25]}}
classifier: {epochs: 1, batch: 2, crop: 64, long_side: [64, 64], optimizer: {lr: 0.01, head_lr: 0.1}}
seeds: {recipe: auto, overrides: {steps: 1}, scales: [1.0, 0.5]}
runtime: {workers: 0}
"""


#: Classes of VOC, and those that each training image shows.
CAT, DOG = 7, 11
SHOWN = {"a": [DOG], "b": [CAT, DOG], "c": [CAT]}


#: IRN in the smallest: one backbone without weights, one step.
MASKS = [
    "--seeds.methods", "[advcam]", "--refine.irn.backbone.name", "timm/resnet18",
    "--refine.irn.backbone.random_weights", "true", "--refine.irn.batch", "2", "--refine.irn.epochs", "1",
    "--refine.irn.crop", "64", "--refine.irn.radius", "3", "--refine.irn.pad_to", "64",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a tiny VOC, named by a variable, and a configuration."""
    monkeypatch.chdir(tmp_path)
    train = {"a": ["dog"], "b": ["cat", "dog"], "c": ["cat"]}
    write_voc(tmp_path / "VOC2012", {"train": train, "val": {"d": ["dog"], "e": ["cat"]}}, size=(48, 64))
    monkeypatch.setenv("PICTURES", str(tmp_path / "VOC2012"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(["wsss", argv[0], "--config", "config.yaml", *argv[1:]])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv: str) -> str:
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("advcam: error: ").rstrip()


def test_from_pictures_to_tables(capsys, folder):
    code, out, _ = run(capsys, "classifier")
    assert code == 0
    assert "training on 3 images of voc train, validating on 2 images of voc val" in out
    assert "validation mAP" in out
    code, out, _ = run(capsys, "seeds")
    assert code == 0
    assert "making cam seeds in run/seeds/cam" in out
    assert "3 written, 0 kept, 0 failed" in out
    (folder / "run/run.log").unlink()
    code, out, _ = run(capsys, "evaluate")
    assert code == 0
    assert "scoring run/seeds/advcam" in (folder / "run/run.log").read_text()
    lines = out.splitlines()
    assert any(line.startswith("AdvCAM") and "55.6" in line for line in lines), "the paper's row"
    assert any(line.startswith("AdvCAM") and "here, 3 images" in line for line in lines)
    assert "AdvCAM - CAM: " in out
    report = json.loads((folder / "run/seeds/advcam/evaluation.json").read_text())
    assert report["threshold_chosen"] == "the best on these masks"
    assert "Table I" in (folder / "run/tables.md").read_text()

    assert "nothing to train" in run(capsys, "classifier")[1]
    assert "0 written, 3 kept" in run(capsys, "seeds")[1]
    assert cli.main(["evaluate", "seeds", "run"]) == 0
    assert "Table I" in capsys.readouterr().out
    shutil.copytree("run", "copy")
    Path("copy/report.json").unlink()
    stamp = Path("run/report.json").stat().st_mtime_ns
    assert cli.main(["evaluate", "seeds", "copy"]) == 0
    assert "scoring copy/seeds/cam" in capsys.readouterr().out
    assert Path("copy/report.json").is_file()
    assert Path("run/report.json").stat().st_mtime_ns == stamp, "the folder that config.json names is left alone"
    before = report["scores"]["mean_iou"]
    assert cli.main(["wsss", "export", "run/seeds/advcam", "--to", "irn"]) == 0
    assert sorted(file.name for file in Path("irn").iterdir()) == ["a.npy", "b.npy", "c.npy"]
    assert cli.main(["wsss", "import", "irn", "--to", "theirs/seeds/advcam"]) == 0
    assert run(capsys, "evaluate", "--run", "theirs", "--seeds.methods", "[advcam]")[0] == 0
    theirs = json.loads((folder / "theirs/seeds/advcam/evaluation.json").read_text())
    assert theirs["scores"]["mean_iou"] == pytest.approx(before, abs=1e-6)
    assert OPTIONS.read(config_of(Path("run"))).data.root == "$PICTURES"


def test_seeds_become_masks(capsys, folder):
    """Three steps of training say nothing of quality: that every step is made, scored and not made again."""
    assert run(capsys, "classifier")[0] == 0
    assert "no seeds in run/seeds/advcam" in refused(capsys, "refine", *MASKS)
    assert run(capsys, "seeds", "--seeds.methods", "[advcam]")[0] == 0
    code, out, _ = run(capsys, "refine", "--crf", *MASKS)
    assert code == 0
    assert "refining advcam seeds by irn in run/refined/advcam" in out
    for step in ("seeds_crf", "masks"):
        made = sorted((folder / "run/refined/advcam" / step).glob("*.png"))
        assert [file.stem for file in made] == ["a", "b", "c"]
        with Image.open(made[0]) as mask:
            assert (mask.mode, mask.size) == ("P", (64, 48))
    assert "refine.crf was ['seeds'], is []" in refused(capsys, "evaluate", *MASKS)
    assert cli.main(["evaluate", "seeds", "run"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("AdvCAM") and "here" in line)
    assert len(row.split("images")[1].split()) == 3
    assert "–" not in row
    assert run(capsys, "instances", *MASKS)[0] == 0
    assert len(list((folder / "run/refined/advcam/instances").glob("*.png"))) == 3
    stamps = {file: file.stat().st_mtime_ns for file in (folder / "run/refined").rglob("*.png")}
    kept = Path("run/config.json").read_bytes()
    message = refused(capsys, "refine", *MASKS, "--refine.irn.foreground", "0.6")
    assert "foreground was 0.35, is 0.6" in message
    assert Path("run/config.json").read_bytes() == kept, "a refused stage leaves the configuration of the others"
    assert run(capsys, "refine", "--crf", *MASKS)[0] == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in (folder / "run/refined").rglob("*.png")}


def test_masks_by_psa_have_a_row_of_their_own(capsys, folder):
    Path("theirs").mkdir()
    masks = Path("run/refined/advcam/masks")
    masks.mkdir(parents=True)
    for id, labels in SHOWN.items():
        write_dictionary(Path(f"theirs/{id}.npy"), dict.fromkeys(labels, np.ones((48, 64), np.float32)))
        shutil.copy(f"VOC2012/SegmentationClass/{id}.png", masks)
    assert cli.main(["wsss", "import", "theirs", "--to", "run/seeds/advcam"]) == 0
    rows = {}
    for method in ("irn", "psa"):
        assert run(capsys, "evaluate", "--seeds.methods", "[advcam]", "--refine.method", method)[0] == 0
        (table,) = (t for t in json.loads(Path("run/report.json").read_text())["tables"] if "Table I:" in t["title"])
        rows[method] = {name: numbers for name, source, *numbers in table["rows"] if source.startswith("here")}
    seed = rows["irn"]["AdvCAM"][0]
    assert rows["irn"] == {"AdvCAM": [seed, None, 100.0]}
    assert rows["psa"] == {"AdvCAM": [seed, None, None], "AdvCAM, masks by PSA": [None, None, 100.0]}


def test_other_maps_under_the_same_path_are_rejected(capsys, folder):
    """Imported seeds, and saliency maps: their content counts, not where they lie."""
    maps, size = np.zeros((48, 64), np.float32), (64, 48)
    maps[10:30, 20:50] = 1
    for folder_name in ("theirs", "sal"):
        Path(folder_name).mkdir()
    for id, shown in SHOWN.items():
        write_dictionary(Path(f"theirs/{id}.npy"), dict.fromkeys(shown, maps))
        Image.new("L", size, 255).save(f"sal/{id}.png")
    bring = ["wsss", "import", "theirs", "--to", "run/seeds/advcam"]
    refine = ["refine", "--crf", "--saliency", "sal", *MASKS]
    assert cli.main(bring) == 0
    assert run(capsys, *refine)[0] == 0
    assert cli.main(bring) == 0, "the same again"
    stamps = {file: file.stat().st_mtime_ns for file in Path("run/refined").rglob("*.png")}
    assert run(capsys, *refine)[0] == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}

    Image.new("L", size, 9).save("sal/b.png")
    assert "masks_saliency.json was made with other settings (maps was " in refused(capsys, *refine)
    Image.new("L", size, 255).save("sal/b.png")
    Image.new("L", size, 9).save("sal/elsewhere.png")
    assert run(capsys, *refine)[0] == 0, "maps of other images do not count"
    write_dictionary(Path("theirs/b.npy"), {CAT: maps, DOG: maps.T.reshape(48, 64)})
    assert cli.main(bring) == 0
    assert "seeds_crf.json was made with other settings (seeds was " in refused(capsys, *refine)
    assert cli.main([*bring[:2], "irn", *bring[3:]]) == 2
    assert "no .npy files in irn" in capsys.readouterr().err
    Path("irn").mkdir()
    write_dictionary(Path("irn/b.npy"), {0: maps})
    assert cli.main([*bring[:2], "irn", *bring[3:]]) == 2
    assert "seeds.json was made with other settings (imported was " in capsys.readouterr().err


def test_what_cannot_be_used_is_one_line(capsys, folder, monkeypatch):
    assert refused(capsys, "seeds").startswith("there is no classifier run/classifier/classifier.safetensors: train it")
    assert not Path("run").exists()
    assert refused(capsys, "evaluate").startswith("no seeds in run/seeds/cam")
    assert refused(capsys, "seeds", "--net.generator", "seam").startswith("net.generator 'seam' needs its authors'")
    assert "is trained already" in refused(capsys, "classifier", "--net.generator", "seam")
    assert refused(capsys, "classifier", "--data.root", "nowhere").startswith("no PASCAL VOC 2012 at nowhere")
    assert "'trian'" in refused(capsys, "classifier", "--data.train", "trian")
    assert refused(capsys, "classifier", "--classifier.batch", "9").startswith("voc train: 3 images, fewer than")
    assert "score.thresholds" in refused(capsys, "evaluate", "--score.thresholds", "v")
    assert refused(capsys, "seeds", "--seeds.methods", "[]").startswith("seeds.methods is empty")
    assert "runtime.seed" in refused(capsys, "classifier", "--runtime.seed", "-1")
    (folder / "config.yaml").write_text(CONFIG.replace("head_lr", "classifier_lr"))
    assert "classifier.optimizer.classifier_lr" in refused(capsys, "classifier")
    (folder / "config.yaml").write_text(CONFIG.replace("optimizer: {lr: 0.01, head_lr: 0.1}", "classifier_lr: 0.1"))
    assert refused(capsys, "classifier") == "config.yaml: classifier.classifier_lr is now classifier.optimizer.head_lr"
    (folder / "config.yaml").write_text(CONFIG.replace("optimizer: {lr: 0.01, head_lr: 0.1}", "optimizer: 0.1"))
    assert refused(capsys, "classifier") == "config.yaml: classifier.optimizer is a section of keys and values, got 0.1"
    for option, value in (("seeds.recipe", "offical"), ("seeds.base", "gradcam"), ("refine.method", "xx")):
        (folder / "config.yaml").write_text(CONFIG)
        assert value in refused(capsys, "run", f"--{option}", value)
        assert value in refused(capsys, "run", "--dry-run", f"--{option}", value)
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not a YAML file" in refused(capsys, "seeds")
    (folder / "config.yaml").write_text(CONFIG)
    for damaged in ("{", "[1]"):
        (folder / "old").mkdir(exist_ok=True)
        (folder / "old/config.json").write_text(damaged)
        assert cli.main(["evaluate", "seeds", "old"]) == 2
        assert "old/config.json is damaged" in capsys.readouterr().err
    monkeypatch.delenv("PICTURES")
    assert refused(capsys, "classifier") == "$PICTURES: set the environment variable $PICTURES"
    assert not Path("run/seeds").exists()


def test_other_settings_are_reported(capsys, folder):
    assert run(capsys, "classifier")[0] == 0
    assert "epochs was 1, is 2" in refused(capsys, "classifier", "--classifier.epochs", "2")
    assert OPTIONS.read(config_of(Path("run"))).classifier.epochs == 1
    assert run(capsys, "seeds", "--seeds.methods", "[advcam]")[0] == 0
    for typo in (["--seeds.recipe", "atuo"], ["--seeds.overrides", "{stepz: 2}"], ["--seeds.base", "cem"]):
        assert "did you mean" in refused(capsys, "seeds", *typo)
    assert not Path("run/seeds/cam").exists(), "a typo is an error before anything is made"
    message = refused(capsys, "seeds", "--seeds.methods", "[advcam]", "--seeds.overrides", "{steps: 2}")
    assert "recipe.steps was 1, is 2" in message
    assert OPTIONS.read(config_of(Path("run"))).seeds.overrides == {"steps": 1}
    assert run(capsys, "seeds", "--seeds.methods", "[advcam]", "--seeds.scales", "[1.0]", "--overwrite")[0] == 0


def test_pictures_that_are_gone_or_broken_are_counted(capsys, folder):
    assert run(capsys, "classifier")[0] == 0
    (folder / "VOC2012/JPEGImages/a.jpg").unlink()
    whole = (folder / "VOC2012/JPEGImages/b.jpg").read_bytes()
    (folder / "VOC2012/JPEGImages/b.jpg").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(capsys, "seeds", "--seeds.methods", "[cam]")
    assert code == 2
    assert "1 images of train are missing and left out, e.g. " in out
    assert "1 written, 0 kept, 1 failed" in out
    assert err.startswith("advcam: error: 1 maps could not be made: b: ")
    assert "b.jpg" in err
    assert "maps of 2 of 3 images are missing" in refused(capsys, "evaluate", "--seeds.methods", "[cam]")
    assert run(capsys, "evaluate", "--seeds.methods", "[cam]", "--score.allow_missing", "true")[0] == 0


def test_saliency_reaches_the_climb_alone(capsys, folder):
    assert run(capsys, "classifier")[0] == 0
    (folder / "sal").mkdir()
    for id in "abc":
        Image.new("L", (64, 48), 255 if id == "a" else 0).save(folder / f"sal/{id}.png")
    argv = ["--seeds.saliency", "sal", "--seeds.overrides", "{steps: 3, stop: null}"]
    assert run(capsys, "seeds", *argv)[0] == 0
    settings = json.loads((folder / "run/seeds/advcam/seeds.json").read_text())["settings"]
    assert settings["saliency"] is not None
    assert json.loads((folder / "run/seeds/cam/seeds.json").read_text())["settings"]["saliency"] is None


@pytest.mark.parametrize("name", ["voc", "coco", "voc_small", "voc_animals"])
def test_shipped_configurations(name):
    config = OPTIONS.read(CONFIGS / f"{name}.yaml")
    assert config.seeds.methods == ("cam", "advcam")
    if name in SETTINGS:
        assert config.segmentation == SETTINGS[name]


@pytest.mark.parametrize("name", ["semi_voc", "semi_small"])
def test_shipped_configurations_of_cct(name):
    config = semi.OPTIONS.read(CONFIGS / f"{name}.yaml")
    assert config.data.pseudo is not None
    if name == "semi_voc":
        assert config.training == SemiSettings()
        default = SemiNetConfig()
        backbone = replace(default.backbone, checkpoint=config.net.backbone.checkpoint)
        assert config.net == replace(default, backbone=backbone)
