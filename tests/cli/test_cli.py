"""The command line: results of its commands; errors of one line, with exit code 2 and nothing written."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from advcam_attr.cli import main as cli
from advcam_attr.data.toy import make_scenes
from advcam_attr.pipelines.demo import small_net
from advcam_attr.runs import progress_bar
from tiny_voc import write_voc

NET = ["--model", "advcam_attr.pipelines.demo:small_net", "--input-size", "48"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with two images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for n, image in enumerate(make_scenes(2, size=64).images):
        scene = Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy())
        scene.save(tmp_path / "images" / f"scene{n}.png")
    return tmp_path


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def error_of(capsys, *argv: object) -> str:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("advcam: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert not Path("advcam_out").exists()
    return err.removeprefix("advcam: error: ").rstrip()


def test_version_of_the_module_and_the_command(capsys):
    assert run(capsys, "--version")[1].startswith("advcam ")
    argv = [sys.executable, "-m", "advcam_attr", "--version"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.startswith("advcam ")


@pytest.mark.parametrize(
    ("argv", "codes"), [("analyze --list", [141]), ("attribute --help", [0, 141]), ("--version", [0, 141])]
)
def test_a_reader_that_has_enough_is_no_error(argv, codes):
    """As ``advcam analyze --list | head -1`` ends; where nothing is buffered, argparse itself swallows the error."""
    here, there = os.pipe()
    os.close(here)
    done = subprocess.run(
        [sys.executable, "-m", "advcam_attr", *argv.split()], stdout=there, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    os.close(there)
    assert done.stderr == ""
    assert done.returncode in codes


def test_a_broken_pipe_of_our_own_keeps_its_traceback(monkeypatch):
    def run(options):
        raise BrokenPipeError

    monkeypatch.setitem(cli.COMMANDS, "demo", replace(cli.COMMANDS["demo"], run=run))
    with pytest.raises(BrokenPipeError):
        cli.main(["demo"])


def test_attribute_files_and_folders(capsys, folder):
    argv = ["attribute", "images", *NET, "--steps", 1, "--target", "top1", "--target", 3, "--out", "results"]
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert "scene0.png: class " in out
    assert out.endswith("done: 2; cached: 0; failed: 0; results in results\n")
    record = json.loads((folder / "results" / "scene1.json").read_text())
    assert record["targets"][-1]["index"] == 3
    assert len(record["targets"][-1]["scores"][0]["logit"]) == 2
    code, out, _ = run(capsys, *argv)
    assert (code, out) == (0, "done: 0; cached: 2; failed: 0; results in results\n")


def test_all_options_arrive(capsys, folder):
    (folder / "names.txt").write_text("striped\nchecked\ndotted\nringed\n")
    weights = small_net().state_dict()
    save_file(weights, folder / "net.safetensors")
    (folder / "maps").mkdir()
    Image.new("L", (64, 64), 255).save(folder / "maps" / "scene0.png")
    code, _, err = run(
        capsys, "attribute", "images/scene0.png", *NET, "--model-args", '{"num_classes": 4}', "--checkpoint",
        "net.safetensors", "--labels", "names.txt", "--mean", 0.5, "--std", 0.25, 0.25, 0.25, "--target", "ringed",
        "--base", "grad_cam", "--recipe", "paper", "--steps", 2, "--flip", "--scales", 0.5, 1, "--set", "mask=0.3",
        "--set", "objective=minus_mean", "--set", "autocast=false", "--layer", "11", "--saliency", "maps",
        "--probability", "sigmoid", "--device", "cpu", "--batch-size", 3, "--out", "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads((folder / "out" / "scene0.json").read_text())
    config = record["config"]
    assert record["targets"][0]["name"] == "ringed"
    assert [scores["scale"] for scores in record["targets"][0]["scores"]] == [0.5, 1.0]
    assert config["model.std"] == [0.25, 0.25, 0.25]
    assert config["recipe.name"] == "paper"
    assert config["recipe.flip"] == "pair"
    assert config["recipe.mask"] == "ThresholdMask(threshold=0.3)"
    assert (config["base"], config["layer"], config["probability"]) == ("grad_cam", "11", "sigmoid")
    assert (folder / "out" / "scene0.ringed.png").is_file()


def test_inspect(capsys):
    code, out, err = run(capsys, "inspect", "timm/test_resnet", "torchvision/squeezenet1_1", "timm/test_vit", NET[1])
    assert (code, err) == (0, "")
    first, second, third, fourth = out.replace("\ntimm/test_vit", "\n\0").replace("\ntorch", "\n\0").replace(
        "\nadvcam", "\n\0"
    ).split("\0")  # fmt: skip
    assert "exact:" in first
    assert "class maps -> NCHW mean" in second
    assert "there is none" in third
    assert "grad_cam" in third
    assert "pixels only" in third
    assert "stride 8 x 8" in fourth


def test_inspect_goes_on_after_a_model_that_cannot_be_had(capsys):
    code, out, err = run(capsys, "inspect", "timm/test_resnett", "timm/test_resnet")
    assert code == 2
    assert "exact:" in out
    assert err.startswith("advcam: error: unknown model 'timm/test_resnett'; did you mean 'test_resnet'")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["command", "attribute, inspect, demo"]),
        (["atribute"], ["unknown command 'atribute'", "'attribute'"]),
        (["frobnicate"], ["unknown command 'frobnicate'", "attribute"]),
        (["wsss"], ["command", "classifier, seeds"]),
        (["wsss", "sed"], ["unknown wsss command 'sed'", "'seeds'"]),
        (["--verison"], ["--verison", "'--version'"]),
        (["attribute", "x.png"], ["needs --model"]),
        (["attribute", "--model", "timm/x"], ["needs IMAGE"]),
        (["attribute", "x.png", *NET, "--step", "3"], ["--step;", "'--steps'"]),
        (["attribute", "x.png", *NET, "--steps", "q"], ["steps", "int", "q"]),
        (["attribute", "x.png", *NET, "--steps"], ["--steps"]),
        (["attribute", "x.png", *NET, "--model-args", "{a"], ["--model-args", "keys and values", "{a"]),
        (["attribute", "x.png", *NET, "--probability", "tanh"], ["--probability", "'tanh'", "softmax, sigmoid"]),
        (["report", "run", "other"], ["other"]),
        (["attribute", "images", "--model", "timm/resnett50"], ["'timm/resnett50'", "'resnet50'"]),
        (["inspect", "resnet50"], ["'resnet50'", "timm/NAME"]),
    ],
)
def test_lines_that_do_not_parse(capsys, folder, argv, words):
    message = error_of(capsys, *argv)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["config.yaml", "no such configuration"]),
        (b"\xff\xfe", ["config.yaml"]),
        (b"run: {", ["config.yaml", "YAML"]),
        (b"run", ["config.yaml"]),
        (b"run: r", ["--data.root"]),
        (b"runn: r", ["'runn'", "'run'"]),
        (b"data: {rot: here}", ["'data.rot'", "'root'"]),
        (b"{run: r, data: {root: here, kind: lvis}}", ["data.kind", "lvis"]),
    ],
)
def test_configurations_that_do_not_parse(capsys, folder, text, words):
    if text is not None:
        Path("config.yaml").write_bytes(text)
    message = error_of(capsys, "wsss", "seeds", "--config", "config.yaml")
    assert [word for word in words if word not in message] == []


def test_values_of_other_stages_are_read(capsys, folder):
    """The help of a stage hides the other stages' sections, but one file and the options serve them all."""
    Path("config.yaml").write_text("{run: r, data: {root: here}, refine: {method: psa}}")
    argv = ["--config", "config.yaml", "--seeds.overrides.steps", 3, "--classifier.epochs", 2, "--print_config"]
    code, out, err = run(capsys, "wsss", "seeds", *argv)
    assert (code, err) == (0, "")
    config = yaml.safe_load(out)
    assert config["refine"]["method"] == "psa"
    assert config["classifier"]["epochs"] == 2
    assert config["seeds"]["overrides"] == {"steps": 3}


