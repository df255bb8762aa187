"""Whole runs by the command line, from images to ``report.json``: planned, interrupted, and repeated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from advcam_attr.cli import main as cli
from advcam_attr.data import voc
from tiny_voc import write_voc

TINY = "name: timm/test_resnet, random_weights: true, mean: [0.5], std: [0.25]"
WSSS = f"""
run: run
data: {{root: $PICTURES, train: train, val: val, score: train}}
net: {{backbone: {{{TINY}}}}}
classifier: {{epochs: 1, batch: 2, crop: 64, long_side: [64, 64], optimizer: {{head_lr: 0.1}}}}
seeds: {{recipe: auto, overrides: {{steps: 1}}, scales: [1.0]}}
refine:
  irn:
    backbone: {{name: timm/resnet18, random_weights: true}}
    batch: 2
    epochs: 1
    crop: 64
    radius: 3
    pad_to: 64
segmentation:
  {{backbone: {{{TINY}}}, rates: [1, 2], msc: [], steps: 4, batch: 2, crop: 32, checkpoint_every: 2}}
runtime: {{workers: 0}}
"""
SEMI = f"""
run: semi
data: {{root: $PICTURES, labelled: train, labelled_count: 1, unlabelled: train, pseudo: masks, val: val}}
net: {{backbone: {{{TINY}}}, channels: 8, auxiliary: {{dropout: 1, feature_noise: 1}}}}
training: {{epochs: 2, batch: 2, crop: 32, long_side: [30, 60], validate_every: 1, checkpoint_every: 1}}
predict: {{scales: [1.0], flip: false}}
runtime: {{workers: 0}}
"""
#: What the wall clock has a part in, and checkpoints, whose archives hold names of temporary files.
TIMED = ("run.log", "checkpoint.pt")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    train = {"a": ["dog"], "b": ["cat", "dog"], "c": ["cat"]}
    root = tmp_path_factory.mktemp("pictures") / "VOC2012"
    return write_voc(root, {"train": train, "val": {"d": ["dog"], "e": ["cat"]}}, size=(48, 64))


#: The splits that the run of `whole` has read.
SPLITS_READ: list[str] = []


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted."""
    real = voc.read_voc

    def counted(root, split, **options):
        SPLITS_READ.append(split)
        return real(root, split, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voc, "read_voc", counted)
        enter(tmp_path_factory.mktemp("whole"), pictures, patch)
        assert cli.main(["wsss", "run", "--config", "wsss.yaml"]) == 0
        return Path("run").resolve()


