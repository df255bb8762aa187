"""Recipes: the released loop against a slow re-derivation, the paper's equations, and coercion of names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr import AdvCAM, AdvCAMError, Recipe
from advcam_attr.climbing import LinfStep, RestrictHighAttributions, TargetMinusOthers, ThresholdMask, recipes


class SeedNet(nn.Module):
    """As the released classifier: a trunk, a bias-free 1x1 convolution, and the mean of its logit maps."""

    def __init__(self, classes: int = 6, channels: int = 10) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, channels, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Conv2d(channels, classes, 1, bias=False)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.trunk(x), 1)).flatten(1)


def released_loop(
    net: SeedNet, image: Tensor, c: int, count: int, xi: float = 0.08, lam: float = 7.0, tau: float = 0.5
) -> Tensor:
    """One image, one class, one scale, as the released code has it: two backwards, Grad-CAM by gradients."""
    x = torch.stack([image, image.flip(-1)])
    total = first = None
    for it in range(count):
        x = x.detach().requires_grad_()
        f = net.trunk(x)
        z = F.conv2d(f, net.classifier.weight)
        gradient = torch.autograd.grad(z[:, c].relu().sum(), f, retain_graph=True)[0]
        alpha = gradient.sum((2, 3), keepdim=True) / (gradient > 0).sum()
        r = (alpha * f).sum(1).relu()
        r = r[0] + r[1].flip(-1)
        if it == 0:
            first = r.detach()
        total = r.detach() if total is None else total + r.detach()
        y = z.relu().mean((2, 3))
        logit = (2 * y[:, c] - y.sum(1)).sum()
        mask = (r / r.max() > tau).detach()
        loss = logit - lam * ((r - first).abs() * mask).sum()
        step = torch.autograd.grad(loss, x)[0]
        low, high = x.detach().min(), x.detach().max()
        x = (x.detach() + xi * step / (step.abs().max() + 1e-12)).clamp(low, high)
    assert total is not None
    return total


@pytest.fixture(scope="module")
def net() -> SeedNet:
    return SeedNet().eval()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    noise = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return F.avg_pool2d(noise, 5, 1, 2) * 3


@pytest.mark.parametrize("c", [0, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 8, 27])
def test_official_equals_the_released_loop_at_one_scale(net, photos, c, count):
    expected = torch.stack([released_loop(net, photo, c, count) for photo in photos])
    assert expected.amax() > 0
    found = AdvCAM(net, recipe="official", scales=1.0).attribute(photos, target=c, steps=count - 1, output="native")
    found = found[:, 0] / recipes.released_schedule(count - 1, 1.0)[1]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("recipe", "lam", "steps", "count", "half", "factor"),
    [
        ("official", 7.0, None, 27, 13, 2.0),
        ("official", 7.0, 7, 8, 5, 1.0),
        ("official", 7.0, 3, 4, 4, 1.0),
        ("official", 7.0, 9, 10, 5, 1.0),
        ("official", 7.0, 10, 11, 5, 2.0),
        ("official_wrn38", 2.0, None, 8, 5, 1.0),
    ],
)
def test_official_equals_the_released_loop_over_scales(net, photos, recipe, lam, steps, count, half, factor):
    """Of 6 to 10 maps, scale 0.5 has five and no factor makes up for it, as in the released code."""
    expected = torch.zeros(2, 12, 16, dtype=torch.float64)
    for scale in (0.5, 1.0, 1.5, 2.0):
        size = [round(48 * scale), round(64 * scale)]
        scaled = F.interpolate(photos, size, mode="bicubic", antialias=True) if scale != 1 else photos
        for i, photo in enumerate(scaled):
            r = factor * released_loop(net, photo, 2, half if scale == 0.5 else count, lam=lam)
            expected[i] += F.interpolate(r[None, None], (12, 16), mode="bilinear", align_corners=False)[0, 0]
    options = {} if steps is None else {"steps": steps}
    found = AdvCAM(net, recipe=recipe).attribute(photos, target=2, output="native", **options)[:, 0]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_paper_equals_its_equations(net, photos):
    xi, lam, tau = 0.5, 0.03, 0.5
    x, total, first = photos[:1], None, None
    for _ in range(5):
        x = x.detach().requires_grad_()
        f = net.trunk(x)
        cam = torch.einsum("c,nchw->nhw", net.classifier.weight[1, :, 0, 0], f)
        first = cam.detach() if first is None else first
        total = cam.detach() if total is None else total + cam.detach()
        y = net(x)[0]
        mask = cam > tau * cam.max()
        loss = y[1] - (y.sum() - y[1]) - lam * ((cam - first).abs() * mask).sum()
        x = x.detach() + xi * torch.autograd.grad(loss, x)[0]
    changes = {"steps": 4, "step_rule": recipes.RawStep(xi), "regularizers": RestrictHighAttributions(lam)}
    found = AdvCAM(net, recipe="paper", **changes).attribute(photos[:1], target=1, output="native")[:, 0]
    assert torch.allclose(found, total, rtol=1e-9, atol=1e-9)


def test_auto_does_not_depend_on_the_scale_or_offset_of_logits(net, photos):
    class Rescaled(nn.Module):
        def __init__(self, factor: float, offset: float) -> None:
            super().__init__()
            self.net, self.factor, self.offset = net, factor, offset

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.factor + self.offset

    expected = AdvCAM(net).attribute(photos, target=3, normalize=True)
    for factor, offset in ((1e-3, 0.0), (40.0, 7.0)):
        found = AdvCAM(Rescaled(factor, offset).eval()).attribute(photos, target=3, normalize=True)
        assert torch.allclose(found, expected, atol=1e-6)


def test_names_numbers_and_objects_are_one():
    by_name = recipes.get(
        "auto", objective="minus_sum", mask=0.3, step_rule=0.05, regularizers=2.5, flip=True, scales=2
    )
    by_object = recipes.get(
        "auto", objective=TargetMinusOthers("sum"), mask=ThresholdMask(0.3), step_rule=LinfStep(0.05),
        regularizers=(RestrictHighAttributions(2.5, reduce="mean"),), flip="pair", scales=(2.0,),
    )  # fmt: skip
    assert by_name == by_object
    assert recipes.get("auto", regularizers=0).regularizers == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"step": 3}, AdvCAMError, "did you mean 'steps'"),
        ({"objective": "minus_some"}, AdvCAMError, "did you mean 'minus_sum'"),
        ({"clamp": "curent"}, AdvCAMError, "did you mean 'current'"),
        ({"mask": [1]}, TypeError, "mask must be a name or a callable"),
        ({"steps": -1}, AdvCAMError, "negative"),
        ({"steps": 2.5}, TypeError, "int"),
        ({"scales": (1.0, -1)}, AdvCAMError, "scales"),
        ({"scales": ()}, AdvCAMError, "scales"),
        ({"flip": "both"}, AdvCAMError, "flip"),
        ({"mask": 2.0}, AdvCAMError, "threshold"),
        ({"regularizers": -2.0}, AdvCAMError, "weight"),
        ({"stop": -1.0}, AdvCAMError, "growth"),
        ({"step_rule": -1.0}, AdvCAMError, "size"),
        ({"step_rule": float("nan")}, AdvCAMError, "size"),
        ({"scales": float("inf")}, AdvCAMError, "scales"),
    ],
)
def test_bad_parts_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        recipes.get("auto", **changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "oficial"}, AdvCAMError, "did you mean 'official'"),
        ({"recipe": 3}, TypeError, "Recipe"),
        ({"base": "gradcam"}, AdvCAMError, "did you mean 'grad_cam"),
        ({"base": 3}, TypeError, "base"),
    ],
)
def test_unknown_recipes_and_bases_raise(net, options, error, message):
    with pytest.raises(error, match=message):
        AdvCAM(net, **options)


def test_every_recipe_cites_its_source():
    assert all(isinstance(r, Recipe) and r.source for r in recipes.RECIPES.values())


def test_official_has_the_released_numbers():
    official = recipes.get("official")
    assert official.steps + 1 == 27
    assert official.step_rule == LinfStep(0.08)
    assert official.mask == ThresholdMask(0.5)
    assert official.regularizers == (RestrictHighAttributions(7.0, reduce="sum"),)
    assert official.scales == (0.5, 1.0, 1.5, 2.0)