@pytest.mark.parametrize(("flags", "shown"), [([], "info"), (["--quiet"], ""), (["--verbose"], "debug info")])
def test_levels_of_the_log(capsys, monkeypatch, flags, shown):
    def log(options):
        logging.getLogger("advcam_attr.pipelines").debug("debug")
        logging.getLogger("advcam_attr.pipelines").info("info")

    monkeypatch.setitem(cli.COMMANDS, "demo", replace(cli.COMMANDS["demo"], run=log))
    assert run(capsys, "demo", *flags)[1].split() == shown.split()
    assert logging.getLogger("advcam_attr").handlers == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "steps"], ["--set", "KEY=VALUE", "'steps'"]),
        (["--set", "stepz=3"], ["'stepz'", "'steps'"]),
        (["--base", "grad-cam"], ["base 'grad-cam'", "'grad_cam'"]),
        (["--recipe", "oficial"], ["recipe 'oficial'", "'official'"]),
        (["--steps", "-1"], ["steps", "-1"]),
        (["--set", "steps=2", "--steps", "3"], ["steps", "twice"]),
        (["--target", "top0"], ["'top0'", "top1 to top4"]),
        (["--target", "cat"], ["'cat'", "--labels"]),
        (["--layer", "12x"], ["layer '12x'"]),
        (["--saliency", "none"], ["saliency", "none"]),
        (["--device", "abacus"], ["'abacus'"]),
        (["--out", "images/scene0.png"], ["folder"]),
        (["--checkpoint", "pickle.pth"], ["pickle.pth", "more than plain weights"]),
        (["--checkpoint", "nan.safetensors"], ["nan.safetensors", "NaN or infinite", "0."]),
        (["--input-size", "2"], ["small_net", "2 x 2"]),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_options_that_cannot_be_used(capsys, folder, argv, words, dry):
    torch.save(torch.nn.Linear(2, 2), "pickle.pth")
    weights = small_net().state_dict()
    save_file({**weights, "0.weight": torch.full_like(weights["0.weight"], torch.nan)}, "nan.safetensors")
    message = error_of(capsys, "attribute", "images", *NET, *argv, *dry)
    assert [word for word in words if word not in message] == []


