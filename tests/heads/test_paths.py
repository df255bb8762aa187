"""The tensor of a site in every forward: caches, replaced heads, in-place calls, zero derivatives, chosen layers."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM, AdvCAMError, GradCAM, GradCAMPlusPlus, LayerCAM, heads
from attribution_methods import Counting, hooks_of, same


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x) * 0.5)


class Caching(nn.Module):
    """Fills a cache at the first forward of each size with calls of the same names as the blocks'."""

    def __init__(self, cache: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(*(Block() for _ in range(3)))
        self.fc, self.cache, self.kept = nn.Linear(6, 4), cache, {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[2:] not in self.kept:
            at = torch.arange(x.shape[3], dtype=x.dtype, device=x.device)
            made = {"table": lambda: F.relu((at / 3).sin() + at.cos()), "mask": lambda: F.relu(at - 2) + 1}[
                self.cache
            ]()
            self.kept[x.shape[2:]] = made + (self.fc.weight.sum() * 0)
        return self.fc(self.b(x * self.kept[x.shape[2:]]).mean((2, 3)))


@pytest.mark.parametrize("cache", ["table", "mask"])
@pytest.mark.parametrize("layer", ["b.0", "b.1", None])
def test_a_cache_of_the_first_forward_moves_no_layer(cache, layer, images):
    net = Caching(cache).eval()
    view = heads.view(net, layer, taps=["b.0"])
    module, seen = net.get_submodule(layer or "b"), {}
    for x in (images, images[..., :20], images):
        acts = view(x)
        handles = [m.register_forward_hook(lambda m, _x, out: seen.update({m: out})) for m in (module, net.b[0])]
        net(x)
        for handle in handles:
            handle.remove()
        assert torch.equal(acts.features, seen[module])
        assert torch.equal(acts.taps["b.0"], seen[net.b[0]])
    expected = LayerGradCam(net, module).attribute(images, target=1, relu_attributions=True)
    for chosen in (net, Caching(cache).eval()):
        assert same(GradCAM(chosen, layer).attribute(images, 1, output="native"), expected)


def test_a_path_that_depends_on_the_batch_is_found_again(images):
    class EachOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block, self.fc = nn.Conv2d(3, 6, 3), Block(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            f = self.block(torch.cat([F.relu(self.conv(one[None])) for one in x]))
            return self.fc((f if x.mean() > 0 else F.relu(f.neg())).mean((2, 3)))

    net = EachOne().eval()
    for x in (images, images - 3, images[:1]):
        f = net.block(torch.cat([F.relu(net.conv(one[None])) for one in x]))
        assert torch.equal(heads.view(net, "block")(x).features, f)


def test_a_forward_that_never_repeats_is_refused(images):
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.fc, self.count = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            x, self.count = self.conv(x), self.count + 1
            for _ in range(self.count):
                x = self.act(x) - 0.1
            return self.fc(x.mean((2, 3)))

    with pytest.raises(AdvCAMError, match="did not repeat"):
        GradCAM(Growing(), "act").attribute(images, 0)


@pytest.mark.parametrize("how", ["module", "parameter", "data", "deeper"])
def test_a_replaced_or_grown_head_is_seen_every_time(small_net, images, how):
    view = heads.view(small_net)
    for classes in (5, 9, 3, 7, 4, 8, 6):
        if how == "module":
            small_net[7] = nn.Linear(12, classes)
        elif how == "deeper":
            small_net[7] = nn.Sequential(nn.Linear(12, classes))
        else:
            weight, bias = torch.randn(classes, 12), torch.zeros(classes)
            if how == "parameter":
                small_net[7].weight, small_net[7].bias = nn.Parameter(weight), nn.Parameter(bias)
            else:
                small_net[7].weight.data, small_net[7].bias.data = weight, bias
        gc.collect()
        assert view.inspect(images).classes == classes
        target = torch.full((3,), classes - 1)
        weight = next(small_net[7].parameters())
        assert torch.equal(view(images).class_weights(target), weight[-1:].expand(3, -1))


def test_copies_search_for_themselves(small_net, images):
    attribution = CAM(small_net)
    attribution.attribute(images, 4)
    for twin in (copy.deepcopy(attribution), pickle.loads(pickle.dumps(attribution))):
        twin.view.model[7] = nn.Linear(12, 2)
        assert twin.view.inspect(images).classes == 2
    assert attribution.view.inspect(images).classes == 5


class InPlace(nn.Module):
    """Overwrites the output of its layers in every way that leaves it differentiable."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.act, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(inplace=True), nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        f = self.drop(self.act(self.a(x)))
        shortcut = f = self.b(f).add_(0.3)
        f.view(len(f), -1).clamp_(min=-0.4)
        f = self.c(f)
        f += shortcut
        F.relu(f, inplace=True)
        f = self.d(f)
        f[:, :3] *= 2
        pooled = f.mean((2, 3))
        f.zero_()
        return self.fc(pooled)


@pytest.mark.parametrize("layer", ["a", "act", "drop", "b", "c", "d"])
def test_layers_before_in_place_calls_equal_captum(images, layer):
    net, x = InPlace(), images.double()
    module, seen = net.get_submodule(layer), []
    expected = LayerGradCam(net, module).attribute(x, target=2)
    handle = module.register_forward_hook(lambda _m, _x, out: seen.append(out.detach().clone()))
    logits = net(x)
    handle.remove()
    for to_images in (True, False):
        view = heads.view(net, layer, taps=[layer])
        acts = view(x, to_images=to_images)
        assert torch.equal(acts.logits, logits)
        assert torch.equal(acts.features, seen[0])
        assert torch.equal(acts.taps[layer], seen[0])
        gradient = acts.gradient(acts.logits[:, 2])
        found = (gradient.mean((2, 3), keepdim=True) * acts.features).sum(1, keepdim=True)
        assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(GradCAM(net, layer).attribute(x, 2, output="native"), expected.relu(), atol=1e-12)


def test_the_pooled_tensor_is_the_one_that_was_pooled(images):
    """Overwritten before the pool and after it."""
    net, x = InPlace(), images.double()
    view = heads.view(net)
    head = view.inspect(x)
    assert (head.exactness, head.layer) == ("exact", None)
    for to_images in (True, False):
        acts = view(x, to_images=to_images)
        target = torch.tensor([0, 1, 2])
        logits = acts.logits.gather(1, target[:, None])[:, 0]
        assert torch.allclose(acts.class_map(target).mean((1, 2)) + net.fc.bias[target], logits, atol=1e-12)
        gradient = acts.gradient(acts.logits[:, 1])
        assert torch.allclose(gradient.sum((2, 3)), net.fc.weight[1].expand(3, -1), atol=1e-12)


class Then(nn.Module):
    """A mean, then a function of the pooled vector."""

    def __init__(self, tail) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.trunk, self.fc, self.tail = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), tail
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.trunk(x).mean((2, 3)), self.fc)


def _assigned(logits: Tensor) -> Tensor:
    logits[:, 0] = 2 * logits[:, 0]
    logits += 1
    return logits


#: In place, and the same not in place.
TAILS = {
    "relu": (lambda p, fc: fc(F.relu(p.flatten(1), inplace=True)), lambda p, fc: fc(F.relu(p))),
    "hardswish": (lambda p, fc: fc(F.hardswish(p, inplace=True)), lambda p, fc: fc(F.hardswish(p))),
    "add": (lambda p, fc: fc(p.add_(0.5)), lambda p, fc: fc(p + 0.5)),
    "imul": (lambda p, fc: fc(p.__imul__(3)), lambda p, fc: fc(p * 3)),
    "logits": (lambda p, fc: _assigned(fc(p)), lambda p, fc: _assigned(fc(p).clone())),
}


@pytest.mark.parametrize("name", TAILS)
def test_tails_that_overwrite_the_pooled_vector(name, images):
    here, apart = (heads.view(Then(tail))(images.double()) for tail in TAILS[name])
    target = torch.tensor([0, 1, 2])
    assert torch.equal(here.logits, apart.logits)
    assert here.head.exactness == apart.head.exactness != "none"
    expected = here.gradient(here.logits.gather(1, target[:, None]))
    for weights in (here.class_weights(target), here.class_weights(target), apart.class_weights(target)):
        assert torch.allclose(weights, expected.sum((2, 3)), atol=1e-12)


KINDS = [CAM, GradCAM, GradCAMPlusPlus, LayerCAM]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_that_vanish_are_named(small_net, images, kind):
    with torch.no_grad():
        small_net[7].weight.mul_(0)
    with pytest.warns(UserWarning, match="exactly zero everywhere in 3 of 3 images"):
        kind(small_net).attribute(images, 1)


def test_saturated_images_are_counted(small_net, images):
    with torch.no_grad():
        small_net[7].bias[2] = 200
    net = nn.Sequential(*small_net, nn.Sigmoid())
    with pytest.warns(UserWarning, match="3 of 3 images"):
        GradCAM(net, "4").attribute(images, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(net, "4").attribute(images, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_head_has_no_map(small_net, images, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(small_net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(AdvCAMError, match="quantized"):
        kind(net).attribute(images, 1)
    with pytest.raises(AdvCAMError, match="quantized"):
        AdvCAM(net, base="grad_cam").attribute(images, 1)


def test_a_map_that_is_rectified_away_is_silent(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = GradCAM(tiny).attribute(torch.rand(2, 3, 4, 4), 1)  # its only weight is negative
    assert float(maps.abs().max()) == 0


class Odd(nn.Module):
    """A trunk and a head to which class activation mapping does not apply."""

    def __init__(self, head) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
        self.fc, self.head = nn.Linear(6, 4), head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x), self.fc)


def _with_class_token(f: Tensor) -> Tensor:
    tokens = f.flatten(2).transpose(1, 2)
    return torch.cat([tokens.sum(1, keepdim=True).tanh(), tokens], 1)


ODD = {
    "cosine": lambda f, fc: 9 * F.cosine_similarity(f.mean((2, 3))[:, None], fc.weight[None], dim=2),
    "all tokens": lambda f, fc: fc(_with_class_token(f).mean(1)),
    "top k": lambda f, fc: fc(f.flatten(2).topk(9, dim=2).values.mean(2)),
    "dropout": lambda f, fc: fc(F.dropout(f.mean((2, 3)), 0.5, training=True)),
    "single cell": lambda f, fc: fc(F.adaptive_max_pool2d(f, 1).mean((2, 3))),
    "ratio": lambda f, fc: fc(f.mean((2, 3)) / (f.mean((2, 3)).norm(dim=1, keepdim=True) + f.amax((2, 3)))),
}


@pytest.mark.parametrize("name", ODD)
def test_a_chosen_layer_needs_only_a_grid_and_a_gradient(name, images):
    net = Odd(ODD[name])
    for kind in (GradCAM, GradCAMPlusPlus, LayerCAM):
        torch.manual_seed(3)
        maps = kind(net, layer="trunk").attribute(images, 1, output="native")
        assert maps.shape == (3, 1, 15, 15)
    if name != "dropout":
        expected = LayerGradCam(net, net.trunk).attribute(images, 1, relu_attributions=True)
        assert same(GradCAM(net, layer="trunk").attribute(images, 1, output="native"), expected)
    assert AdvCAM(net, "trunk", base="grad_cam", steps=2).attribute(images, 1).isfinite().all()
    with pytest.raises(AdvCAMError, match="no class activation map"):
        CAM(net, layer="trunk").attribute(images, 1)


@pytest.mark.parametrize("name", ODD)
def test_nothing_stays_after_an_odd_head(name, images):
    net = Counting(Odd(ODD[name])).train()
    before, values, state = images.clone(), [p.clone() for p in net.parameters()], torch.get_rng_state()
    GradCAM(net, layer="net.trunk").attribute(images.requires_grad_(), 1)
    assert hooks_of(net) == 0
    assert all(m.training for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state) or name == "dropout"
    assert images.grad is None
    assert torch.equal(images, before)
    assert all(torch.equal(p, v) and p.grad is None for p, v in zip(net.parameters(), values, strict=True))
