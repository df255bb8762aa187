"""Head views: graphs, sizes, layers, taps, threads, and inputs that are rejected."""

from __future__ import annotations

import threading

import pytest
import timm
import torch
from torch import Tensor, nn

from advcam_attr import heads
from advcam_attr.types import AdvCAMError


def test_a_replaced_head_is_found(small_net, images):
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


def test_layer_names_the_pooled_tensor_or_another_grid(small_net, images):
    assert heads.view(small_net).inspect(images).layer == "4"
    assert heads.view(small_net, layer="4").inspect(images).exactness == "exact"
    other = heads.view(small_net, layer=small_net[2]).inspect(images)
    assert (other.exactness, other.grid, other.channels) == ("none", (16, 16), 8)
    assert "that is '4'" in other.note


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("5x", AdvCAMError, "no layer '5x'"),
        ("6", AdvCAMError, "no grid"),
        ("7", AdvCAMError, "no grid"),
        ("8", AdvCAMError, "not used"),
        (nn.Linear(1, 1), AdvCAMError, "not a module of this model"),
        (3, TypeError, "must be a module"),
    ],
)
def test_layers_that_cannot_be_mapped(small_net, images, layer, error, message):
    class Spare(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in list(self)[:8]:
                x = module(x)
            return x

    with pytest.raises(error, match=message):
        heads.view(Spare(*small_net, nn.ReLU()), layer=layer).inspect(images)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda f: {"logits": f.mean((2, 3))}, "dict of 1"),
        (lambda f: (f.mean((2, 3)), f), "tuple of 2"),
        (lambda f: f, "not logits"),
    ],
)
def test_outputs_that_are_no_logits(images, wrap, message):
    class Returns(nn.Conv2d):
        def forward(self, x: Tensor):
            return wrap(super().forward(x))

    with pytest.raises(AdvCAMError, match=message):
        heads.view(Returns(3, 4, 3)).inspect(images)


def test_what_is_not_finite_is_named(small_net, images):
    view = heads.view(small_net)
    with pytest.raises(AdvCAMError, match="image has NaN"):
        view.inspect(images * float("nan"))
    view.inspect(images)
    with pytest.raises(AdvCAMError, match="not finite"):
        view.inspect(torch.full((1, 3, 24, 40), torch.nan))
    with torch.no_grad():
        small_net[3].weight[0, 0] = float("nan")
    with pytest.raises(AdvCAMError, match=r"parameter '3\.weight'"):
        heads.view(small_net).inspect(images)


def test_probabilities_are_noticed(small_net, images):
    with pytest.warns(UserWarning, match="returns probabilities, not logits"):
        heads.view(nn.Sequential(*small_net, nn.Softmax(1))).inspect(images)


def test_taps_are_outputs_of_the_same_forward(small_net, images):
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
def test_taps_without_an_output_are_rejected(images, tap, message):
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
