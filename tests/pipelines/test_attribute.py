"""Images and folders to maps, overlays and scores: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from advcam_attr import AdvCAM
from advcam_attr.data.images import read_rgb
from advcam_attr.data.toy import make_scenes
from advcam_attr.networks.load import load_model
from advcam_attr.pipelines import attribute
from advcam_attr.pipelines.attribute import Settings, attribute_images
from advcam_attr.pipelines.model import ModelChoice
from advcam_attr.pipelines.targets import Classes, TopK
from advcam_attr.types import AdvCAMError

MODEL = ModelChoice("advcam_attr.pipelines.demo:small_net", input_size=48)
SETTINGS = Settings(MODEL, overrides={"steps": 2})
KILLED = replace(SETTINGS, targets=("top2",), batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    files = []
    for n, image in enumerate(make_scenes(3, size=64).images):
        (folder / f"group{n}").mkdir()
        files.append(folder / f"group{n}" / f"scene{n}.png")
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(files[-1])
    return files


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    for n, image in enumerate(make_scenes(5, size=64).images):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"scene{n}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def labels(tmp_path) -> Path:
    (tmp_path / "labels.txt").write_text("striped\nchecked, chequered\ndotted\nringed, circled\n")
    return tmp_path / "labels.txt"


def run(images, out, settings=SETTINGS):
    return list(attribute_images(images, out, settings))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()}


def test_what_is_written_is_what_the_attribution_gives(tmp_path, photographs, labels):
    overrides = {"steps": 3, "flip": True, "scales": (1.0, 0.5)}
    settings = replace(SETTINGS, model=replace(MODEL, labels=labels), targets=("2", "chequered"), overrides=overrides)
    results = run(photographs, tmp_path / "out", settings)
    assert [result.status for result in results] == ["written"] * 3
    loaded = load_model(MODEL.spec, input_size=48)
    x = loaded.preprocess(read_rgb(photographs[1]))[None]
    advcam = AdvCAM(loaded.model, **overrides)
    maps = load_file(tmp_path / "out" / "scene1.safetensors")
    assert maps["targets"].tolist() == [2, 1]
    for steps, name in ((None, "advcam"), (0, "base")):
        wanted = torch.cat([advcam.attribute(x, target, steps=steps) for target in (2, 1)])[:, 0]
        torch.testing.assert_close(maps[name], wanted, rtol=1e-4, atol=1e-5)
    record = json.loads((tmp_path / "out" / "scene1.json").read_text())
    assert [target["name"] for target in record["targets"]] == ["dotted", "checked, chequered"]
    with torch.no_grad():
        logits = loaded.model(x)[0]
    first = record["targets"][0]["scores"][0]
    assert first["scale"] == 1.0
    assert len(first["logit"]) == len(first["probability"]) == 4
    assert first["logit"][0] == pytest.approx(float(logits[2]), abs=1e-4)
    assert first["probability"][0] == pytest.approx(float(logits.softmax(0)[2]), abs=1e-4)
    assert record["config"]["recipe.flip"] == "pair"
    assert record["head"]["exactness"] == "exact"
    for name in ("scene1.dotted.png", "scene1.checked.png"):
        with Image.open(tmp_path / "out" / name) as overlay:
            assert overlay.mode == "RGB"
            assert overlay.width > 3 * 200
    large = ["scene1.dotted.overlay.jpg", "scene1.checked.overlay.jpg"]
    assert [target["photograph"] for target in record["targets"]] == large
    with Image.open(tmp_path / "out" / large[0]) as photograph:
        assert (photograph.format, photograph.size) == ("JPEG", (64, 64))
    assert len(list((tmp_path / "out").iterdir())) == 3 * 6


def test_the_whole_photograph_is_tinted_where_the_model_saw(tmp_path):
    """A photograph of two squares' width: the model sees the middle one, and the ends keep their colours."""
    scene = make_scenes(1, size=64).images[0].permute(1, 2, 0).numpy()
    wide = np.concatenate([np.full((64, 32, 3), 0.5), scene, np.full((64, 32, 3), 0.5)], 1)
    Image.fromarray((wide * 255).astype(np.uint8)).save(tmp_path / "wide.png")
    (result,) = run([tmp_path / "wide.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / result.classes[0].photograph) as drawn:
        assert drawn.size == (128, 64)
        changed = np.abs(np.asarray(drawn).astype(float) - wide * 255).mean(2)
    ends = np.concatenate([changed[:, :24], changed[:, -24:]])
    assert ends.mean() < 3, "as JPEG rounds"
    assert changed[:, 32:96].mean() > 10


def test_top_k_and_sigmoid(tmp_path, photographs):
    settings = replace(SETTINGS, targets=("top2", "0"), probability="sigmoid")
    (result,) = run(photographs[:1], tmp_path, settings)
    loaded = load_model(MODEL.spec, input_size=48)
    with torch.no_grad():
        logits = loaded.model(loaded.preprocess(read_rgb(photographs[0]))[None])[0]
    best = logits.topk(2).indices.tolist()
    assert [one.index for one in result.classes] == list(dict.fromkeys([*best, 0]))
    assert result.classes[0].scores[0].probability[0] == pytest.approx(float(logits[best[0]].sigmoid()), abs=1e-4)
    assert (tmp_path / f"scene0.class_{best[0]}.png").is_file()


def test_batches_do_not_matter(tmp_path, photographs):
    run(photographs, tmp_path / "one", replace(SETTINGS, batch_size=1, targets=("top2",)))
    run(photographs, tmp_path / "many", replace(SETTINGS, batch_size=64, targets=("top2",)))
    for n in range(3):
        one, many = (load_file(tmp_path / kind / f"scene{n}.safetensors") for kind in ("one", "many"))
        torch.testing.assert_close(one["advcam"], many["advcam"], rtol=1e-4, atol=1e-5)


def test_a_second_run_keeps_what_is_done(tmp_path, photographs):
    run(photographs[:2], tmp_path)
    before = snapshot(tmp_path)
    results = run(photographs, tmp_path)
    assert [result.status for result in results] == ["kept", "kept", "written"]
    assert {name: value for name, value in snapshot(tmp_path).items() if name in before} == before


def test_a_record_deletes_no_other_files(tmp_path, photographs):
    out = tmp_path / "out"
    run(photographs[:2], out)
    for name in (tmp_path / "precious.txt", out / "precious.png", out / "scene0.png"):
        name.write_text("precious")
    (out / "scene0.linked.png").symlink_to(tmp_path / "precious.txt")
    before, record = (snapshot(out) | snapshot(tmp_path)).keys(), json.loads((out / "scene0.json").read_text())
    others = ["../precious.txt", f"{tmp_path}/precious.txt", "a/b.png", "precious.png", "scene0.linked.png"]
    own = ["scene0.json", "scene0.png", "scene1.safetensors"]
    for name in [*others, *own, "", ".", "..", "scene0.a.png\n", 7, None]:
        (out / "scene0.json").write_text(json.dumps({**record, "files": [name]}))
        with pytest.raises(AdvCAMError, match=r"scene0.json names .*, which is no"):
            run(photographs[:2], out, replace(SETTINGS, overwrite=True))
    assert (snapshot(out) | snapshot(tmp_path)).keys() == before


@pytest.mark.parametrize("lost", [(1,), (2, 3, 4)])
def test_a_resumed_run_makes_the_same_bits(lost, tmp_path, scenes):
    """Batches of two images, of which one or both are kept."""
    settings = replace(SETTINGS, batch_size=2)
    run(scenes, tmp_path, settings)
    before = snapshot(tmp_path)
    for n in lost:
        for file in tmp_path.glob(f"scene{n}.*"):
            file.unlink()
    results = run(scenes, tmp_path, settings)
    assert [result.status for result in results] == ["kept"] * (5 - len(lost)) + ["written"] * len(lost)
    after = snapshot(tmp_path)
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in before.items()}
    assert {name for name in before if after[name] == before[name]} == {n for n in before if int(n[5]) not in lost}


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_bits(tmp_path, scenes):
    """Killed twenty times at random moments, the files are those of an uninterrupted run, and no others."""
    run(scenes, tmp_path / "whole", KILLED)
    draw, fork = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(20):
        process = fork.Process(target=run, args=(scenes, tmp_path / "killed", KILLED))
        process.start()
        time.sleep(draw.uniform(0.0, 0.4))
        process.kill()
        process.join()
        for file in sorted((tmp_path / "killed").glob("*.json"))[1:]:  # so that there is work left to kill
            file.unlink()
    run(scenes, tmp_path / "killed", KILLED)
    whole, killed = ({name: one for name, (one, _) in snapshot(tmp_path / k).items()} for k in ("whole", "killed"))
    assert killed == whole


def test_what_was_interrupted_is_done_again(tmp_path, photographs, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(attribute, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(photographs[:1], tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".*")), "no temporary file stays behind"
    assert run(photographs[:1], tmp_path)[0].status == "written"


def test_a_changed_image_is_done_again(tmp_path, photographs):
    image = tmp_path / "picture.png"
    image.write_bytes(photographs[0].read_bytes())
    assert run([image], tmp_path / "out")[0].status == "written"
    image.write_bytes(photographs[1].read_bytes())
    assert run([image], tmp_path / "out")[0].status == "written"
    assert run([image], tmp_path / "out")[0].status == "kept"


def test_other_settings_are_refused_unless_overwritten(tmp_path, photographs):
    run(photographs[:1], tmp_path, replace(SETTINGS, targets=("0",)))
    before = snapshot(tmp_path)
    other = replace(SETTINGS, targets=("1",), overrides={"steps": 1})
    message = (
        r"scene0\.json was made with other settings \(targets was \['0'\], is \['1'\]; recipe\.steps was 2, is 1\)"
    )
    with pytest.raises(AdvCAMError, match=message):
        run(photographs, tmp_path, other)
    assert snapshot(tmp_path) == before
    run(photographs[:1], tmp_path, replace(other, overwrite=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "scene0.class_1.overlay.jpg", "scene0.class_1.png", "scene0.json", "scene0.safetensors",
    ]  # fmt: skip


def test_two_images_of_one_name_do_not_clobber_each_other(tmp_path, photographs):
    images = []
    for n, folder in enumerate(("a/x", "b/x", "b/y")):
        images.append(tmp_path / folder / "same.png")
        images[-1].parent.mkdir(parents=True)
        images[-1].write_bytes(photographs[n].read_bytes())
    images.append(tmp_path / "b" / "y" / "same.webp")
    read_rgb(photographs[0]).save(images[-1])
    out = tmp_path / "out"
    run(images, out)
    owners = {file.stem: json.loads(file.read_text())["image"] for file in out.glob("*.json")}
    assert sorted(owners) == ["b_y_same", "same", "x_same", "y_same"]
    assert len(set(owners.values())) == 4
    before = snapshot(out)
    assert [result.status for result in run(images[::-1], out)] == ["kept"] * 4
    assert snapshot(out) == before


def test_an_unreadable_image_does_not_stop_the_others(tmp_path, photographs):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    results = run([photographs[0], bad, photographs[1]], tmp_path / "out")
    assert sorted(result.status for result in results) == ["failed", "written", "written"]
    (failed,) = (result for result in results if result.status == "failed")
    assert "bad.jpg" in failed.error
    assert not list((tmp_path / "out").glob("bad*"))
    assert [r.status for r in run([bad], tmp_path / "alone")] == ["failed"]
    assert not (tmp_path / "alone").exists(), "nothing is made for nothing"


def test_saliency_maps_go_the_way_of_their_images(tmp_path, photographs):
    folder = tmp_path / "saliency"
    folder.mkdir()
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).resize((32, 32)).save(folder / "scene0.png")  # of half the size, as detectors make them
    strict = {"steps": 2, "regularizers": 1000.0, "mask": "none", "flip": True}
    settings = replace(SETTINGS, overrides=strict, targets=("0",))
    run(photographs[:1], tmp_path / "plain", settings)
    run(photographs[:1], tmp_path / "salient", replace(settings, saliency=folder))
    plain, salient = (load_file(tmp_path / kind / "scene0.safetensors") for kind in ("plain", "salient"))
    loaded = load_model(MODEL.spec, input_size=48)
    x = loaded.preprocess(read_rgb(photographs[0]))[None]
    background = torch.zeros(1, 48, 48)
    background[..., :24] = 1
    wanted = AdvCAM(loaded.model, **strict).attribute(x, 0, saliency=background)[:, 0]
    torch.testing.assert_close(salient["advcam"], wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(salient["advcam"], plain["advcam"], rtol=1e-2)
    (failed,) = run(photographs[1:2], tmp_path / "none", replace(settings, saliency=folder))
    assert "no saliency map for" in failed.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "camm"}, "unknown base 'camm'; did you mean 'cam'"),
        ({"recipe": "atuo"}, "unknown recipe 'atuo'; did you mean 'auto'"),
        ({"overrides": {"stepz": 2}}, "unknown option 'stepz'; did you mean 'steps'"),
        ({"overrides": {"steps": "two"}}, "steps must be an int"),
        ({"overrides": {"autocast": "yes"}}, "autocast"),
        ({"layer": "nothing"}, "no layer 'nothing'"),
        ({"targets": ("4",)}, "target 4 is not a class: the model has classes 0 to 3"),
        ({"targets": ("top9",)}, "the model has 4 classes"),
        ({"targets": ("cat",)}, "classes have no names; give --labels"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"saliency": Path("nowhere")}, "no such folder of saliency maps: nowhere"),
        ({"model": replace(MODEL, input_size=2)}, "small_net does not take images of 2 x 2 pixels"),
    ],
)
def test_settings_that_cannot_be_used_leave_nothing_behind(tmp_path, photographs, changes, message):
    with pytest.raises(AdvCAMError, match=message):
        run(photographs, tmp_path / "out", replace(SETTINGS, **changes))
    assert not (tmp_path / "out").exists()


