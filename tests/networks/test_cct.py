"""CCT's net: perturbations against slow second readings, decoders, the encoder and its published weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cct import (
    CCT,
    DEEP_BASE,
    Decoder,
    PyramidPooling,
    cct_net,
    deep_base_weights,
    doubling_steps,
    icnr,
)
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
from advcam_attr.networks.checkpoint import Checkpoint, load_weights
from advcam_attr.networks.defaults import AUXILIARY
from advcam_attr.types import AdvCAMError
from build_net import build_net

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


# --- perturbations ----------------------------------------------------------------------------------------------------


def test_there_are_thirty_decoders_of_seven_kinds():
    assert sum(AUXILIARY.values()) == 30
    assert list(AUXILIARY) == list(PERTURBATIONS)


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_every_perturbation_keeps_the_shape_lets_gradients_through_and_repeats_under_a_seed(name, features, decoder):
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


def test_cutout_windows_are_those_of_a_slow_second_reading():
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


def test_virtual_adversarial_direction_is_that_of_finite_differences(features, decoder):
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


def test_virtual_adversarial_in_float32_is_lost_in_rounding_and_so_computed_in_float64():
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


# --- decoders and encoder ---------------------------------------------------------------------------------------------


def test_decoder_is_a_loop_over_pixels():
    torch.manual_seed(0)
    decoder, x = Decoder(3, 2, steps=1).double(), torch.randn(1, 3, 2, 3, dtype=torch.float64)
    first, doubling = decoder[0].weight.detach().numpy()[..., 0, 0], decoder[1][0]
    weight, bias = doubling.weight.detach().numpy()[..., 0, 0], doubling.bias.detach().numpy()
    found = decoder(x)
    assert found.shape == (1, 2, 4, 6)
    for k, i, j in np.ndindex(2, 4, 6):
        cell = first @ x[0, :, i // 2, j // 2].numpy()
        channel = 4 * k + 2 * (i % 2) + j % 2
        assert float(found[0, k, i, j].detach()) == pytest.approx(max(0.0, weight[channel] @ cell + bias[channel]))


def test_icnr_begins_without_a_checkerboard():
    torch.manual_seed(0)
    weight = torch.empty(12, 5, 1, 1)
    icnr(weight)
    shuffled = F.pixel_shuffle(F.conv2d(torch.randn(1, 5, 3, 3), weight), 2)
    assert torch.equal(shuffled, F.interpolate(shuffled[..., ::2, ::2], scale_factor=2, mode="nearest"))
    assert len(weight.unique()) == 3 * 5


def test_pyramid_is_means_over_regions():
    torch.manual_seed(0)
    pyramid, x = PyramidPooling(4, 2).double().eval(), torch.rand(1, 4, 6, 6, dtype=torch.float64)
    for branch, size in zip(pyramid.branches, (1, 2, 3, 6), strict=True):
        cell = 6 // size
        weight = branch[1].weight.detach().numpy()[..., 0, 0]
        found = branch(x).detach().numpy()[0]
        for i, j in np.ndindex(size, size):
            mean = x[0, :, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean((1, 2)).numpy()
            assert found[:, i, j] == pytest.approx(np.maximum(weight @ mean / np.sqrt(1 + 1e-5), 0))
    assert pyramid.bottleneck[0].weight.shape == (2, 4 + 4 * 2, 3, 3)


@pytest.fixture(scope="module")
def released() -> CCT:
    return cct_net(Backbone(DEEP_BASE, random_weights=True), 21, channels=8)


def test_released_net_has_its_shape(released):
    net = released
    assert (net.stride, len(net.auxiliary)) == (8, 30)
    with torch.device("meta"):
        pyramid = PyramidPooling(2048, 2048 // 4)
    assert pyramid.bottleneck[0].weight.shape == (512, 4096, 3, 3)
    stem = [m for m in net.backbone.conv1 if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in stem] == [64, 64, 128]
    assert [m.kernel_size for m in stem] == [(3, 3)] * 3
    dilations = [[b.conv2.dilation[0] for b in layer] for layer in (net.backbone.layer3, net.backbone.layer4)]
    assert dilations == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    assert (net.mean, net.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published(net: nn.Module) -> dict[str, torch.Tensor]:
    """The backbone's weights by the keys of the published file."""
    names = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3."}
    weights = {}
    for key, value in net.state_dict().items():
        new = next((own + key.removeprefix(timm) for timm, own in names.items() if key.startswith(timm)), key)
        new = "bn3." + key.removeprefix("bn1.") if key.startswith("bn1.") else new
        weights[new] = torch.full(value.shape, float(len(weights)), dtype=torch.float16)
    return {**weights, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def test_published_weights_are_read_by_their_keys(tmp_path, released):
    net, weights = released, published(released.backbone)
    torch.save(weights, tmp_path / "3x3resnet50-imagenet.pth")
    read = cct_net(Backbone(DEEP_BASE, checkpoint=tmp_path / "3x3resnet50-imagenet.pth"), 21, auxiliary={}, channels=8)
    for mine, theirs in (("conv1.3.weight", "conv2.weight"), ("bn1.bias", "bn3.bias"), ("conv1.4.weight", "bn2.weight"),
                         ("layer4.2.bn3.running_mean", "layer4.2.bn3.running_mean")):  # fmt: skip
        assert torch.equal(read.backbone.state_dict()[mine], weights[theirs].float())
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    assert deep_base_weights(Checkpoint(Path("x"), wrapped, {})).weights.keys() == net.backbone.state_dict().keys()
    damaged = Checkpoint(Path("x.pth"), {**weights, "odd.weight": torch.zeros(1)}, {})
    del damaged.weights["layer1.0.conv1.weight"]
    with pytest.raises(AdvCAMError, match=r"1 missing keys \(layer1.0.conv1.weight\) and 1 unexpected keys \(odd"):
        load_weights(net.backbone, deep_base_weights(damaged), DEEP_BASE)


def test_pairs_are_what_the_parts_say():
    few = {"context_mask": 1, "object_mask": 2}
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary=few, channels=8)
    x = torch.rand(2, 2, 3, 32, 64)
    with torch.no_grad():
        found = net(x)
        assert torch.equal(found[:, 0], net(x[:, 0]))
        assert torch.equal(found[:, 1], net(x[:, 1]))
        features = net.features(x[:, 1])
        guide = Guide.of(found[:, 1])
        for n, decoder in enumerate(net.auxiliary):
            assert torch.equal(found[:, 2 + n], decoder(features, guide))
    assert found.shape == (2, 5, 4, 32, 64)
    alone = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary={}, channels=8)
    assert alone(x).shape == (2, 1, 4, 32, 64)
    assert [type(d.perturbation) for d in net.auxiliary] == [ContextMask, ObjectMask, ObjectMask]


