"""Heads: golden values on hand-set nets, the identity in float64 as an oracle, and heads without CAM."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr import heads
from advcam_attr.types import AdvCAMError

C, K = 6, 4


class Net(nn.Module):
    """A trunk with stride 2, and a head given as a function of the trunk's output."""

    def __init__(self, head, **parts: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, C, 3, 2, 1), nn.ReLU(), nn.Conv2d(C, C, 3, 1, 1))
        self.parts = nn.ModuleDict(parts)
        self.head = head
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for module in self.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                    module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x), self.parts)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


#: By name: the layout of the pooled tensor, and the head.
EXACT = {
    "linear": ("NCHW", lambda f, p: p["fc"](F.adaptive_avg_pool2d(F.relu(f), 1).flatten(1))),
    "in-place activation": (
        "NCHW",
        lambda f, p: p["fc"](F.adaptive_avg_pool2d(F.relu(f, inplace=True), 1).flatten(1)),
    ),
    "1x1 conv": ("NCHW", lambda f, p: p["conv"](F.avg_pool2d(f, f.shape[-2:])).flatten(1)),
    "affine norm": ("NCHW", lambda f, p: p["fc"](p["bn"](f.mean((2, 3))))),
    "two averaged heads": ("NCHW", lambda f, p: _dual(f.mean([2, 3]), p)),
    "NHWC": ("NHWC", lambda f, p: p["fc"](F.gelu(f.permute(0, 2, 3, 1)).mean((1, 2)))),
    "tokens": ("NLC", lambda f, p: p["fc"](F.gelu(tokens(f)).mean(1))),
    "tokens after a class token": (
        "NLC",
        lambda f, p: p["fc"](torch.cat([tokens(f).sum(1, keepdim=True).tanh(), tokens(f)], 1)[:, 1:].mean(dim=1)),
    ),
    "channels first tokens": ("NCL", lambda f, p: p["fc"](f.flatten(2).mean(-1))),
    "one side after the other": ("NCHW", lambda f, p: p["fc"](f.mean(3).mean(2))),
    "class maps, then pool": ("NCHW", lambda f, p: F.adaptive_avg_pool2d(F.relu(p["conv"](f)), (1, 1)).flatten(1)),
}


def _dual(pooled: Tensor, parts: nn.ModuleDict) -> Tensor:
    return (parts["fc"](pooled) + parts["other"](pooled)) / 2


def handmade_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


NORMS = {
    "layer norm": lambda f, p: p["fc"](F.layer_norm(f.mean((2, 3)), (C,), p["ln"].weight, p["ln"].bias)),
    "group norm": lambda f, p: p["fc"](F.group_norm(f.mean((2, 3), keepdim=True), 2, p["ln"].weight).flatten(1)),
    "rms norm": lambda f, p: p["fc"](F.rms_norm(f.mean((2, 3)), (C,), p["ln"].weight)),
    "normalize": lambda f, p: p["fc"](F.normalize(f.mean((2, 3)))),
    "rms norm by hand": lambda f, p: p["fc"](handmade_rms(f.mean((2, 3))) * p["ln"].weight),
}


