"""Heads: golden values on hand-set nets, the identity in float64 as an oracle, and what must be refused."""

from __future__ import annotations

import threading

import pytest
import timm
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


EXACT = {
    "linear": (lambda f, p: p["fc"](F.adaptive_avg_pool2d(F.relu(f), 1).flatten(1)), {"fc": nn.Linear(C, K)}, "NCHW"),
    "in-place activation": (
        lambda f, p: p["fc"](F.adaptive_avg_pool2d(F.relu(f, inplace=True), 1).flatten(1)),
        {"fc": nn.Linear(C, K)},
        "NCHW",
    ),
    "1x1 conv": (
        lambda f, p: p["fc"](F.avg_pool2d(f, f.shape[-2:])).flatten(1),
        {"fc": nn.Conv2d(C, K, 1)},
        "NCHW",
    ),
    "affine norm": (
        lambda f, p: p["fc"](p["bn"](f.mean((2, 3)))),
        {"bn": nn.BatchNorm1d(C), "fc": nn.Linear(C, K)},
        "NCHW",
    ),
    "two averaged heads": (
        lambda f, p: _dual(f.mean([2, 3]), p),
        {"a": nn.Linear(C, K), "b": nn.Linear(C, K)},
        "NCHW",
    ),
    "NHWC": (lambda f, p: p["fc"](F.gelu(f.permute(0, 2, 3, 1)).mean((1, 2))), {"fc": nn.Linear(C, K)}, "NHWC"),
    "tokens": (lambda f, p: p["fc"](F.gelu(tokens(f)).mean(1)), {"fc": nn.Linear(C, K)}, "NLC"),
    "tokens after a class token": (
        lambda f, p: p["fc"](torch.cat([tokens(f).sum(1, keepdim=True).tanh(), tokens(f)], 1)[:, 1:].mean(dim=1)),
        {"fc": nn.Linear(C, K)},
        "NLC",
    ),
    "channels first tokens": (lambda f, p: p["fc"](f.flatten(2).mean(-1)), {"fc": nn.Linear(C, K)}, "NCL"),
    "class maps, then pool": (
        lambda f, p: F.adaptive_avg_pool2d(F.relu(p["conv"](f)), (1, 1)).flatten(1),
        {"conv": nn.Conv2d(C, K, 1)},
        "NCHW",
    ),
}


def _dual(pooled: Tensor, parts: nn.ModuleDict) -> Tensor:
    return (parts["a"](pooled) + parts["b"](pooled)) / 2


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
    head, parts, layout = EXACT[name]
    view = heads.view(Net(head, **parts))
    found = view.inspect(images())
    assert (found.exactness, found.layout, found.grid) == ("exact", layout, (8, 10))
    constant = constants(view, images())
    assert torch.allclose(constant, constant[:1], atol=1e-12)
    assert torch.allclose(view(images()).logits, view.model(images()))


@pytest.mark.parametrize("name", NORMS)
def test_norms_after_the_pool_keep_the_identity_with_a_frozen_scale(name):
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


REFUSED = {
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
    "two means": (lambda f, p: p["fc"](f.mean(3).mean(2)), heads.Reason.TWO_STAGES),
    "padded mean": (lambda f, p: p["fc"](F.avg_pool2d(f, 10, padding=(1, 0)).flatten(1)), heads.Reason.OTHER),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_heads_are_refused_with_what_works(name):
    head, reason = REFUSED[name]
    parts = {"fc": nn.Linear(C, K), "big": nn.Linear(C * 80, K), "conv": nn.Conv2d(C, K, (8, 10))}
    view = heads.view(Net(head, **parts))
    found = view.inspect(images())
    assert found.exactness == "none"
    assert found.reason is reason
    assert "grad_cam" in (found.advice or "")
    with pytest.raises(AdvCAMError, match="grad_cam"):
        view.require(images())


def test_grad_cam_of_a_class_token_sits_before_the_last_mixing_of_tokens():
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


def test_another_head_is_found_anew(small_net, images):
    view = heads.view(small_net)
    assert view.inspect(images).classes == 5
    small_net[7] = nn.Linear(12, 9)
    assert view.inspect(images).classes == 9


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_graph_that_begins_at_the_features(name):
    """The same numbers and the same derivative of the logits to the features; nothing behind them."""
    net = timm.create_model(name).eval()
    view, found = heads.view(net), []
    for to_images in (True, False):
        x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)).requires_grad_()
        acts = view(x, to_images=to_images)
        scores = acts.logits[:, 3]
        (behind,) = torch.autograd.grad(scores.sum(), x, retain_graph=True, allow_unused=True)
        assert (behind is None) != to_images
        weights = acts.class_weights(torch.tensor([3, 3])) if acts.head.exactness != "none" else scores
        found.append((acts.features, acts.logits, acts.gradient(scores), weights))
    for with_images, without in zip(*found, strict=True):
        assert torch.equal(with_images, without)


