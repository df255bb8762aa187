"""Transforms and data sets of classifiers, localization and segmentation."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Mask

from advcam_attr.data.datasets import ClassificationDataset, SingleLabelDataset
from advcam_attr.data.images import MEAN, STD, resize_to
from advcam_attr.data.transforms import (
    PadRightAndBelow,
    RandomCropOrPad,
    RandomLongSide,
    RandomScaleOf,
    SegmentationTrain,
    TopLeftCropOrPad,
    classifier_train,
    classifier_val,
    to_input,
    wsol_eval,
    wsol_train,
)
from advcam_attr.types import AdvCAMError, Sample

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradient(width: int, height: int) -> Image.Image:
    """Smooth, and nowhere black."""
    y, x = np.mgrid[:height, :width]
    channels = [60 + 150 * x / width, 60 + 150 * y / height, np.full(x.shape, 200)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def test_input_of_hand_set_pixels():
    image = Image.fromarray(np.array([[[255, 0, 51]]], np.uint8))
    expected = (np.array([1, 0, 0.2]) - MEAN) / STD
    assert to_input(image).dtype == torch.float32
    np.testing.assert_allclose(to_input(image)[:, 0, 0], expected, rtol=1e-6)
    assert type(to_input(image)) is torch.Tensor


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (1, 3), (335, 337)])
def test_sides_are_rounded_as_numpy_does(size, scale):
    width, height = size
    if (width, scale) == (1, 0.5):
        with pytest.raises(AdvCAMError, match=r"an image of 1x3 pixels cannot be scaled by 0\.5"):
            resize_to(gradient(*size), scale)
        return
    scaled = resize_to(gradient(*size), scale)
    assert scaled.size == (round(width * scale), round(height * scale))  # Python rounds halves to even, too
    assert np.array_equal(scaled, gradient(*size).resize(scaled.size, Image.Resampling.BICUBIC))


def test_long_sides_are_all_drawn_and_proportions_preserved():
    resize, image = RandomLongSide(32, 40), gradient(100, 61)
    sizes = [resize(image).size for _ in range(300)]
    assert {width for width, _ in sizes} == set(range(32, 41)), "both ends may be drawn"
    assert all(height == np.round(61 * width / 100) for width, height in sizes)
    assert {RandomLongSide(20, 20)(gradient(30, 60)).size} == {(10, 20)}
    assert RandomLongSide(20, 20)(gradient(1, 600)).size == (1, 20)
    assert np.array_equal(RandomLongSide(50, 50)(image), image.resize((50, 30), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(5, 5), (8, 5), (5, 8), (8, 8), (3, 3), (3, 8), (8, 3), (1, 1), (3, 5)])
def test_crops_are_windows_of_the_image_and_zeros(height, width):
    """Along each side every place is drawn that keeps all of a short side, or fills the square from a long one."""
    size = 5
    image = torch.arange(1, height * width + 1).reshape(1, height, width).float()
    ys, xs = (range(min(side - size, 0), max(side - size, 0) + 1) for side in (height, width))
    expected = []
    for y, x in itertools.product(ys, xs):
        window = torch.zeros(1, size, size)
        for i, j in itertools.product(range(size), repeat=2):
            if 0 <= y + i < height and 0 <= x + j < width:
                window[0, i, j] = image[0, y + i, x + j]
        expected.append(window)
    crop = RandomCropOrPad(size)
    drawn = [crop(image) for _ in range(60 * len(expected))]
    seen = [sum(torch.equal(window, d) for d in drawn) for window in expected]
    assert sum(seen) == len(drawn), "no other window is drawn"
    assert min(seen) > 30, "and each about equally often"
    assert torch.equal(TopLeftCropOrPad(size)(image), expected[ys.index(0) * len(xs) + xs.index(0)])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 640), (40, 30), (1200, 200)])
def test_training_input(size):
    transform = classifier_train(crop=96, long_side=(64, 128))
    for _ in range(10):
        x = transform(gradient(*size))
        assert x.shape == (3, 96, 96)
        assert x.dtype == torch.float32
        inside = (x != 0).any(0)
        rows, columns = inside.any(1), inside.any(0)
        assert inside.sum() == rows.sum() * columns.sum(), "zeros are around the image only"
        short, long = sorted((int(rows.sum()), int(columns.sum())))
        assert long >= 64, "it is not made smaller than asked"
        if long < 96:
            assert short == np.round(long * min(size) / max(size)), "nor squeezed"


def test_the_scale_is_preserved_by_the_crop():
    """Neighbouring pixels differ as in the resized image: nothing is squeezed into the square."""
    transform = classifier_train(crop=64, long_side=(100, 100), **UNIT)
    gradients = [transform(gradient(200, 100))[0].diff(dim=1).abs().mean().item() for _ in range(8)]
    expected = 150 / 255 / 100
    assert all(gradient == pytest.approx(expected, rel=0.35) for gradient in gradients)


def test_validation_input_is_padded_by_the_mean_colour():
    image = gradient(100, 40)
    x = classifier_val(crop=64)(image)
    assert torch.equal(x[:, :40], to_input(image)[:, :, :64])
    assert not x[:, 40:].any()
    x = classifier_train(crop=64, long_side=(32, 32))(Image.new("RGB", (32, 32), (255, 0, 0)))
    assert (x == 0).all(0).sum() == 64 * 64 - 32 * 32


def test_half_of_the_images_are_mirrored():
    transform = classifier_train(crop=32, long_side=(32, 32), **UNIT)
    straight = to_input(gradient(32, 32), **UNIT)
    drawn = [transform(gradient(32, 32)) for _ in range(400)]
    mirrored = [torch.equal(x, straight.flip(2)) for x in drawn]
    assert all(m or torch.equal(x, straight) for x, m in zip(drawn, mirrored, strict=True))
    assert 160 < sum(mirrored) < 240
    train = SegmentationTrain(20, (1.0,))
    rising = [int(train(*labelled_image(20, 20))[1][0, 0]) == 0 for _ in range(200)]
    assert 75 < sum(rising) < 125


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: classifier_train(long_side=(640, 320)), "long_side is 640, 320"),
        (lambda: classifier_train(crop=0), "at least 1 pixel"),
        (lambda: classifier_val(crop=0), "at least 1 pixel"),
        (lambda: wsol_train(64, 65), "does not fit"),
        (lambda: SegmentationTrain(0, (1.0,)), "at least 1 and scales above 0"),
        (lambda: SegmentationTrain(64, ()), "at least 1 and scales above 0"),
        (lambda: SegmentationTrain(64, (1.0, 0.0)), "at least 1 and scales above 0"),
        (lambda: ClassificationDataset([], 3, classifier_val(32)), "no images"),
        (lambda: ClassificationDataset([Sample("a", Path("a"), (0, 2))], 2, to_input), r"labels \(0, 2\)"),
        (lambda: SingleLabelDataset([Sample("a", Path("a"), ())], 2, to_input), "one of 2"),
        (lambda: SingleLabelDataset([Sample("a", Path("a"), (0, 1))], 2, to_input), "one of 2"),
        (lambda: SingleLabelDataset([Sample("a", Path("a"), (2,))], 2, to_input), "one of 2"),
    ],
)
def test_bad_settings_raise(make, word):
    with pytest.raises(AdvCAMError, match=word):
        make()


def test_randomness_is_torchs_own():
    transform = classifier_train(crop=32, long_side=(20, 60))
    state = torch.get_rng_state()
    first = [transform(gradient(50, 40)) for _ in range(4)]
    torch.set_rng_state(state)
    np.random.default_rng().random()
    assert all(torch.equal(transform(gradient(50, 40)), x) for x in first)


def test_images_are_squares_whatever_their_proportions():
    half = Image.new("RGB", (300, 100))
    half.paste((255, 255, 255), (150, 0, 300, 100))
    x = wsol_eval(mean=(0.5,) * 3, std=(0.5,) * 3)(half)
    assert (x.shape, x.dtype) == ((3, 224, 224), torch.float32)
    assert x[:, :, :110].max() == -1
    assert x[:, :, 114:].min() == 1
    expected = np.asarray(half.resize((224, 224), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(x.numpy(), expected, atol=1e-6)


def test_training_crops_and_mirrors_the_square():
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert("RGB")
    seen = set()
    for _ in range(60):
        row = (wsol_train(64, 56, **UNIT)(ramp)[0, 0] * 255 / 4).round().int().tolist()
        step = row[1] - row[0]
        assert row == list(range(row[0], row[0] + step * 56, step))
        seen.add((step, row[0] if step == 1 else row[-1]))
    assert {step for step, _ in seen} == {1, -1}
    assert {first for _, first in seen} == set(range(9))


def test_classification_dataset(tmp_path):
    samples = [Sample("a", tmp_path / "a.png", (0, 2)), Sample("b", tmp_path / "b.png", ())]
    for sample in samples:
        gradient(40, 30).convert("L").save(sample.image)
    dataset = pickle.loads(pickle.dumps(ClassificationDataset(samples, 3, classifier_val(32))))
    images, labels = next(iter(DataLoader(dataset, batch_size=2, num_workers=1)))
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(labels, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    assert dataset.labels(0).tolist() == [1, 0, 1]
    samples[1].image.write_bytes(samples[1].image.read_bytes()[:60])
    with pytest.raises(AdvCAMError, match=r"b\.png"):
        dataset[1]


def labelled_image(height: int, width: int) -> tuple[Image.Image, torch.Tensor]:
    """Labels 0 to 19 in columns, and an image of which each pixel's red tells its label."""
    labels = (torch.arange(width) * 20 // width).expand(height, width).to(torch.uint8)
    return Image.fromarray(np.repeat(labels[..., None].numpy() * 10, 3, 2)), labels


@pytest.mark.parametrize(("height", "width"), [(2, 7), (9, 4), (5, 5)])
def test_padding_is_right_and_below(height, width):
    x, y = PadRightAndBelow(5)(torch.ones(3, height, width), Mask(torch.ones(height, width, dtype=torch.uint8)))
    assert x.shape[1:] == y.shape == (max(height, 5), max(width, 5))
    inside = torch.zeros(y.shape, dtype=torch.bool)
    inside[:height, :width] = True
    assert torch.equal(x.bool(), inside.expand(3, -1, -1))
    assert torch.equal(y, torch.where(inside, 1, 255).to(torch.uint8))


@pytest.mark.parametrize("size", [(30, 40), (90, 20), (200, 150)])
def test_labels_stay_with_their_pixels(size):
    train = SegmentationTrain(64, (1.0,), mean=(0.0,) * 3, std=(10 / 255,) * 3)
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        x, y = train(*labelled_image(*size))
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((3, 64, 64), torch.float32, (64, 64), torch.uint8)
        assert type(x) is type(y) is torch.Tensor
        void = y == 255
        torch.testing.assert_close(x[0][~void], y[~void].float(), rtol=0, atol=1e-4)
        assert not x[:, void].any()
        places.add(tuple(y[0].tolist()))
    assert len(places) > 1  # mirrored, or cut elsewhere


def test_scales_are_drawn_evenly_and_sides_rounded_down():
    torch.manual_seed(0)
    scale = RandomScaleOf((0.5, 1.25, 2.0))
    labels = Mask(torch.zeros(11, 7, dtype=torch.uint8))
    drawn = [tuple(scale(torch.zeros(3, 11, 7), labels)[1].shape) for _ in range(300)]
    assert {size: 80 < drawn.count(size) < 120 for size in drawn} == {(5, 3): True, (13, 8): True, (22, 14): True}


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.75])
def test_scaling_is_bilinear_without_smoothing_and_nearest(factor):
    generator = torch.Generator().manual_seed(0)
    image, labels = torch.rand(3, 33, 27, generator=generator), torch.randint(0, 255, (33, 27), dtype=torch.uint8)
    x, y = RandomScaleOf((factor,))(image, Mask(labels))
    size = (int(33 * factor), int(27 * factor))
    torch.testing.assert_close(x, F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0])
    expected = Image.fromarray(labels.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(y.numpy(), np.array(expected))