def test_the_results_need_a_folder(tmp_path, photographs):
    (tmp_path / "file").touch()
    with pytest.raises(AdvCAMError, match="is a file; choose another --out"):
        run(photographs, tmp_path / "file")
    with pytest.raises(AdvCAMError, match="cannot make the folder"):
        run(photographs, tmp_path / "file" / "below")


def test_classes_are_found_by_name_and_index():
    classes = Classes(5, ("crane", "tench, Tinca tinca", "Pot", "crane", "flower pot, pot"))
    assert classes.parse("3") == 3
    assert classes.parse("tinca tinca") == 1
    assert classes.parse("pot") == 2, "a whole name goes before a synonym"
    assert classes.parse("TOP-3") == TopK(3)
    assert classes.parse("-1") == classes.count - 1
    with pytest.raises(AdvCAMError, match="'crane' is ambiguous: give one of the indices 0, 3"):
        classes.parse("crane")
    with pytest.raises(AdvCAMError, match="unknown class 'tensch'; did you mean 'tench'"):
        classes.parse("tensch")
    with pytest.raises(AdvCAMError, match="target -6 is not a class"):
        classes.parse("-6")
    with pytest.raises(AdvCAMError, match="2 class names for the model's 3 classes"):
        Classes(3, ("a", "b"))
    assert classes.file_part(1) == "tench"
    assert Classes(2, ("//", "b")).file_part(0) == "0"


def test_real_photographs(data_root, tmp_path):
    images = sorted((data_root / "imagenet" / "val").glob("*/*"))[:40:20]
    checkpoint = data_root / "weights" / "mobilenetv2_100_imagenet.safetensors"
    model = ModelChoice("timm/mobilenetv2_100", {"num_classes": 1001, "pad_type": "same"}, checkpoint)
    results = run(images, tmp_path, Settings(model, overrides={"steps": 3}))
    for result in results:
        (one,) = result.classes
        assert one.scores[0].probability[0] > 0.3
        assert (tmp_path / one.overlay).is_file()


def test_all_files_of_an_image_are_readable_alike(photographs, tmp_path):
    list(attribute_images(photographs[:1], tmp_path, SETTINGS))
    modes = {file.suffix: file.stat().st_mode for file in tmp_path.iterdir()}
    assert {".json", ".png", ".safetensors"} <= set(modes)
    assert len(set(modes.values())) == 1