def test_a_graph_that_begins_at_features_changed_in_place(images):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    for layer in ("0", "1", None):
        acts = heads.view(net, layer)(images, to_images=False)
        assert torch.equal(acts.logits, net(images))
        assert torch.isfinite(acts.gradient(acts.logits[:, 0])).all()


class Counted(nn.Sequential):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Choosy(Counted):
    """Looks at the numbers of its input, so it cannot be traced without them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > -100 else -x)


def test_other_sizes_cost_no_forward(images):
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net, choosy = Counted(*layers), Choosy(*layers)
    view = heads.view(net)
    first = view.inspect(images)
    done = net.calls
    for height, width in ((20, 16), (9, 31)):
        head = view.inspect(torch.rand(1, 3, height, width))
        assert head.grid == (height - 2, width - 2)
        assert head == heads.view(Counted(*layers)).inspect(torch.rand(1, 3, height, width))
    assert net.calls == done
    assert first.grid == (images.shape[2] - 2, images.shape[3] - 2)
    data_dependent = heads.view(choosy)
    data_dependent.inspect(images)
    assert data_dependent.inspect(torch.rand(1, 3, 20, 16)).grid == (18, 14)


def test_hooks_of_the_user_see_data_at_every_size(small_net, images):
    seen = []
    handle = small_net.register_forward_hook(lambda module, inputs, output: seen.append(output.is_meta))
    view = heads.view(small_net)
    view.inspect(images)
    view.inspect(torch.rand(1, 3, 24, 40))
    handle.remove()
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vgg11", "mobilenetv3_small_050", "edgenext_xx_small"])
def test_other_sizes_have_the_head_of_a_fresh_trace(name):
    net = timm.create_model(name).eval()
    seen = heads.view(net)
    seen.inspect(torch.rand(1, 3, 64, 64))
    image = torch.rand(1, 3, 96, 128)
    assert seen.inspect(image) == heads.view(net).inspect(image)


def test_a_broken_image_of_another_size_is_still_noticed(small_net, images):
    view = heads.view(small_net)
    view.inspect(images)
    with pytest.raises(AdvCAMError, match="not finite"):
        view.inspect(torch.full((1, 3, 24, 40), torch.nan))


def test_several_pools_are_said_to_be_so():
    def head(f: Tensor, p: nn.ModuleDict) -> Tensor:
        return p["fc"](f.mean((2, 3))) + p["other"](F.relu(f).mean((2, 3)))

    net = Net(head, fc=nn.Linear(C, K), other=nn.Linear(C, K))
    found = heads.view(net).inspect(images())
    assert found.exactness == "linearised"
    assert "1 other pooled" in found.note


def test_layer_names_the_pooled_tensor_or_another_grid(small_net, images):
    assert heads.view(small_net).inspect(images).layer == "4"
    assert heads.view(small_net, layer="4").inspect(images).exactness == "exact"
    other = heads.view(small_net, layer=small_net[2]).inspect(images)
    assert (other.exactness, other.grid, other.channels) == ("none", (16, 16), 8)
    assert "that is '4'" in other.note


@pytest.mark.parametrize(
    ("layer", "message"),
    [("5x", "no layer '5x'"), ("6", "no grid"), ("7", "no grid")],
)
def test_layers_that_cannot_be_mapped(small_net, images, layer, message):
    with pytest.raises(AdvCAMError, match=message):
        heads.view(small_net, layer=layer).inspect(images)


def test_an_unused_layer_and_a_foreign_module(images):
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.spare, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)))

    with pytest.raises(AdvCAMError, match="not used"):
        heads.view(Unused(), layer="spare").inspect(images)
    with pytest.raises(AdvCAMError, match="not a module of this model"):
        heads.view(Unused(), layer=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be a module"):
        heads.view(Unused(), layer=3)


def test_outputs_that_are_no_logits(images):
    class Returns(nn.Module):
        def __init__(self, wrap) -> None:
            super().__init__()
            self.conv, self.wrap = nn.Conv2d(3, 4, 3), wrap

        def forward(self, x: Tensor):
            return self.wrap(self.conv(x))

    for wrap, message in [
        (lambda f: {"logits": f.mean((2, 3))}, "dict of 1"),
        (lambda f: (f.mean((2, 3)), f), "tuple of 2"),
        (lambda f: f, "not logits"),
    ]:
        with pytest.raises(AdvCAMError, match=message):
            heads.view(Returns(wrap)).inspect(images)


def test_a_grid_of_one_cell_is_not_mapped(small_net):
    with pytest.raises(AdvCAMError, match="no grid"):
        heads.view(nn.Sequential(nn.AdaptiveAvgPool2d(1), small_net)).inspect(torch.rand(1, 3, 8, 8))


def test_a_wrong_tail_is_noticed(images):
    class Moody(nn.Module):
        """Pools one tensor when it is traced and another, with the same calls, later."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            f = self.conv(x)
            return self.fc(f.mean((2, 3)) if self.calls == 1 else f.square().mean((2, 3)).sqrt())

    with pytest.raises(AdvCAMError, match=r"do not change alike|not what the logits|cancel"):
        heads.view(Moody()).inspect(images)


