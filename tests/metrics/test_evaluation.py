"""Evaluations of maps and masks against thresholding one by one, in shards, and with missing files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_attr.cli import main as cli
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.toy import CLASS_NAMES, make_scenes
from advcam_attr.data.voc import read_voc
from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.evaluation import compare, compare_best, merge_seeds
from advcam_attr.metrics.seeds import VOC_THRESHOLDS
from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.pipelines.evaluate import (
    evaluate_masks,
    evaluate_seeds,
    load_counts,
    save_counts,
    write_mask_evaluation,
    write_seed_evaluation,
)
from advcam_attr.runs.map_store import maps_of
from advcam_attr.types import AdvCAMError, ClassMaps, NoMaskError, Sample
from tiny_voc import write_mask, write_voc


class Maps(dict):
    """Maps in memory, read as a store's are."""

    def read(self, id):
        if self[id] is None:
            raise AdvCAMError(f"cannot read maps/{id}: truncated")
        return self[id]


def class_maps(classes, high_res):
    return ClassMaps(tuple(classes), tuple(high_res.shape[1:]), high_res[:, ::4, ::4], high_res)


def noisy(labels, mask, spread, generator):
    """Maps of the mask with noise; peak 1."""
    classes = [int(k) for k in labels.nonzero().flatten()]
    high_res = torch.stack([(mask == k + 1).float() * 0.3 for k in classes] or [torch.zeros(0, *mask.shape)])
    high_res = high_res.reshape(len(classes), *mask.shape)
    high_res = high_res + spread * torch.rand(high_res.shape, generator=generator)
    return class_maps(classes, high_res / high_res.amax((1, 2), keepdim=True).clamp(min=1e-5))


@pytest.fixture
def toy(tmp_path):
    """Eight scenes, the last of which shows nothing; maps of little and of much noise."""
    scenes = make_scenes(8, size=48, seed=1)
    masks, labels = scenes.masks.clone(), scenes.labels.clone()
    masks[-1], labels[-1] = 0, False
    masks[:, :2] = 255
    by_id = {f"scene_{i}": mask for i, mask in enumerate(masks)}
    samples = tuple(
        Sample(id, tmp_path / f"{id}.jpg", tuple(row.nonzero().flatten().tolist()))
        for id, row in zip(by_id, labels, strict=True)
    )
    data = SegmentationData("toy", tmp_path, "val", CLASS_NAMES, samples, lambda sample: by_id[sample.id])
    generator = torch.Generator().manual_seed(0)
    good, bad = (
        Maps({s.id: noisy(labels[i], masks[i], spread, generator) for i, s in enumerate(samples) if s.labels})
        for spread in (0.3, 1.0)
    )
    return data, good, bad


def seed(maps, threshold):
    """The label map of one threshold."""
    padded = torch.cat([torch.full((1, *maps.size), threshold), maps.high_res])
    return torch.tensor([0, *(k + 1 for k in maps.classes)])[torch.from_numpy(np.argmax(padded.numpy(), 0))]


def expected(data, maps, threshold):
    matrix = ConfusionMatrix(len(data.classes) + 1)
    for sample in data.samples:
        truth = data.mask(sample)
        label = seed(maps[sample.id], threshold) if sample.id in maps else torch.zeros(truth.shape).long()
        matrix.update(label, truth)
    return matrix


@pytest.mark.parametrize("noise", ["little", "much"])
def test_seeds_equal_thresholding_alone(toy, noise):
    data, good = toy[0], toy[1 + (noise == "much")]
    found = evaluate_seeds(good, data)
    curve = [expected(data, good, t).mean_iou() for t in VOC_THRESHOLDS]
    assert found.sweep.mean_iou().tolist() == pytest.approx(curve, abs=1e-12)
    assert found.sweep.best_threshold() == VOC_THRESHOLDS[int(np.argmax(curve))]
    assert found.scope.ids == tuple(sample.id for sample in data.samples)
    assert found.at().scores().mean_iou == max(found.sweep.mean_iou().tolist())
    fixed = found.at(0.2)
    assert torch.equal(fixed.matrix.counts, expected(data, good, 0.2).counts)
    assert torch.equal(fixed.images.sum(0), fixed.matrix.marginals())