def enter(folder: Path, pictures: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PICTURES", str(pictures))
    (folder / "wsss.yaml").write_text(WSSS)
    (folder / "semi.yaml").write_text(SEMI)


@pytest.fixture
def folder(tmp_path, pictures, monkeypatch) -> Path:
    enter(tmp_path, pictures, monkeypatch)
    return tmp_path


def advcam(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main([*argv[:2], "--config", f"{argv[0]}.yaml", *argv[2:]])
    return code, *capsys.readouterr()


def refused(capsys, *argv: str) -> str:
    code, _, err = advcam(capsys, *argv)
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("advcam: error: ").rstrip()


def contents(run: Path) -> dict[str, bytes]:
    files = (file for file in run.rglob("*") if file.is_file() and file.name not in TIMED)
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def interrupted(monkeypatch, after: int) -> None:
    """Let Ctrl-C come when a file is written for the so-maniest time, in the middle of that."""
    real, left = os.replace, [after]

    def replace(*args):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr("advcam_attr.files.os.replace", replace)


def test_a_run_reads_each_split_once(whole):
    assert sorted(SPLITS_READ) == ["train", "val"]


def test_a_run_ends_with_the_papers_tables(whole):
    report = json.loads((whole / "report.json").read_text())
    tables = {table["title"].split(":")[0]: table for table in report["tables"]}
    assert list(tables) == ["Table I", "Table IX", "Table XI", "Table III"]
    rows = [row[:2] for row in tables["Table III"]["rows"]]
    assert rows == [["IRN", "paper"], ["AdvCAM", "paper"], ["AdvCAM", "here, 2 images"], ["AdvCAM-Sal", "paper"],
                    ["CAM", "here, 2 images"]]  # fmt: skip
    assert tables["Table III"]["rows"][1][2:] == [68.1, 68.0]
    for method in ("cam", "advcam"):
        nets = report["segmentation"][method]
        assert set(nets) == {"val", "val_crf"}
        evaluation = whole / f"segmentation/{method}/predictions/val_crf/evaluation.json"
        assert nets["val_crf"]["mean_iou"] == json.loads(evaluation.read_text())["scores"]["mean_iou"]
        assert 0 <= report["refined_mean_iou"][method]["masks"] <= 1
    ours = tables["Table III"]["rows"][2]
    assert ours[2:] == [pytest.approx(100 * report["segmentation"]["advcam"]["val_crf"]["mean_iou"], abs=0.051), None]
    assert "Table III" in (whole / "tables.md").read_text()


def test_what_is_done_is_not_done_again(whole, capsys, monkeypatch, pictures):
    monkeypatch.chdir(whole.parent)
    monkeypatch.setenv("PICTURES", str(pictures))
    code, plan, _ = advcam(capsys, "wsss", "run", "--dry-run")
    assert code == 0
    assert [line.endswith("done") for line in plan.splitlines()] == [True] * (1 + 2 + 2 + 2 * 3)
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.*") if file.suffix in (".png", ".safetensors")}
    before = {file: time for file, time in before.items() if file.name != "evaluation.safetensors"}
    bytes_before = contents(whole)
    assert advcam(capsys, "wsss", "run")[0] == 0
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert bytes_before == contents(whole)


def test_a_run_that_is_interrupted_ends_with_the_same_files(whole, capsys, folder, monkeypatch):
    random, codes = Random(3), []
    while not codes or codes[-1]:
        with monkeypatch.context() as patch:
            interrupted(patch, random.randint(18, 26))
            codes.append(advcam(capsys, "wsss", "run")[0])
        assert len(codes) < 12
        plan = advcam(capsys, "wsss", "run", "--dry-run")[1]
    assert codes == [130] * (len(codes) - 1) + [0]
    assert len(codes) > 2
    assert all(line.endswith("done") for line in plan.splitlines())
    assert contents(folder / "run") == contents(whole)


def test_a_plan_writes_nothing(capsys, folder):
    code, plan, _ = advcam(capsys, "wsss", "run", "--dry-run", "--seeds.methods", "[advcam]")
    assert code == 0
    assert [line.rsplit(": ", 1)[0] for line in plan.splitlines()] == [
        "classifier", "seeds advcam", "refine advcam", "segment advcam: training", "segment advcam: val",
        "segment advcam: val_crf",
    ]  # fmt: skip
    assert all(line.endswith("to do") for line in plan.splitlines())
    assert not Path("run").exists()
    (folder / "run/seeds/advcam/maps").mkdir(parents=True)
    (folder / "run/seeds/advcam/maps/a.safetensors").touch()
    plan = advcam(capsys, "wsss", "run", "--dry-run")[1]
    line = next(line for line in plan.splitlines() if line.startswith("seeds advcam"))
    assert line == "seeds advcam: 1 of 3 images, started"


def test_what_a_run_cannot_use_is_one_line(capsys, folder, whole):
    assert refused(capsys, "wsss", "segment").startswith("no pseudo ground truth in run/refined/cam/masks: make it")
    assert refused(capsys, "wsss", "run", "--data.val", "null").startswith(
        "segmentation nets have no images to predict"
    )
    assert "segmentation.steps" in refused(capsys, "wsss", "run", "--segmentation.steps", "0")
    assert "balanced" in refused(capsys, "wsss", "run", "--segmentation.loss", "balansed")
    assert refused(capsys, "wsss", "run", "--data.root", "nowhere").startswith("no PASCAL VOC 2012 at nowhere")
    assert not Path("run").exists()
    masks = folder / "run/refined/advcam/masks"
    masks.mkdir(parents=True)
    only = ["--seeds.methods", "[advcam]"]
    assert refused(capsys, "wsss", "segment", *only).startswith("masks of 3 of 3 images are missing in run/refined")
    for file in (whole / "refined/advcam/masks").glob("*.png"):
        (masks / file.name).write_bytes(file.read_bytes())
    (masks / "b.png").write_bytes((masks / "b.png").read_bytes()[:40])
    assert "masks/b.png" in refused(capsys, "wsss", "segment", *only)
    assert not Path("run/segmentation/advcam/deeplab/log.jsonl").exists()


def test_masks_of_another_refinement_are_rejected(capsys, folder, whole):
    """Options that ``refine`` alone had on the command line."""
    shutil.copytree(whole, "run")
    (folder / "sal").mkdir()
    for id in "abc":
        Image.new("L", (64, 48), 255).save(f"sal/{id}.png")
    assert advcam(capsys, "wsss", "refine", "--saliency", "sal")[0] == 0
    given = ["--refine.saliency", "sal"]
    for stage in ("segment", "evaluate", "run"):
        message = refused(capsys, "wsss", stage)
        assert message.startswith("run/refined/cam/masks_saliency exists, but the settings end with masks: give --ref")
        assert f"--refine.saliency {folder / 'sal'}" in message
        psa = ["--refine.method", "psa", "--refine.psa.backbone.random_weights", "true", "--refine.psa.batch", "1"]
        message = refused(capsys, "wsss", stage, *given, *psa)
        assert message.startswith("run/refined/cam/masks is by irn, but refine.method is psa: give --refine.method irn")
    assert advcam(capsys, "wsss", "evaluate", *given)[0] == 0
    for method in ("cam", "advcam"):
        shutil.rmtree(f"run/refined/{method}/masks_saliency")
    assert advcam(capsys, "wsss", "run")[0] == 0
    (folder / "run/refined/cam/masks_crf").mkdir()
    assert "give --refine.crf '[masks]'" in refused(capsys, "wsss", "segment")


def test_generators_need_no_classifier(capsys, folder):
    argv = [
        "--net.generator",
        "seam",
        "--net.backbone.checkpoint",
        "none.pth",
        "--net.backbone.random_weights",
        "false",
    ]
    assert "none.pth" in refused(capsys, "wsss", "run", "--dry-run", *argv)
    assert "none.pth" in refused(capsys, "wsss", "run", *argv)
    assert not Path("run/classifier").exists()


def test_a_semi_supervised_run(capsys, folder, whole, monkeypatch):
    assert refused(capsys, "semi", "evaluate").startswith("there is no net semi/cct/cct.safetensors: train it first")
    assert refused(capsys, "semi", "run").startswith("pseudo masks of 2 of 2 unlabelled images are missing in masks")
    (folder / "masks").symlink_to(whole / "refined/advcam/masks")
    plan = advcam(capsys, "semi", "run", "--dry-run")[1]
    assert "0 of 2 steps" in plan
    assert not Path("semi").exists()
    with monkeypatch.context() as patch:
        interrupted(patch, 4)
        assert advcam(capsys, "semi", "run")[0] == 130
    assert advcam(capsys, "semi", "run")[0] == 0
    report = json.loads((folder / "semi/report.json").read_text())
    (table,) = report["tables"]
    assert [row[:3] for row in table["rows"]][:2] == [
        ["CCT", "paper", 73.2],
        ["CCT with AdvCAM's masks", "paper", 77.8],
    ]
    assert table["rows"][2] == ["CCT with AdvCAM's masks", "here, 2 images",
                                pytest.approx(100 * report["predictions"]["mean_iou"], abs=0.051), None]  # fmt: skip
    assert [one["epoch"] for one in report["validation"]] == [1, 2]
    resumed = contents(folder / "semi")
    assert advcam(capsys, "semi", "run", "--run", "again")[0] == 0
    again = contents(folder / "again")
    assert {name: resumed[name] == again[name] for name in again if name != "config.json"} == dict.fromkeys(
        (name for name in again if name != "config.json"), True
    )
    plan = advcam(capsys, "semi", "run", "--dry-run")[1]
    assert [line.endswith("done") for line in plan.splitlines()] == [True, True]
    kept = (folder / "semi/config.json").read_bytes()
    assert "epochs was 2, is 3" in refused(capsys, "semi", "train", "--training.epochs", "3")
    assert (folder / "semi/config.json").read_bytes() == kept


def test_archives_for_the_test_server(capsys, folder, whole):
    predictions = str(whole / "segmentation/advcam/predictions/val")
    assert cli.main(["wsss", "submission", predictions, "--to", "results.tgz"]) == 0
    assert "2 label maps in results/VOC2012/Segmentation/comp6_test_cls" in capsys.readouterr().out
    (folder / "test.txt").write_text("d\ne\n")
    check = ["evaluate", "submission", "results.tgz"]
    assert cli.main([*check, "--list", "test.txt", "--images", os.environ["PICTURES"] + "/JPEGImages"]) == 0
    assert "is a valid submission" in capsys.readouterr().out
    assert cli.main(check) == 2
    assert "it has 2 label maps" in capsys.readouterr().err
    (folder / "test.txt").write_text("d\ne\nf\n")
    assert cli.main([*check, "--list", "test.txt"]) == 2
    assert "1 of 3 images are missing, e.g. f" in capsys.readouterr().err
    for argv, message in (
        (["evaluate", "submission", "nothing.tgz"], "no such archive: nothing.tgz"),
        ([*check, "--images", "nowhere"], "no such folder of images: nowhere"),
        (["wsss", "submission", "nowhere", "--to", "x.tgz"], "no label maps (ID.png) in nowhere"),
        (["wsss", "submission", predictions, "--to", "x.tgz", "--list", "test.txt"], "predictions of 1 of 3 images"),
    ):
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err
    assert not Path("x.tgz").exists()
