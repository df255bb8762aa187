"""CCT's perturbations against slow re-derivations."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advcam_attr.networks.cct import Decoder
from advcam_attr.networks.cct_perturbations import (
    PERTURBATIONS,
    ContextMask,
    FeatureDrop,
    FeatureNoise,
    Guide,
    GuidedCutout,
    ObjectMask,
    SpatialDropout,
    VirtualAdversarial,
    contour_boxes,
)
from advcam_attr.networks.defaults import AUXILIARY
from advcam_attr.types import AdvCAMError

EMPTY = Guide(torch.zeros(2, 32, 32, dtype=torch.bool))


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).relu()


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(6, 5, steps=3).double()


def jagged(size: int = 120) -> np.ndarray:
    """A disc with a saw's edge: its contour has far more than 50 corners."""
    y, x = np.mgrid[:size, :size] - size / 2
    return np.hypot(y, x) < size / 3 + 3 * ((np.arctan2(y, x) * 40).astype(int) % 2)


def test_there_are_thirty_decoders_of_seven_kinds():
    assert sum(AUXILIARY.values()) == 30
    assert list(AUXILIARY) == list(PERTURBATIONS)


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_perturbations_keep_shapes_and_gradients_and_the_seed(name, features, decoder):
    if name == "cutout":
        pytest.importorskip("cv2")
    guide, found = Guide(torch.rand(2, 32, 32) > 0.5), []
    for _ in range(2):
        x = features.clone().requires_grad_(True)
        torch.manual_seed(4)
        out = PERTURBATIONS[name](x, guide, decoder)
        out.sum().backward()
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert x.grad is not None
        assert bool(x.grad.any())
        found.append(out.detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0], features)
    assert all(p.grad is None for p in decoder.parameters())


def test_masks_by_hand():
    """The main decoder's scores: foreground in the upper left quarter of 4 × 4 pixels, features of 2 × 2 cells."""
    scores = torch.zeros(1, 3, 4, 4)
    scores[:, 0] = 1
    scores[:, 2, :2, :2] = 2
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    guide = Guide.of(scores)
    assert ContextMask()(x, guide, nn.Identity()).flatten().tolist() == [1, 0, 0, 0]
    assert ObjectMask()(x, guide, nn.Identity()).flatten().tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_a_loop_over_cells(seed, features):
    guide = Guide(torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(seed)) > 0.5)
    context, objects = features.clone(), features.clone()
    for n in range(2):
        for i in range(4):
            for j in range(4):
                inside = bool(guide.foreground[n, 8 * i, 8 * j])  # the pixel that each cell of 8 × 8 begins with
                (objects if inside else context)[n, :, i, j] = 0
    assert torch.equal(ContextMask()(features, guide, nn.Identity()), context)
    assert torch.equal(ObjectMask()(features, guide, nn.Identity()), objects)
    assert torch.equal(context + objects, features)


@pytest.mark.parametrize("seed", range(4))
def test_feature_drop_zeroes_exactly_the_most_active_locations(seed, features):
    torch.manual_seed(seed)
    found = FeatureDrop()(features, EMPTY, nn.Identity()).numpy()
    torch.manual_seed(seed)
    gamma = 0.7 + float(torch.rand(())) * (0.9 - 0.7)
    x, dropped = features.numpy(), 0
    for n in range(2):
        activity = [[sum(x[n, c, i, j] for c in range(6)) / 6 for j in range(4)] for i in range(4)]
        highest = max(max(row) for row in activity)
        for i in range(4):
            for j in range(4):
                gone = activity[i][j] >= gamma * highest
                dropped += gone
                assert (found[n, :, i, j] == (0 if gone else x[n, :, i, j])).all()
    assert dropped >= 2  # at least the highest of each image


def test_feature_noise_is_shared_by_the_batch_and_bounded(features):
    torch.manual_seed(3)
    found = FeatureNoise(0.3)(features, EMPTY, nn.Identity())
    torch.manual_seed(3)
    noise = (torch.rand(6, 4, 4, dtype=torch.float64) * 2 - 1) * 0.3
    for n in range(2):
        for place in np.ndindex(6, 4, 4):
            assert float(found[n][place]) == pytest.approx(float(features[n][place]) * (1 + float(noise[place])))
    same = torch.ones(3, 6, 4, 4)
    alike = FeatureNoise()(same, EMPTY, nn.Identity())
    assert torch.equal(alike[0], alike[1])
    assert torch.equal(alike[0], alike[2])
    assert 0.7 <= float(alike.min()) < float(alike.max()) <= 1.3