def test_masks_equal_their_seeds(toy, tmp_path):
    data, good, _ = toy
    seeds = evaluate_seeds(good, data).at(0.25)
    for sample in data.samples:
        truth = data.mask(sample)
        label = seed(good[sample.id], 0.25) if sample.id in good else torch.zeros(truth.shape)
        image = Image.fromarray(label.numpy().astype(np.uint8))
        if sample.labels:
            image.putpalette(list(range(256)) * 3)
        image.save(tmp_path / f"{sample.id}.png")
    masks = evaluate_masks(tmp_path, data)
    assert torch.equal(masks.matrix.counts, seeds.matrix.counts)
    assert torch.equal(masks.images, seeds.images)
    assert masks.by_size() == pytest.approx(seeds.by_size())
    report = json.loads(write_mask_evaluation(masks, tmp_path).read_text())
    assert report["scores"]["mean_iou"] == seeds.scores().mean_iou
    for sample in data.samples:
        Image.fromarray(np.full((48, 48), 255, np.uint8)).save(tmp_path / f"{sample.id}.png")
    counts = evaluate_masks(tmp_path, data).matrix.counts
    assert not counts[:, 1:].any(), "void in masks is background"
    assert int(counts.sum()) == 8 * 46 * 48


def test_shards_add_up_to_the_whole(toy, tmp_path):
    data, good, bad = toy
    whole = evaluate_seeds(good, data)
    parts = [evaluate_seeds(good, data, samples=())]
    for rank in range(3):
        save_counts(evaluate_seeds(good, data, samples=data.samples[rank::3]), tmp_path / f"{rank}.safetensors")
        parts.append(load_counts(tmp_path / f"{rank}.safetensors"))
    merged = merge_seeds(parts)
    assert torch.equal(merged.sweep.matrices(), whole.sweep.matrices())
    assert set(merged.scope.ids) == set(whole.scope.ids)
    assert merged.at().by_size() == whole.at().by_size()
    assert merged.at().describe()["per_class"] == whole.at().describe()["per_class"]
    other = evaluate_seeds(bad, data)
    assert compare(merged.at(), other.at(), samples=1).value == compare(whole.at(), other.at(), samples=1).value
    train = evaluate_seeds(good, replace(data, split="train"))
    for parts, word in (
        ([whole, merged], "8 images"),
        ([whole, train], "toy train and toy val"),
        ([], "no evaluation"),
    ):
        with pytest.raises(AdvCAMError, match=word):
            merge_seeds(parts)
    (tmp_path / "counts.safetensors").write_bytes(b"nothing")
    for name in ("counts", "absent"):
        with pytest.raises(AdvCAMError, match=name):
            load_counts(tmp_path / f"{name}.safetensors")


def test_comparisons(toy):
    data, good, bad = toy
    better, worse = evaluate_seeds(good, data), evaluate_seeds(bad, data)
    found = compare(better.at(), worse.at(), samples=200)
    assert found.value == pytest.approx(better.at().scores().mean_iou - worse.at().scores().mean_iou)
    assert 0 < found.low < found.value < found.high
    best = compare_best(better, worse, samples=200)
    assert best.value == pytest.approx(found.value)
    assert 0 < best.low < best.high
    shuffled = evaluate_seeds(good, data, samples=data.samples[::-1])
    assert compare(better.at(), shuffled.at(), samples=20) == (0, 0, 0), "images are paired by their ids"
    assert compare_best(better, shuffled, samples=20) == (0, 0, 0)
    with pytest.raises(AdvCAMError, match=r"1 are in one alone, e\.g\. scene_7"):
        compare(better.at(), evaluate_seeds(good, data, samples=data.samples[:-1]).at())


def test_the_report(toy, tmp_path):
    data, good, _ = toy
    data = replace(data, classes=(*CLASS_NAMES, "unicorn"))
    evaluation = evaluate_seeds(good, data)
    text = write_seed_evaluation(evaluation, tmp_path / "run").read_text()
    assert "NaN" not in text
    report, best = json.loads(text), evaluation.at()
    assert (report["data"], report["images"]) == ("toy val", 8)
    assert report["threshold"] == evaluation.sweep.best_threshold()
    assert report["threshold_chosen"] == "the best on these masks"
    assert report["curve"]["thresholds"] == list(VOC_THRESHOLDS)
    assert max(report["curve"]["mean_iou"]) == report["scores"]["mean_iou"] == best.scores().mean_iou
    *rows, absent = report["per_class"]
    assert absent == {"name": "unicorn", "images": 0} | dict.fromkeys(absent.keys() - {"name", "images"})
    assert [row["name"] for row in rows] == ["background", *CLASS_NAMES]
    assert [row["iou"] for row in rows] == best.matrix.iou().tolist()[:-1]
    assert rows[0]["noise"] is None
    sizes = {row["name"]: row["object_size"] for row in rows[1:]}
    small, large = (report["by_object_size"][size]["classes"] for size in ("small", "large"))
    assert (len(small), len(large)) == (2, 2)
    assert max(sizes[name] for name in small) <= min(sizes[name] for name in large)
    per_image = (torch.stack([data.mask(sample) for sample in data.samples]) == 2).sum((1, 2))
    assert sizes[CLASS_NAMES[1]] == pytest.approx(float(per_image.sum() / (per_image > 0).sum()))
    assert load_counts(tmp_path / "run" / "evaluation.safetensors").describe() == evaluation.describe()
    report = json.loads(write_seed_evaluation(evaluation, tmp_path / "run", 0.3).read_text())
    assert (report["threshold"], report["threshold_chosen"]) == (0.3, "given")


