"""Maps for localization: what is stored is the attribution of the resized picture, whatever the interruptions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("cv2")

from advcam_attr import CAM, AdvCAM
from advcam_attr.climbing import recipes
from advcam_attr.metrics.localization import localization_scores, merge_tables
from advcam_attr.pipelines.maps import MapSettings, make_wsol_maps, read_map, read_predictions, wsol_map_store
from advcam_attr.pipelines.wsol.evaluate import REPORT, TABLES, evaluate_wsol, load_table, score_boxes, score_run
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard
from advcam_attr.types import AdvCAMError, Sample
from seed_run import small_classifier

SETTINGS = MapSettings(recipe="wsol", overrides={"steps": 2}, size=(24, 32), runtime=Runtime(workers=0))
CAM_SETTINGS = replace(SETTINGS, method="cam")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    samples, boxes, sizes = [], {}, {}
    for n in range(10):
        height, width = random.integers(20, 40, 2).tolist()
        path, id = folder / f"{n}.png", f"{n:02d}"
        coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(id, path, (int(random.integers(5)),)))
        boxes[id], sizes[id] = [(2, 3, width // 2, height - 1)], (height, width)
    return SimpleNamespace(name="random", root=folder, split="all", samples=tuple(samples), boxes=boxes, sizes=sizes)


@pytest.fixture
def net() -> nn.Module:
    return small_classifier()


def with_samples(data, samples):
    return SimpleNamespace(**{**vars(data), "samples": tuple(samples)})


def resized(sample: Sample) -> torch.Tensor:
    with Image.open(sample.image) as image:
        plain = np.array(image.convert("RGB").resize((32, 24), Image.Resampling.BILINEAR))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(plain).permute(2, 0, 1).float() / 255 - mean) / std


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def test_cam_maps_are_the_class_maps_of_the_image_alone(net, data, tmp_path):
    summary = make_wsol_maps(net, data, tmp_path, CAM_SETTINGS)
    assert (summary.images, summary.written, summary.failed) == (10, 10, ())
    store, predictions = wsol_map_store(tmp_path), read_predictions(tmp_path)
    negative = False
    for sample in data.samples:
        x = resized(sample)[None]
        expected = CAM(net).attribute(x, sample.labels[0], output="native")[0, 0]
        torch.testing.assert_close(read_map(store, sample.id), expected, rtol=1e-4, atol=1e-5)
        negative = negative or bool((expected < 0).any())
        assert predictions[sample.id] == int(net(x).argmax())
        header = store.header(sample.id)
        assert (header.classes, header.size) == (sample.labels, data.sizes[sample.id])
    assert negative, "maps that are nowhere negative cannot tell whether they are rectified"


def test_advcam_maps_are_the_attribution_and_zero_steps_are_cam(net, data, tmp_path):
    make_wsol_maps(net, data, tmp_path / "adv", SETTINGS)
    make_wsol_maps(net, data, tmp_path / "zero", replace(SETTINGS, overrides={"steps": 0}))
    make_wsol_maps(net, data, tmp_path / "cam", CAM_SETTINGS)
    adv, zero, cam = (wsol_map_store(tmp_path / name) for name in ("adv", "zero", "cam"))
    assert read_predictions(tmp_path / "adv") == read_predictions(tmp_path / "cam")
    for sample in data.samples:
        method = AdvCAM(net, recipe="wsol", steps=2)
        expected = method.attribute(resized(sample)[None], sample.labels[0], output="native")[0, 0]
        torch.testing.assert_close(read_map(adv, sample.id), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read_map(zero, sample.id), read_map(cam, sample.id), rtol=0, atol=0)


def test_parts_of_the_recipe_can_be_changed(net, data, tmp_path):
    options = {"regularizers": 3.0, "step_rule": 0.5, "objective": "minus_top5"}
    one = with_samples(data, data.samples[:1])
    for name, value in options.items():
        out = tmp_path / name
        make_wsol_maps(net, one, out, replace(SETTINGS, overrides={"steps": 2, name: value}))
        advcam = AdvCAM(net, recipe="wsol", steps=2, **{name: value})
        expected = advcam.attribute(resized(data.samples[0])[None], data.samples[0].labels[0], output="native")
        torch.testing.assert_close(read_map(wsol_map_store(out), "00"), expected[0, 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(AdvCAMError, match="unknown option 'stepz'"):
        make_wsol_maps(net, one, tmp_path / "typo", replace(SETTINGS, overrides={"stepz": 2}))
    assert not (tmp_path / "typo").exists()


def test_the_papers_recipe_is_one_scale_without_rectifying():
    recipe = recipes.get("wsol")
    assert (recipe.steps + 1, recipe.scales, recipe.step_rule.size, recipe.mask.threshold) == (27, (1.0,), 0.08, 0.5)
    assert (recipe.regularizers[0].weight, recipe.regularizers[0].reduce) == (0.01, "sum")


def test_shards_and_interruptions_give_the_same_bits(net, data, tmp_path):
    make_wsol_maps(net, data, tmp_path / "whole", SETTINGS)
    expected = snapshot(tmp_path / "whole")
    out = tmp_path / "shards"
    for rank in (1, 0):
        make_wsol_maps(net, data, out, SETTINGS, shard=Shard(rank, 2))
    assert snapshot(out) == expected
    assert read_predictions(out) == read_predictions(tmp_path / "whole")
    store = wsol_map_store(out)
    for id in ("01", "07"):
        store.path(id).unlink()
    store.path("08").write_bytes(b"half")
    first, *rest = sorted((out / "predictions").iterdir())
    first.write_bytes(first.read_bytes()[:-7])
    lost = set(read_predictions(tmp_path / "whole")) - set(read_predictions(out))
    assert len(lost) == 1
    summary = make_wsol_maps(net, data, out, SETTINGS)
    assert (summary.images, summary.written + summary.kept) == (10, 10)
    assert summary.written >= 3
    assert snapshot(out) == expected
    assert read_predictions(out) == read_predictions(tmp_path / "whole")
    assert make_wsol_maps(net, data, out, SETTINGS).kept == 10
    assert rest


def test_predicted_classes_can_be_climbed(net, data, tmp_path):
    make_wsol_maps(net, data, tmp_path, replace(SETTINGS, target="predicted"))
    predictions, store = read_predictions(tmp_path), wsol_map_store(tmp_path)
    assert len(set(predictions.values())) > 1
    for sample in data.samples:
        assert store.header(sample.id).classes == (predictions[sample.id],)
        assert predictions[sample.id] == int(net(resized(sample)[None]).argmax())
    assert make_wsol_maps(net, data, tmp_path, replace(SETTINGS, target="predicted")).kept == 10
    with pytest.raises(AdvCAMError, match="predicted classes"):
        score_run(tmp_path, data)
    (noted,) = (tmp_path / "predictions").iterdir()
    noted.write_bytes(b"\xff" + noted.read_bytes())
    with pytest.raises(
        AdvCAMError, match=rf"{noted.name} is damaged: its byte 0 is no UTF-8 text; remove it, and make"
    ):
        read_predictions(tmp_path)


def test_the_net_is_left_as_it_was(net, data, tmp_path):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    make_wsol_maps(net, data, tmp_path, SETTINGS)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_other_settings_need_overwrite(net, data, tmp_path):
    make_wsol_maps(net, data, tmp_path, CAM_SETTINGS)
    with pytest.raises(AdvCAMError, match="method was cam, is advcam"):
        make_wsol_maps(net, data, tmp_path, SETTINGS)
    assert make_wsol_maps(net, data, tmp_path, replace(SETTINGS, runtime=Runtime(overwrite=True))).written == 10
    assert make_wsol_maps(net, data, tmp_path, SETTINGS).kept == 10


def test_bad_input_is_one_line(net, data, tmp_path):
    one, *others = data.samples
    broken = tmp_path / "broken.png"
    broken.write_bytes(one.image.read_bytes()[:60])
    found = make_wsol_maps(net, with_samples(data, [Sample("bad", broken, (0,)), *others]), tmp_path / "a", SETTINGS)
    assert [id for id, _ in found.failed] == ["bad"]
    assert (found.images, found.written) == (10, 9)
    for samples, message in (
        ([], "no images"), ([one, one], "two images have the id 00"),
        ([Sample("x", one.image, (1, 2))], "image x has 2 labels"),
        ([Sample("x", one.image, ())], "image x has 0 labels"),
        ([one, Sample("x", one.image, (5,))], "image x has class 5, and the net has 5"),
    ):  # fmt: skip
        with pytest.raises(AdvCAMError, match=message):
            make_wsol_maps(net, with_samples(data, samples), tmp_path / "b", SETTINGS)
    for change in ({"batch": 0}, {"size": (0, 3)}, {"std": (0.0,)}, {"method": "x"}, {"target": "x"}):
        with pytest.raises(AdvCAMError):
            replace(SETTINGS, **change)
    for read in (wsol_map_store, read_predictions):
        with pytest.raises(AdvCAMError, match="no maps in"):
            read(tmp_path / "nothing")


def test_maps_that_are_not_finite_are_named(net, data, tmp_path):
    brightness = {sample.id: float(resized(sample).mean()) for sample in data.samples}
    order = sorted(data.samples, key=lambda sample: brightness[sample.id])
    limit = brightness[order[-2].id]

    class Overflowing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.where(x.mean((1, 2, 3), keepdim=True) > limit + 1e-4, torch.inf, 1.0)

    found = make_wsol_maps(nn.Sequential(Overflowing(), *net), with_samples(data, order), tmp_path, CAM_SETTINGS)
    assert found.failed == ((order[-1].id, "its maps are not finite; look at the precision (autocast) and the recipe"),)
    assert found.written == 9
    assert set(wsol_map_store(tmp_path).ids()) == {sample.id for sample in order[:-1]}


def test_a_run_is_scored_and_reported(net, data, tmp_path):
    make_wsol_maps(net, data, tmp_path, CAM_SETTINGS)
    scores = evaluate_wsol(tmp_path, data)
    predictions = read_predictions(tmp_path)
    for contours, name in TABLES.items():
        table = score_boxes(
            lambda id: read_map(wsol_map_store(tmp_path), id), data, predictions=predictions, contours=contours
        )
        assert localization_scores(table) == scores[contours] == localization_scores(load_table(tmp_path / name))
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["scores"]["all"]["max_box_acc_v2"] == scores["all"].max_box_acc_v2
    assert report["maps"]["recipe.name"] == "cam"
    top1 = np.mean([predictions[s.id] == s.labels[0] for s in data.samples])
    assert scores["all"].top1_cls == top1
    parts = [score_run(tmp_path, data, samples=data.samples[rank::2]) for rank in range(2)]
    assert localization_scores(merge_tables(parts)) == scores["all"]
    wsol_map_store(tmp_path).path("03").unlink()
    with pytest.raises(AdvCAMError, match="no maps of image 03"):
        evaluate_wsol(tmp_path, data)