def test_dropout_takes_whole_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(8, 256, 2, 2) + 0.5
    found = SpatialDropout(0.5)(x, EMPTY, nn.Identity())
    ratio = (found / x).flatten(2)
    assert set(ratio.round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(ratio.amin(2), ratio.amax(2).where(ratio.amax(2) < 1, ratio.amin(2)))
    assert float((ratio[..., 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_cutout_windows_equal_a_slow_rederivation():
    """Boxes by SciPy's labelling of connected pixels, windows by a loop over pixels."""
    pytest.importorskip("cv2")
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.zeros((200, 260), bool)
    mask[5:125, 10:130] = jagged()
    mask[70:190, 135:255] = jagged()
    guide = Guide(torch.from_numpy(mask)[None])
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert count == 2
    boxes = [(s[1].start, s[0].start, s[1].stop - 1, s[0].stop - 1) for s in ndimage.find_objects(labels)]
    assert sorted(guide.boxes[0]) == sorted(boxes)
    x = torch.rand(1, 2, 200, 260) + 0.1
    torch.manual_seed(9)
    found = GuidedCutout(0.4)(x, guide, nn.Identity())
    torch.manual_seed(9)
    expected = x.clone()
    for left, top, right, bottom in guide.boxes[0]:
        wide, high = right - left, bottom - top
        x0 = left + int(torch.randint(0, int(wide * 0.6) + 1, ()))
        y0 = top + int(torch.randint(0, int(high * 0.6) + 1, ()))
        for i in range(200):
            for j in range(260):
                if y0 <= i < y0 + int(0.4 * high) and x0 <= j < x0 + int(0.4 * wide):
                    expected[:, :, i, j] = 0
    assert torch.equal(found, expected)
    assert 0 < int((found == 0).sum()) < mask.size


def test_cutout_leaves_smooth_and_small_outlines_alone():
    pytest.importorskip("cv2")
    square = np.zeros((120, 120), bool)
    square[10:110, 10:110] = True
    assert contour_boxes(square) == []  # a rectangle's contour has four corners
    assert contour_boxes(square, least_points=3) == [(10, 10, 109, 109)]
    assert contour_boxes(square, least_points=4) == []
    assert contour_boxes(np.zeros((9, 9), bool), least_points=0) == []
    x = torch.rand(1, 2, 15, 15)
    assert torch.equal(GuidedCutout()(x, Guide(torch.from_numpy(square)[None]), nn.Identity()), x)


def test_cutout_without_opencv_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(AdvCAMError, match=r"needs OpenCV: pip install 'advcam_attr\[semi\]'"):
        GuidedCutout()(torch.zeros(2, 6, 4, 4), EMPTY, nn.Identity())


def test_virtual_adversarial_direction_by_finite_differences(features, decoder):
    """KL's gradient by single features, by differences; no autograd, no closed form."""
    vat, x = VirtualAdversarial(xi=1e-2), features[:1]
    torch.manual_seed(2)
    found = vat.direction(x, decoder)
    torch.manual_seed(2)
    start = torch.rand(x.shape, dtype=x.dtype) - 0.5
    start = start / start.norm()

    @torch.no_grad()
    def distance(d: torch.Tensor) -> float:
        p, q = decoder(x).softmax(1), decoder(x + 1e-2 * d).softmax(1)
        return float((p * (p.log() - q.log())).sum())

    gradient = torch.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = torch.zeros_like(x)
        step[place] = 1e-4
        gradient[place] = (distance(start + step) - distance(start - step)) / 2e-4
    assert float(F.cosine_similarity(found.flatten(), gradient.flatten(), 0)) > 1 - 1e-6


def test_virtual_adversarial_steps_have_the_length_and_hurt(features, decoder):
    torch.manual_seed(0)
    moved = VirtualAdversarial()(features, EMPTY, decoder) - features
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 2.0])

    @torch.no_grad()
    def distance(step: torch.Tensor) -> float:
        return float(F.kl_div(decoder(features + step).log_softmax(1), decoder(features).softmax(1), reduction="sum"))

    random = torch.randn(20, *moved.shape, dtype=moved.dtype)
    lengths = random.flatten(2).norm(dim=2)[..., None, None, None]
    assert distance(moved) > max(distance(2 * one / length) for one, length in zip(random, lengths, strict=True))


def test_virtual_adversarial_needs_float64():
    torch.manual_seed(0)
    x, decoder = torch.rand(1, 64, 20, 20).sub(0.3).relu(), Decoder(64, 21, 3)
    torch.manual_seed(1)
    precise = VirtualAdversarial().direction(x, decoder.float())
    torch.manual_seed(1)
    assert torch.equal(precise, VirtualAdversarial().direction(x, decoder.double()))
    decoder.float()
    d = F.normalize((torch.rand(x.shape) - 0.5).flatten(), dim=0).view_as(x).requires_grad_(True)
    divergence = F.kl_div(decoder(x + 1e-6 * d).log_softmax(1), decoder(x).softmax(1).detach(), reduction="batchmean")
    gradient = torch.autograd.grad(divergence, d)[0]
    assert abs(float(F.cosine_similarity(gradient.flatten().double(), precise.flatten(), 0))) < 0.1
    assert float(gradient.norm()) < 1e-9  # beside the 1e-8 of the released code's normalisation


def test_a_prediction_without_contrast_has_no_adversary():
    constant = Decoder(6, 5, steps=1)
    nn.init.zeros_(constant[0].weight)
    x = torch.rand(2, 6, 4, 4)
    assert torch.equal(VirtualAdversarial()(x, EMPTY, constant), x)