def test_missing_and_damaged_maps_raise_or_are_listed(toy):
    data, good, _ = toy
    maps = Maps({id: maps for id, maps in good.items() if id not in ("scene_2", "scene_4")})
    with pytest.raises(AdvCAMError, match=r"2 of 8 images are missing, e\.g\. of scene_2"):
        evaluate_seeds(maps, data)
    maps["scene_3"] = None
    maps["scene_5"].high_res[0, 3, 3] = float("nan")
    with pytest.raises(AdvCAMError, match="truncated"):
        evaluate_seeds(Maps(good | {"scene_3": None}), data)
    found = evaluate_seeds(maps, data, allow_missing=True)
    assert set(found.scope.missing) == {f"scene_{k}" for k in (2, 3, 4, 5)}
    assert "truncated" in found.scope.missing["scene_3"]
    assert "not finite" in found.scope.missing["scene_5"]
    assert found.describe()["missing"] == found.scope.missing
    others = tuple(sample for sample in data.samples if sample.id not in found.scope.missing)
    assert torch.equal(found.sweep.matrices(), evaluate_seeds(good, data, samples=others).sweep.matrices())


def test_images_without_a_mask_are_listed(toy):
    data, good, _ = toy
    unmasked: set[str] = {"scene_1", "scene_6"}

    def mask(sample):
        if sample.id in unmasked:
            raise NoMaskError(f"no mask of {sample.id}")
        return data.mask(sample)

    del good["scene_6"]
    found = evaluate_seeds(good, replace(data, mask=mask))
    assert found.scope.unmasked == {"scene_1": "no mask of scene_1", "scene_6": "no mask of scene_6"}
    assert len(found.scope.ids) == len(found.images) == 6
    unmasked.update(sample.id for sample in data.samples)
    for samples, word in ((data.samples, "no mask of scene_"), ((), "list of images is empty")):
        with pytest.raises(AdvCAMError, match=f"could be scored: .*{word}"):
            evaluate_seeds(good, replace(data, mask=mask, samples=samples))


def test_left_out_images_are_reported(tmp_path, capsys):
    voc = write_voc(tmp_path / "VOC2012", {"train": {"a": ["cat"], "b": ["dog"], "c": ["cow"]}})
    masks, truth = tmp_path / "masks", voc / "SegmentationClass" / "b.png"
    shutil.copytree(voc / "SegmentationClass", masks)

    def scored(*options) -> tuple[int, str, str]:
        return cli.main(["evaluate", "masks", str(masks), "--root", str(voc), *options]), *capsys.readouterr()

    assert scored()[0] == 0
    (masks / "a.png").unlink()
    assert "left out: 1 of 3 images, whose maps are missing or damaged: a\n" in scored("--allow-missing")[1]
    shutil.copy(voc / "SegmentationClass" / "a.png", masks)
    write_mask(truth, np.zeros((6, 7)))
    with pytest.raises(AdvCAMError, match=r"b\.png"):
        evaluate_seeds(Maps(), read_voc(voc, "train"), allow_missing=True)
    for damage, options in ((lambda content: content, ()), (lambda content: content[:40], ("--allow-missing",))):
        truth.write_bytes(damage(truth.read_bytes()))
        code, _, err = scored(*options)
        assert (code, err.count("\n"), "b.png" in err) == (2, 1, True)
    truth.unlink()
    code, out, _ = scored()
    assert code == 0
    assert "left out: 1 of 3 images, which have no true mask: b\n" in out


def test_maps_that_do_not_fit_raise(toy):
    data, good, _ = toy
    whole = good["scene_2"]
    unlabelled = replace(data, classes=("a",), samples=tuple(replace(s, labels=()) for s in data.samples))
    for maps, given, words in (
        (good | {"scene_2": class_maps(whole.classes, whole.high_res[:, :40])}, data, r"scene_2 .*differ in size"),
        (good | {"scene_2": class_maps((9,), whole.high_res[:1])}, data, r"scene_2 .*classes \[9\]"),
        (good, replace(data, samples=(*data.samples, data.samples[1])), "several images of one id"),
        ({}, unlabelled, r"scene_0 .*labels outside the 2 classes"),
    ):
        with pytest.raises(AdvCAMError, match=words):
            evaluate_seeds(Maps(maps), given)


