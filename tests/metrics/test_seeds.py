"""Threshold sweeps and counts of single images against thresholding one by one."""

import numpy as np
import pytest
import torch

from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.seeds import (
    COCO_THRESHOLDS,
    SEAM_THRESHOLDS,
    SEED_THRESHOLDS,
    VOC_THRESHOLDS,
    ImageCounts,
    ThresholdSweep,
)
from advcam_attr.types import AdvCAMError

K = 6


def one_threshold(high_res, classes, truth, threshold, num_classes):
    """As in the released scripts: a constant map first, argmax, labels, pixels counted."""
    padded = np.pad(high_res, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
    label = np.pad(np.array(classes, dtype=np.int64) + 1, (1, 0))[np.argmax(padded, 0)]
    valid = truth != 255
    cells = np.bincount(truth[valid].astype(np.int64) * num_classes + label[valid], minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def scene(seed, classes, size=(13, 17), levels=None):
    """Maps, some of whose values equal thresholds and each other, and a true label map with void pixels."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(len(classes), *size, generator=generator)
    if levels is not None and len(classes):
        chosen = torch.tensor(levels)[torch.randint(len(levels), maps.shape, generator=generator)]
        maps = torch.where(torch.rand(maps.shape, generator=generator) < 0.5, chosen, maps)
        maps[:, 0] = maps[0, 0].clone()
    truth = torch.randint(0, K, size, generator=generator).byte()
    truth[torch.rand(size, generator=generator) < 0.1] = 255
    return maps, classes, truth


@pytest.fixture
def scenes():
    sets = [(0,), (4, 1), (), (0, 1, 2, 3, 4), (2,), (3, 0)]
    return [scene(seed, classes, (13 + seed, 17), VOC_THRESHOLDS) for seed, classes in enumerate(sets)]


def swept(scenes, thresholds=VOC_THRESHOLDS):
    sweep = ThresholdSweep(thresholds, K)
    for maps, classes, truth in scenes:
        sweep.update(maps, classes, truth)
    return sweep


def test_golden():
    sweep = ThresholdSweep([0.25, 0.5], 3)
    maps = torch.tensor([[[0.25, 0.3, 0.9, 0.5]], [[0.1, 0.6, 0.9, 0.2]]])
    sweep.update(maps, [1, 0], torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8))
    # At 0.25: equal to the threshold, background; class 0 is label 1; of equal maps the first, label 2; label 2.
    # At 0.5: as before, but the last pixel is equal to the threshold.
    assert sweep.matrices().tolist() == [
        [[1, 0, 0], [0, 1, 1], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 1], [1, 0, 0]],
    ]
    assert sweep.mean_iou().tolist() == pytest.approx([(1 + 1 / 2 + 1 / 2) / 3, (1 / 2 + 1 / 2 + 0) / 3])
    assert sweep.best_threshold() == 0.25
    for threshold, row in ((0.0, [1, 3]), (1.0, [4, 0])):
        sweep = ThresholdSweep([threshold], 2)
        sweep.update(torch.tensor([[[0.0, 1e-30, 0.5, 1.0]]]), [0], torch.zeros(1, 4, dtype=torch.uint8))
        assert sweep.matrices()[0, 0].tolist() == row


@pytest.mark.parametrize("name", SEED_THRESHOLDS)
def test_every_threshold_equals_thresholding_alone(scenes, name):
    thresholds = SEED_THRESHOLDS[name]
    matrices = swept(scenes, thresholds).matrices()
    for place, threshold in enumerate(thresholds):
        expected = sum(one_threshold(m.numpy(), c, t.numpy(), threshold, K) for m, c, t in scenes)
        assert np.array_equal(matrices[place], expected), threshold


def test_classes_that_are_absent_leave_no_nan():
    sweep = ThresholdSweep(SEAM_THRESHOLDS, 21)
    maps, _, truth = scene(0, (3,))
    sweep.update(maps, [3], (truth == 4).byte() * 4)
    assert not sweep.mean_iou().isnan().any()
    scores = measures.scores(sweep.matrix(0.3).marginals())
    assert all(0 <= value <= 1 for value in vars(scores).values())
    assert int(sweep.matrix(0.3).iou().isfinite().sum()) == 2


def test_presets_are_those_of_the_released_scripts():
    found = [(len(t), t[0], t[-1]) for t in (VOC_THRESHOLDS, COCO_THRESHOLDS, SEAM_THRESHOLDS)]
    assert found == [(20, 0.15, 0.34), (41, 0.1, 0.5), (60, 0, 0.59)]


def test_order_and_merging_do_not_matter(scenes):
    whole = swept(scenes)
    merged = swept(scenes[4:])
    merged.merge(swept(scenes[:4][::-1]))
    assert torch.equal(whole.matrices(), merged.matrices())
    again = ThresholdSweep.from_state(merged.state())
    assert again.thresholds == VOC_THRESHOLDS
    assert torch.equal(again.matrices(), whole.matrices())
    again.update(*scenes[0])
    assert torch.equal(merged.matrices(), whole.matrices()), "a state shares nothing"


def test_single_images_add_up_to_the_whole(scenes):
    sweep, images = ThresholdSweep(VOC_THRESHOLDS, K), ImageCounts(len(VOC_THRESHOLDS), K)
    for maps, classes, truth in scenes:
        images.add(histogram := sweep.histogram(maps, classes, truth), classes)
        sweep.add(histogram, classes)
    for place, threshold in enumerate(VOC_THRESHOLDS):
        found = images.marginals(place)
        assert torch.equal(found.sum(0), sweep.matrix(threshold).marginals())
        for row, (maps, classes, truth) in zip(found, scenes, strict=True):
            matrix = one_threshold(maps.numpy(), classes, truth.numpy(), threshold, K)
            assert torch.equal(row, measures.marginals(torch.from_numpy(matrix)))


def test_counts_of_images_merge_and_reload(scenes):
    sweep = ThresholdSweep(VOC_THRESHOLDS, K)

    def counted(some):
        images = ImageCounts(len(VOC_THRESHOLDS), K)
        for maps, classes, truth in some:
            images.add(sweep.histogram(maps, classes, truth), classes)
        return images

    whole, merged = counted(scenes), counted(scenes[:2])
    merged.merge(counted(scenes[2:]))
    assert len(merged) == len(whole) == 6
    for images in (merged, ImageCounts.from_state(merged.state())):
        assert torch.equal(images.marginals(7), whole.marginals(7))
        assert torch.equal(images.truth(), whole.truth())
    assert ImageCounts(3, K).marginals(0).shape == (0, 4, K)


def test_on_real_masks(data_root):
    from PIL import Image

    folder = data_root / "voc/VOCdevkit/VOC2012/SegmentationClass"
    sweep, expected = ThresholdSweep(VOC_THRESHOLDS, 21), 0
    for seed, file in enumerate(sorted(folder.glob("*.png"))[:4]):
        truth = torch.from_numpy(np.array(Image.open(file)))
        classes = [k - 1 for k in truth.unique().tolist() if 0 < k < 255] or [0]
        small = torch.rand(1, len(classes), 8, 8, generator=torch.Generator().manual_seed(seed))
        maps = torch.nn.functional.interpolate(small, truth.shape, mode="bilinear")[0]
        sweep.update(maps, classes, truth)
        expected += np.stack([one_threshold(maps.numpy(), classes, truth.numpy(), t, 21) for t in VOC_THRESHOLDS])
    assert np.array_equal(sweep.matrices(), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"truth": lambda truth: truth.T}, "differ in size"),
        ({"classes": [5, 1]}, "must be distinct, in 0 to 4"),
        ({"classes": [1, 1]}, "must be distinct"),
        ({"classes": [1]}, "maps of 1 classes"),
        ({"high_res": lambda maps: maps.double()}, "float32"),
        ({"truth": lambda truth: truth.clone().index_fill_(0, torch.tensor(0), 6)}, "labels outside"),
    ],
)
def test_bad_images_are_not_counted(scenes, changes, words):
    sweep, given = ThresholdSweep([0.2, 0.5], K), dict(zip(("high_res", "classes", "truth"), scenes[1], strict=True))
    for name, change in changes.items():
        given[name] = change(given[name]) if callable(change) else change
    with pytest.raises(AdvCAMError, match=words):
        sweep.update(**given)
    assert not sweep.matrices().any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda sweep: sweep.merge(ThresholdSweep([0.2], K)), "cannot merge"),
        (lambda sweep: sweep.matrix(0.3), r"none of the 2 swept from 0\.2 to 0\.5"),
        (lambda sweep: sweep.best_threshold(), "no pixel was counted"),
        (lambda _: ThresholdSweep([0.2], 300).update(*scene(0, (3,))), "at most 255 classes"),
        (lambda _: ThresholdSweep([], K), "finite and ascend"),
        (lambda _: ThresholdSweep([0.5, 0.2], K), "finite and ascend"),
        (lambda _: ThresholdSweep([0.2, 0.2], K), "finite and ascend"),
        (lambda _: ThresholdSweep([float("nan")], K), "finite and ascend"),
        (lambda _: ImageCounts(2, K).merge(ImageCounts(3, K)), "cannot merge"),
    ],
)
def test_bad_sweeps_raise(call, words):
    with pytest.raises(AdvCAMError, match=words):
        call(ThresholdSweep([0.2, 0.5], K))


def test_labels_outside_the_classes_of_a_device_raise():
    state = ThresholdSweep([0.2, 0.5], K).state()
    state["histogram"][-1, 1, 0] = 3  # as a GPU counts labels outside the classes
    with pytest.raises(AdvCAMError, match="3 pixels"):
        ThresholdSweep.from_state(state).matrices()