def test_checks_of_data_show_their_progress(capsys, folder, monkeypatch):
    write_voc(folder / "VOC2012", {"train": {"a": ["dog"], "b": ["cat"]}})
    monkeypatch.setattr(progress_bar, "INTERVAL", 0.0)
    assert "decoding images: 2 of 2 images, " in run(capsys, "data", "check", "VOC2012", "--deep")[1]


def test_a_dry_run_of_attribute_writes_nothing(capsys, folder):
    argv = ["attribute", "images", *NET, "--steps", 1, "--target", "top2"]
    (folder / "images" / "bad.png").write_text("no image")
    for done in (0, 2):
        before = sorted(folder.rglob("*"))
        code, out, err = run(capsys, *argv, "--dry-run")
        assert (code, err) == (0, "")
        assert out.startswith("advcam_attr.pipelines.demo:small_net at layer 14, targets top2, on ")
        assert (
            f"\ncached: {done}; to do: {3 - done}; unreadable: 1 (not an image that can be read: images/bad.png" in out
        )
        assert sorted(folder.rglob("*")) == before
        run(capsys, *argv)
    assert "recipe.steps was 1, is 2" in run(capsys, *argv[:-4], "--steps", 2, "--dry-run")[2]


def test_images_that_cannot_be_used(capsys, folder):
    (folder / "bad.jpg").write_text("no image")
    (folder / "empty").mkdir()
    argv = ["attribute", *NET, "--steps", 1]
    assert error_of(capsys, *argv, "none.jpg") == "no such image file or folder: none.jpg"
    assert error_of(capsys, *argv, "empty").startswith("no images in folder empty")
    assert error_of(capsys, *argv, "bad.jpg").startswith("not an image that can be read: bad.jpg")
    code, out, err = run(capsys, *argv, "bad.jpg", "images")
    assert code == 2
    assert "done: 2; cached: 0; failed: 1; results in advcam_out" in out
    assert err.startswith("advcam: error: 1 of 3 images could not be used: not an image that can be read: bad.jpg")
    assert err.count("\n") == 1
    assert sorted(file.name for file in Path("advcam_out").glob("*.json")) == ["scene0.json", "scene1.json"]


def test_other_settings_in_the_same_folder(capsys, folder):
    argv = ["attribute", "images", *NET, "--out", "out"]
    assert run(capsys, *argv, "--steps", 1)[0] == 0
    message = error_of(capsys, *argv, "--steps", 2)
    assert message.endswith("(recipe.steps was 1, is 2); choose another folder, or --overwrite")
    assert run(capsys, *argv, "--steps", 2, "--overwrite")[0] == 0


def test_a_folder_that_cannot_be_made(capsys, folder):
    (folder / "file").touch()
    assert error_of(capsys, "demo", "--out", "file/demo").startswith("cannot make the folder file/demo")


def test_interrupts_and_bugs(capsys, monkeypatch):
    def raising(error: BaseException):
        def command(options):
            raise error

        return command

    demo = cli.COMMANDS["demo"]
    monkeypatch.setitem(cli.COMMANDS, "demo", replace(demo, run=raising(KeyboardInterrupt())))
    assert run(capsys, "demo")[0] == 130
    for bug in (ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug")):
        monkeypatch.setitem(cli.COMMANDS, "demo", replace(demo, run=raising(bug)))
        with pytest.raises(type(bug), match="a bug"):
            cli.main(["demo"])