def test_masks_that_do_not_fit_raise(toy, tmp_path):
    data, file = toy[0], tmp_path / "scene_3.png"
    for sample in data.samples:
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(tmp_path / f"{sample.id}.png")
    file.write_bytes(file.read_bytes()[:60])
    for image, words in (
        (None, "mask .*scene_3.png"),
        (np.zeros((48, 40), np.uint8), "scene_3"),
        (np.full((48, 48), 7, np.uint8), r"scene_3.png: prediction holds labels \d to 7"),
        (np.full((48, 48, 3), 77, np.uint8), r"scene_3.png .*77, 77, 77"),
    ):
        if image is not None:
            Image.fromarray(image).save(file)
        with pytest.raises(AdvCAMError, match=words):
            evaluate_masks(tmp_path, data)
    file.unlink()
    with pytest.raises(AdvCAMError, match=r"mask.* .*scene_3.png"):
        evaluate_masks(tmp_path, data)
    found = evaluate_masks(tmp_path, data, allow_missing=True)
    assert list(found.scope.missing) == ["scene_3"]
    assert len(found.images) == 7


def test_on_real_masks(data_root):
    """Maps of the mask itself score 1, random maps far less; both equal thresholding alone."""
    folder = data_root / "voc/VOCdevkit/VOC2012"
    ids = (folder / "ImageSets/Segmentation/val.txt").read_text().split()

    def mask(sample):
        return torch.from_numpy(np.array(Image.open(folder / "SegmentationClass" / f"{sample.id}.png")))

    samples, perfect, chance = [], Maps(), Maps()
    generator = torch.Generator().manual_seed(0)
    for id in ids:
        sample = Sample(id, folder / "JPEGImages" / f"{id}.jpg", ())
        truth = mask(sample)
        classes = [k - 1 for k in truth.unique().tolist() if 0 < k < 255]
        samples.append(replace(sample, labels=tuple(classes)))
        if not classes:
            continue
        perfect[id] = class_maps(classes, torch.stack([(truth == k + 1).float() for k in classes]))
        small = torch.rand(1, len(classes), 6, 6, generator=generator)
        chance[id] = class_maps(classes, torch.nn.functional.interpolate(small, truth.shape, mode="bilinear")[0])
    data = SegmentationData("voc", folder, "val", tuple(map(str, range(20))), tuple(samples), mask)
    best = evaluate_seeds(perfect, data).at()
    assert best.scores() == measures.Scores(1, 1, 1, 1, 1, 0)
    found = evaluate_seeds(chance, data)
    assert 0 < found.at().scores().mean_iou < 0.5
    assert torch.equal(found.at(0.34).matrix.counts, expected(data, chance, 0.34).counts)
    assert compare(best, found.at(), samples=100).low > 0.3


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: (*k, 9), lambda k: tuple((c + 1) % 6 for c in k)])
def test_maps_of_other_classes_raise(toy, change):
    """Seeds that were made with other labels than those of the data are no seeds of its images."""
    data, good, _ = toy
    sample = next(sample for sample in data.samples if sample.labels)
    classes = tuple(sorted(set(change(sample.labels))))
    high_res = torch.rand(len(classes), *good[sample.id].size)
    others = Maps(good) | {sample.id: class_maps(classes, high_res)}
    with pytest.raises(AdvCAMError, match=f"maps of {sample.id} are of the classes .*its labels are"):
        evaluate_seeds(Maps(others), data)
    listed = evaluate_seeds(Maps(others), data, allow_missing=True).scope
    assert [*listed.missing] == [sample.id]
    with pytest.raises(AdvCAMError, match=f"maps of {sample.id} are of the classes"):
        maps_of(Maps(others), sample)


def test_scores_of_masks_go_into_their_folder(tmp_path):
    """A folder beside it may hold scores of its own, as that of a run's seeds."""
    write_voc(tmp_path / "VOC2012", {"train": {"a": ["dog"]}}, size=(8, 12))
    masks = tmp_path / "run" / "masks"
    shutil.copytree(tmp_path / "VOC2012" / "SegmentationClass", masks)
    assert cli.main(["evaluate", "masks", str(masks), "--root", str(tmp_path / "VOC2012")]) == 0
    assert (masks / "evaluation.json").is_file()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["masks"]