def test_what_is_not_finite_is_named(small_net, images):
    with pytest.raises(AdvCAMError, match="image has NaN"):
        heads.view(small_net).inspect(images * float("nan"))
    with torch.no_grad():
        small_net[3].weight[0, 0] = float("nan")
    with pytest.raises(AdvCAMError, match=r"parameter '3\.weight'"):
        heads.view(small_net).inspect(images)


def test_probabilities_are_noticed(small_net, images):
    with pytest.warns(UserWarning, match="returns probabilities, not logits"):
        heads.view(nn.Sequential(*small_net, nn.Softmax(1))).inspect(images)


def test_traces_install_nothing_and_threads_do_not_mix(small_net, images):
    view = heads.view(small_net)
    expected = view(images).features.detach()
    results: list[Tensor] = [torch.empty(0)] * 8

    def work(i: int) -> None:
        results[i] = view(images + i).features.detach() - heads.view(small_net)(images + i).features.detach()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(float(r.abs().max()) == 0 for r in results)
    assert torch.equal(view(images).features, expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small_net.modules())


def test_taps_are_other_modules_outputs_of_the_same_forward(small_net, images):
    """A hook sees what a tap holds, on the graph; of a module that is used twice, the last output."""
    twice = nn.ReLU()
    net = nn.Sequential(*list(small_net)[:4], twice, nn.Conv2d(12, 12, 1), twice, *list(small_net)[5:])
    forwards, seen = [], {}
    view = heads.view(net, taps=["0", "3", "4"])
    view.inspect(images)
    handles = [
        net[int(tap)].register_forward_hook(lambda _m, _x, out, tap=tap: seen.update({tap: out})) for tap in "34"
    ]
    handles.append(net[0].register_forward_hook(lambda *_: forwards.append(1)))
    acts = view(images.requires_grad_())
    for handle in handles:
        handle.remove()
    assert len(forwards) == 1
    assert list(acts.taps) == ["0", "3", "4"]
    assert all(acts.taps[tap] is seen[tap] for tap in "34")
    (gradient,) = torch.autograd.grad(acts.taps["0"].sum(), images)
    assert gradient.abs().max() > 0
    assert heads.view(net)(images).taps == {}


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("9", "no layer '9'"),
        ("spare", "'spare' is not used"),
        ("same", "'same' is the image"),
        ("second", "one of several"),
    ],
)
def test_taps_that_cannot_be_had_are_named(images, tap, message):
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.chunk(2, 1)[1]

    class Forks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.spare, self.second = nn.Identity(), nn.ReLU(), Half()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.second(self.conv(self.same(x))).mean((2, 3)))

    with pytest.raises(AdvCAMError, match=message):
        heads.view(Forks().eval(), taps=[tap]).inspect(images)