def test_guides_take_no_gradient_and_decoders_have_weights_of_their_own():
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary={"context_mask": 2}, channels=8)
    net(torch.rand(2, 2, 3, 32, 32))[:, 2].sum().backward()
    for untouched in (net.main, net.auxiliary[1]):
        assert not any(p.grad is not None and bool(p.grad.any()) for p in untouched.parameters())
    assert any(bool(p.grad.any()) for p in net.auxiliary[0].parameters())
    assert not torch.equal(net.auxiliary[0].decoder[0].weight, net.auxiliary[1].decoder[0].weight)


def test_norms_are_trained_or_frozen():
    for norms in ("trained", "frozen"):
        net = cct_net(
            Backbone("timm/test_resnet", random_weights=True), 3, auxiliary={}, channels=8, norms=norms
        ).train()
        inner = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert inner
        assert all(m.training == m.weight.requires_grad == (norms == "trained") for m in inner)
        assert all(m.training for m in net.pyramid.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": DEEP_BASE, "random_weights": False}, "give checkpoint 3x3resnet50-imagenet.pth, or random"),
        ({"name": "resnet50"}, "made of deepbase_resnet50 or timm/NAME"),
        ({"auxiliary": {"cutuot": 1}}, "cutout"),
        ({"auxiliary": {"vat": -1}}, "vat: there cannot be -1 decoders"),
        ({"stride": 12}, "power of two, got 12"),
        ({"num_classes": 1}, "a net of 1 classes"),
        ({"channels": 0}, "0 channels"),
    ],
)
def test_bad_requests_are_one_line(changes, message):
    with pytest.raises(AdvCAMError, match=message):
        build_net(cct_net, **({"name": "timm/test_resnet", "num_classes": 3} | changes))


def test_sides_and_strides_must_fit():
    net = cct_net(Backbone("timm/test_resnet", random_weights=True), 3, auxiliary={}, channels=8)
    with pytest.raises(AdvCAMError, match="33x32 pixels: sides must be multiples of 8"):
        net(torch.zeros(1, 3, 32, 33))
    assert [doubling_steps(stride) for stride in (1, 2, 32)] == [0, 1, 5]