def images(count: int = 3, size: tuple[int, int] = (16, 20)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def constants(view: heads.HeadView, x: Tensor) -> Tensor:
    """logit minus the mean of the class map, for every image and class: ``(N, K)``."""
    acts = view(x)
    columns = []
    for k in range(acts.logits.shape[1]):
        target = torch.full((len(x),), k)
        cam = torch.einsum("bc,bchw->bhw", acts.class_weights(target), acts.features)
        columns.append(acts.logits[:, k] - cam.mean((1, 2)))
    return torch.stack(columns, 1).detach()


def test_golden_class_weights(tiny):
    acts = heads.view(tiny)(torch.rand(2, 3, 4, 4))
    assert acts.class_weights(torch.tensor([0, 1])).tolist() == [[2.0, 0.0], [0.0, -3.0]]
    assert acts.all_class_weights().tolist() == [[2.0, 0.0], [0.0, -3.0]]


@pytest.mark.parametrize("name", EXACT)
def test_exact_heads_have_one_constant_for_all_images(name):
    layout, head = EXACT[name]
    parts = {"fc": nn.Linear(C, K), "other": nn.Linear(C, K), "bn": nn.BatchNorm1d(C), "conv": nn.Conv2d(C, K, 1)}
    view = heads.view(Net(head, **parts))
    found = view.inspect(images())
    assert (found.exactness, found.layout, found.grid) == ("exact", layout, (8, 10))
    constant = constants(view, images())
    assert torch.allclose(constant, constant[:1], atol=1e-12)
    assert torch.allclose(view(images()).logits, view.model(images()))


@pytest.mark.parametrize("name", NORMS)
def test_the_identity_holds_with_frozen_norms(name):
    net = Net(NORMS[name], ln=nn.LayerNorm(C), fc=nn.Linear(C, K))
    view = heads.view(net)
    assert view.inspect(images()).exactness == "linearised"
    bias = net.parts["fc"].bias
    if name == "layer norm":
        bias = bias + net.parts["fc"].weight @ net.parts["ln"].bias
    assert torch.allclose(constants(view, images()), bias.expand(3, -1), atol=1e-10)


def test_frozen_layer_norm_equals_its_closed_form():
    net = Net(NORMS["layer norm"], ln=nn.LayerNorm(C), fc=nn.Linear(C, K))
    acts = heads.view(net)(images())
    pooled = acts.features.mean((2, 3))
    sigma = (pooled.var(1, correction=0) + 1e-5).sqrt()
    scaled = net.parts["fc"].weight[2] * net.parts["ln"].weight
    centred = acts.features - acts.features.mean(1, keepdim=True)
    expected = torch.einsum("c,bchw->bhw", scaled, centred) / sigma[:, None, None]
    weights = acts.class_weights(torch.full((3,), 2))
    assert torch.allclose(torch.einsum("bc,bchw->bhw", weights, acts.features), expected, atol=1e-12)


def test_a_non_linear_tail_gives_the_derivative_of_the_logit():
    net = Net(lambda f, p: p["b"](F.gelu(p["a"](f.mean((2, 3))))), a=nn.Linear(C, C), b=nn.Linear(C, K))
    acts = heads.view(net)(images())
    assert acts.head.exactness == "linearised"
    target = torch.tensor([0, 1, 2])
    gradient = acts.gradient(acts.logits.gather(1, target[:, None]))
    assert torch.allclose(acts.class_weights(target), gradient.sum((2, 3)), atol=1e-12)
    with pytest.raises(AdvCAMError, match="same for every image"):
        acts.all_class_weights()


NONE = {
    "class token": (lambda f, p: p["fc"](F.gelu(tokens(f))[:, 0]), heads.Reason.CLASS_TOKEN),
    "flattened": (lambda f, p: p["big"](f.flatten(1)), heads.Reason.FLATTENED),
    "maximum": (lambda f, p: p["fc"](f.amax((2, 3))), heads.Reason.MAXIMUM),
    "max pool": (lambda f, p: p["fc"](F.adaptive_max_pool2d(f, 1).flatten(1)), heads.Reason.MAXIMUM),
    "convolution": (lambda f, p: p["conv"](f).flatten(1), heads.Reason.CONVOLUTION),
    "attention": (
        lambda f, p: p["fc"]((tokens(f).sum(-1, keepdim=True).softmax(1) * tokens(f)).sum(1)),
        heads.Reason.WEIGHTED,
    ),
    "mean and maximum": (lambda f, p: p["fc"](f.mean((2, 3)) + f.amax((2, 3))), heads.Reason.MAXIMUM),
    "a maximum, then a mean": (lambda f, p: p["fc"](f.amax(3).mean(2)), heads.Reason.MAXIMUM),
    "padded mean": (lambda f, p: p["fc"](F.avg_pool2d(f, 10, padding=(1, 0)).flatten(1)), heads.Reason.OTHER),
}


@pytest.mark.parametrize("name", NONE)
def test_other_heads_have_a_reason_and_advice(name):
    head, reason = NONE[name]
    parts = {"fc": nn.Linear(C, K), "big": nn.Linear(C * 80, K), "conv": nn.Conv2d(C, K, (8, 10))}
    view = heads.view(Net(head, **parts))
    found = view.inspect(images())
    assert found.exactness == "none"
    assert found.reason is reason
    assert "grad_cam" in (found.advice or "")
    with pytest.raises(AdvCAMError, match="grad_cam"):
        view.require(images())


def test_grad_cam_of_a_class_token_precedes_the_last_mixing():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.end, self.qkv = nn.LayerNorm(C), nn.LayerNorm(C), nn.Linear(C, 3 * C)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            return self.end(x + F.scaled_dot_product_attention(q, k, v))

    def head(f: Tensor, p: nn.ModuleDict) -> Tensor:
        x = torch.cat([f.mean((2, 3))[:, None], tokens(f)], 1)
        return p["fc"](p["block"](x)[:, 0])

    view = heads.view(Net(head, block=Attention(), fc=nn.Linear(C, K)))
    acts = view(images())
    assert (acts.head.layer, acts.head.prefix, acts.head.grid) == ("parts.block.norm", 1, (8, 10))
    gradient = acts.gradient(acts.logits[:, 0])
    assert bool((gradient.abs().sum(1) > 0).all())


def test_grad_cam_maps_the_grid_and_not_its_flattening():
    view = heads.view(Net(lambda f, p: p["fc"](F.relu(f).flatten(2).logsumexp(2)), fc=nn.Linear(C, K)))
    found = view.inspect(torch.randn(1, 3, 12, 16, dtype=torch.float64))
    assert (found.layout, found.grid, found.channels) == ("NCHW", (6, 8), C)


def test_several_pools_are_linearised():
    def head(f: Tensor, p: nn.ModuleDict) -> Tensor:
        return p["fc"](f.mean((2, 3))) + p["other"](F.relu(f).mean((2, 3)))

    net = Net(head, fc=nn.Linear(C, K), other=nn.Linear(C, K))
    found = heads.view(net).inspect(images())
    assert found.exactness == "linearised"
    assert "1 other pooled" in found.note


def test_a_grid_of_one_cell_is_not_mapped(small_net):
    with pytest.raises(AdvCAMError, match="no grid"):
        heads.view(nn.Sequential(nn.AdaptiveAvgPool2d(1), small_net)).inspect(torch.rand(1, 3, 8, 8))


def test_a_wrong_tail_is_noticed(images):
    class Moody(nn.Module):
        """Has an affine tail when it is traced and another, of the same calls, later."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            pooled = self.conv(x).mean((2, 3))
            return self.fc(pooled * (2.0 if self.calls == 1 else pooled))

    moody = Moody()
    with pytest.raises(AdvCAMError, match=r"do not change alike|not made of the mean|cancel"):
        heads.view(moody).require(images)
    assert heads.view(moody).inspect(images).reason is heads.Reason.NONLINEAR
