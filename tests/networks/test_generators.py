"""Published generators: keys and shapes, slow re-derivations of their forwards, files."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr import CAM, AdvCAM, AdvCAMError, heads
from advcam_attr.attr.adapters import SEAMBase, base_of
from advcam_attr.networks import seam as seam_module
from advcam_attr.networks.generators import load_generator
from advcam_attr.networks.resnet38 import ResNet38
from advcam_attr.networks.sc_cam import SCCAM
from advcam_attr.networks.seam import SEAM, correlated, normalised
from places import ROOT
from wrn38 import randomised, slow_features, trunk_shapes

HEADS: dict[str, tuple[type[ResNet38], dict[str, int], dict[str, tuple[int, ...]]]] = {
    "seam": (
        SEAM, {},
        {"fc8": (21, 4096, 1, 1), "f8_3": (64, 512, 1, 1), "f8_4": (128, 1024, 1, 1), "f9": (192, 195, 1, 1)},
    ),
    "sc_cam": (SCCAM, {}, {"fc8_20": (20, 4096, 1, 1), "fc8_200": (200, 4096, 1, 1)}),
    "sc_cam, first round": (SCCAM, {"subcategories": 0}, {"fc8": (20, 4096, 1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_keys_and_shapes_are_the_authors(name):
    kind, options, head = HEADS[name]
    with torch.device("meta"):
        net = kind(**options)
    found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert found == trunk_shapes() | {f"{layer}.weight": shape for layer, shape in head.items()}


@pytest.fixture(scope="module")
def seam() -> SEAM:
    net = randomised(SEAM(classes=4, width=2))
    assert isinstance(net, SEAM)
    with torch.no_grad():  # features are never negative: without this, a class would win or lose in all places
        net.fc8.weight -= net.fc8.weight.mean(1, keepdim=True)
    return net


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Two images of 33 x 47: neither side is a multiple of the stride."""
    noise = torch.randn(2, 3, 33, 47, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return F.avg_pool2d(noise, 5, 1, 2) * 3


def slow_refined(state: dict[str, Tensor], image: Tensor, cam: Tensor, conv4: Tensor, conv5: Tensor) -> Tensor:
    """SEAM's correlation module for one image, cell by cell: ``(1 + K, h, w)`` to the same."""
    classes, h, w = cam.shape
    n = np.zeros((classes, h, w))
    for k in range(1, classes):
        r = np.maximum(cam[k].numpy(), 0)
        n[k] = np.maximum(r - 1e-5, 0) / (r.max() + 1e-5)
    for i, j in np.ndindex(h, w):
        strongest = n[1:, i, j].max()
        n[1:, i, j] = [v if v == strongest else 0 for v in n[1:, i, j]]
        n[0, i, j] = 1 - strongest
    _, height, width = image.shape
    embedding = np.zeros((h, w, 192))
    for i, j in np.ndindex(h, w):
        y, x = i * (height - 1) / (h - 1), j * (width - 1) / (w - 1)  # corners are aligned
        top, left = min(int(y), height - 2), min(int(x), width - 2)
        dy, dx = y - top, x - left
        pixel = (
            (1 - dy) * (1 - dx) * image[:, top, left] + (1 - dy) * dx * image[:, top, left + 1]
            + dy * (1 - dx) * image[:, top + 1, left] + dy * dx * image[:, top + 1, left + 1]
        )  # fmt: skip
        a = (state["f8_3.weight"][:, :, 0, 0] @ conv4[:, i, j]).clamp_min(0)
        b = (state["f8_4.weight"][:, :, 0, 0] @ conv5[:, i, j]).clamp_min(0)
        f = (state["f9.weight"][:, :, 0, 0] @ torch.cat([pixel, a, b])).numpy()
        embedding[i, j] = f / (np.sqrt((f**2).sum()) + 1e-5)
    refined = np.zeros_like(n)
    for i, j in np.ndindex(h, w):
        affinity = np.maximum(embedding @ embedding[i, j], 0)
        refined[:, i, j] = (n * affinity / (affinity.sum() + 1e-5)).sum((1, 2))
    return torch.from_numpy(refined)


def slow_seam(net: SEAM, images: Tensor) -> tuple[Tensor, Tensor]:
    state = {key: value.detach() for key, value in net.state_dict().items()}
    conv4, conv5, conv6 = slow_features(state, images)
    cam = torch.einsum("kc,nchw->nkhw", state["fc8.weight"][:, :, 0, 0], conv6)
    parts = zip(images, cam, conv4, conv5, strict=True)
    return cam, torch.stack([slow_refined(state, *one) for one in parts])


@pytest.fixture
def thin_blocks(monkeypatch):
    """Blocks of seven of the thirty columns of the affinity matrix."""
    monkeypatch.setattr(seam_module, "_BLOCK", 7 * 30)


def test_seam_equals_its_equations(seam, photos, thin_blocks):
    cam, refined = slow_seam(seam, photos)
    maps = seam.class_maps(photos)
    for found, expected in ((maps.cam, cam), (maps.refined, refined)):
        upsampled = F.interpolate(expected, (33, 47), mode="bilinear", align_corners=True)
        assert torch.allclose(found, upsampled, rtol=1e-8, atol=1e-8)
    assert torch.allclose(seam(photos), cam[:, 1:].mean((2, 3)), rtol=1e-9)
    assert not maps.refined.requires_grad
    alone = torch.cat([seam.class_maps(photo[None]).refined for photo in photos])
    assert torch.allclose(alone, maps.refined, rtol=1e-9)


def test_golden_correlation():
    """Cells 0 and 1 look alike, cell 2 is at a right angle, cell 3 points away: no weight is negative."""
    embedding = torch.tensor([[2.0, 5.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])[None, :, None]
    maps = torch.tensor([[1.0, 3.0, 5.0, 7.0], [0.0, 1.0, 0.0, 0.0]])[None, :, None]
    found = correlated(maps, embedding)[0, :, 0]
    assert torch.allclose(found, torch.tensor([[2.0, 2.0, 5.0, 7.0], [0.5, 0.5, 0.0, 0.0]]), atol=1e-4)


def test_golden_normalised_copy():
    """The strongest class stays (equal ones all do), nowhere positive ones stay 0; the background is what is left."""
    cam = torch.tensor([[7.0, 7.0, 7.0], [2.0, 4.0, -3.0], [5.0, 10.0, 8.0], [-1.0, -2.0, 0.0]])[None, :, None]
    found = normalised(cam)[0, :, 0]
    expected = torch.tensor([[0.5, 0.0, 0.2], [0.0, 0.0, 0.0], [0.5, 1.0, 0.8], [0.0, 0.0, 0.0]])
    assert torch.allclose(found, expected, atol=1e-5)
    assert normalised(torch.tensor([0.0, 2.0, 2.0])[None, :, None, None]).flatten().tolist() == pytest.approx(
        [0, 1, 1], abs=1e-4
    )


@pytest.mark.parametrize("options", [{"subcategories": 12}, {"subcategories": 0}])
def test_sc_cam_scores_are_the_means_of_its_maps(photos, options):
    net = randomised(SCCAM(classes=4, width=2, **options))
    assert isinstance(net, SCCAM)
    acts = heads.view(net)(photos)
    assert acts.head.exactness == "exact"
    own = F.conv2d(net.features(photos).conv6, net.classifier.weight)
    for k in range(4):
        cam = CAM.maps(acts, torch.tensor([k, k]))
        assert torch.allclose(cam, own[:, k], rtol=1e-10, atol=1e-12)
        assert torch.allclose(cam.mean((1, 2)), net(photos)[:, k], rtol=1e-10)
    assert torch.equal(net.class_maps(photos), own.relu())


def test_seam_has_an_exact_head_of_its_foreground_classes(seam, photos):
    view = heads.view(seam)
    acts = view(photos)
    assert (acts.head.exactness, acts.head.classes, acts.head.channels) == ("exact", 4, 128)
    assert acts.head.grid == (5, 6)
    own = seam.fc8(acts.features)
    for k in range(4):
        cam = CAM.maps(acts, torch.tensor([k, k]))
        assert torch.allclose(cam, own[:, 1 + k], rtol=1e-10, atol=1e-12)
        assert torch.allclose(cam.mean((1, 2)), acts.logits[:, k], rtol=1e-10)
    assert torch.allclose(acts.all_class_weights(), seam.fc8.weight[1:, :, 0, 0], atol=1e-12)


def test_zero_steps_of_seam_are_its_own_map_in_one_forward(seam, photos):
    forwards = []
    advcam = AdvCAM(seam, base=base_of(seam), recipe="official_wrn38", steps=0, scales=1.0, flip=False)
    advcam.view.inspect(photos)
    handle = seam.conv1a.register_forward_hook(lambda *_: forwards.append(1))
    found = advcam.attribute(photos, target=[3, 0], output="native")[:, 0]
    handle.remove()
    _, refined = slow_seam(seam, photos)
    assert len(forwards) == 1
    assert torch.allclose(found, torch.stack([refined[0, 4], refined[1, 1]]).to(found), rtol=1e-5, atol=1e-6)


def released_loop_on_seam(net: SEAM, image: Tensor, c: int, count: int) -> Tensor:
    """One image and class at one scale: climbed and held before the correlation module, summed after it."""
    weight = net.fc8.weight[1:]
    x = torch.stack([image, image.flip(-1)])
    total, first = torch.zeros(()), None
    for _ in range(count):
        x = x.detach().requires_grad_()
        conv4, conv5, f = net.features(x)
        z = F.conv2d(f, weight)
        gradient = torch.autograd.grad(z[:, c].relu().sum(), f, retain_graph=True)[0]
        alpha = gradient.sum((2, 3), keepdim=True) / (gradient > 0).sum()
        r = (alpha * f).sum(1).relu()
        r = r[0] + r[1].flip(-1)
        first = r.detach() if first is None else first
        parts = zip(x.detach(), net.fc8(f).detach(), conv4.detach(), conv5.detach(), strict=True)
        image_map, mirror = (slow_refined(net.state_dict(), *one)[1 + c] for one in parts)
        total = total + image_map + mirror.flip(-1)
        y = z.relu().mean((2, 3))
        mask = (r / r.max() > 0.5).detach()
        loss = (2 * y[:, c] - y.sum(1)).sum() - 2.0 * ((r - first).abs() * mask).sum()
        step = torch.autograd.grad(loss, x)[0]
        low, high = x.detach().min(), x.detach().max()
        x = (x.detach() + 0.08 * step / (step.abs().max() + 1e-12)).clamp(low, high)
    return total


def test_climbing_seam_equals_the_released_loop(seam, photos, thin_blocks):
    base = base_of(seam)
    assert isinstance(base, SEAMBase)
    advcam = AdvCAM(seam, base=base, recipe="official_wrn38", scales=1.0)
    steps = []
    found = advcam.attribute_classes(photos, [[2, 0], [2, 1]], output="native", on_step=steps.append)
    assert len(steps) == 8
    for i, c in ((0, 2), (1, 1)):
        expected = released_loop_on_seam(seam, photos[i], c, 8)
        assert expected.std() > 0.05
        assert torch.allclose(found[i][i, 0], expected.to(found[i]), rtol=1e-4, atol=1e-4 * float(expected.max()))
    plain = AdvCAM(seam, recipe="official_wrn38", scales=1.0).attribute(photos, target=2, output="native")
    assert not torch.allclose(plain[0, 0] / plain[0].max(), found[0][0, 0] / found[0][0].max(), atol=0.1)


def test_base_of_other_nets_is_the_class_map(photos):
    net = randomised(SCCAM(classes=3, subcategories=6, width=1))
    found = AdvCAM(net, base=base_of(net), steps=2, scales=(0.5, 1.0)).attribute(photos, target=2)
    assert torch.equal(found, AdvCAM(net, steps=2, scales=(0.5, 1.0)).attribute(photos, target=2))


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("seam", SEAM(classes=6, width=1)),
        ("sc_cam", SCCAM(classes=5, subcategories=15, width=1)),
        ("sc_cam", SCCAM(classes=5, subcategories=0, width=1)),
    ],
)
def test_generators_load_from_their_authors_keys(tmp_path, name, net):
    randomised(net).float()
    weights = {f"module.{key}": value for key, value in net.state_dict().items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "net.pth")
    state = torch.get_rng_state()
    loaded = load_generator(name, tmp_path / "net.pth")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(net)
    assert not loaded.training
    x = torch.rand(1, 3, 24, 24)
    assert torch.equal(loaded(x), net(x))
    assert (loaded.stride, loaded.mean, loaded.std) == (8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("seam", {"f9.weight": None}, r"does not fit seam: 1 missing keys \(f9\.weight\)"),
        ("seam", {"f8_5.weight": torch.ones(1)}, r"1 unexpected keys \(f8_5\.weight\)"),
        ("seam", {"fc8.weight": None}, r"1 missing keys \(fc8\.weight\)"),
        ("seam", {"b4_5.conv_branch2a.weight": torch.ones(8, 8, 1, 1)}, r"b4_5\.conv_branch2a.* for \(8, 8, 3, 3\)"),
        ("seam", {"bn7.bias": torch.full((64,), torch.nan)}, r"NaN or infinite weights in bn7\.bias"),
        ("seam", {"fc8.weight": torch.tensor(1.0)}, r"fc8\.weight \(\)"),
        ("sc_cam", {}, r"sc_cam: 3 unexpected keys \(f8_3\.weight, f8_4\.weight, f9\.weight\)"),
        ("sc-cam", {}, r"unknown generator 'sc-cam'; did you mean 'sc_cam'"),
    ],
)
def test_wrong_files_raise(tmp_path, name, change, message):
    weights = {k: v for k, v in (SEAM(classes=6, width=1).state_dict() | change).items() if v is not None}
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(AdvCAMError, match=message) as error:
        load_generator(name, tmp_path / "net.pth")
    assert "\n" not in str(error.value)


def test_the_page_on_generators_runs():
    page = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "docs/generators.md", "exec"), names)
    maps = names["maps"]
    assert isinstance(maps, Tensor)
    assert maps.amax((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.05)
    assert (maps.amin((1, 2, 3)) < maps.amax((1, 2, 3)) - 1e-3).all()


def test_training_mode_is_left_and_has_no_effect(seam, photos):
    expected = AdvCAM(seam, base=base_of(seam), steps=1).attribute(photos, target=1)
    seam.train()
    found = AdvCAM(seam, base=base_of(seam), steps=1).attribute(photos, target=1)
    assert seam.training
    assert seam.dropout7.training
    seam.eval()
    assert torch.equal(found, expected)
