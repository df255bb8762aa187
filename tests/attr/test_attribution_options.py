"""Options of attributions: a base's own layer, names from other libraries, layers that are missing."""

from __future__ import annotations

import inspect

import pytest
import timm
import torch
from torch import nn

from advcam_attr import CAM, AdvCAM, AdvCAMError, GradCAM, LayerCAM, heads
from advcam_attr.networks.load import load_model
from advcam_attr.registry import similar
from advcam_attr.types import UnknownOptionError
from attribution_methods import hooks_of


@pytest.mark.parametrize("layer", ["0", "2", "4", None])
def test_an_instance_as_base_brings_its_layer(small_net, images, layer):
    base = LayerCAM(small_net, layer=layer)
    found = AdvCAM(small_net, base=base, steps=2).attribute(images, 1, output="native")
    assert torch.equal(found, AdvCAM(small_net, layer, base="layer_cam", steps=2).attribute(images, 1, output="native"))
    assert torch.equal(
        AdvCAM(small_net, base=base).attribute(images, 1, steps=0), LayerCAM(small_net, layer).attribute(images, 1)
    )
    for agreeing in ("2", small_net[2]):
        assert AdvCAM(small_net, agreeing, base=LayerCAM(small_net, "2")).view.layer == "2"
        assert AdvCAM(small_net, agreeing, base=LayerCAM(small_net)).view.layer == "2"
    assert AdvCAM(nn.DataParallel(small_net), base=base).view.layer == layer


@pytest.mark.parametrize(
    ("layer", "base", "message"),
    [
        ("4", lambda net: LayerCAM(net, "2"), "two layers"),
        (None, lambda net: LayerCAM(nn.Sequential(*net), "2"), "another model"),
        (None, lambda net: AdvCAM(net), "climbs itself"),
    ],
)
def test_an_instance_that_does_not_fit_is_refused(small_net, layer, base, message):
    with pytest.raises(AdvCAMError, match=message) as caught:
        AdvCAM(small_net, layer, base=base(small_net))
    assert "\n" not in str(caught.value)


ELSEWHERE = {
    "target_layer": "layer", "target_layers": "layer", "layers": "layer", "n_steps": "steps", "num_steps": "steps",
    "iterations": "steps", "eps": "step_rule", "step_size": "step_rule", "lr": "step_rule", "method": "base",
    "loss": "objective", "lam": "regularizers", "threshold": "mask", "scale": "scales", "early_stopping": "stop",
    "bsae": "base", "objectve": "objective",
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_options_of_other_libraries_name_ours(small_net, name):
    with pytest.raises(UnknownOptionError, match=f"AdvCAM has no option '{name}'; did you mean '{ELSEWHERE[name]}'"):
        AdvCAM(small_net, **{name: 1})


@pytest.mark.parametrize(("name", "ours"), [("targets", "target"), ("batch_size", "internal_batch_size"),
                                            ("input_tensor", "inputs"), ("outptu", "output")])  # fmt: skip
def test_options_of_a_call_name_ours(method, small_net, images, name, ours):
    with pytest.raises(UnknownOptionError, match=f"did you mean '{ours}'"):
        method(small_net).attribute(images, 1, **{name: 1})


def test_unknown_options_are_type_errors_too(small_net, images):
    for wrong in (
        lambda: CAM(small_net, target_layer="4"),
        lambda: AdvCAM(small_net).climb(images, 1, n_steps=3),
        lambda: AdvCAM(small_net).attribute_classes(images, [[1]] * 3, n_steps=3),
        lambda: AdvCAM(small_net, nothing_like_it=3),
    ):
        with pytest.raises(TypeError, match="has no option"):
            wrong()
    assert "layer" in inspect.signature(AdvCAM).parameters


def test_similar_names():
    options = ["--layer", "--steps", "--input-size"]
    assert similar("--target-layers", options) == ["--layer"]
    assert similar("--n_steps", options) == ["--steps"]
    assert similar("--inputsize", options) == ["--input-size"]
    assert similar("--colour", options) == []


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("timm/nope", [], ["bat_", "resnet"]),
        ("timm/resnet51", ["resnet5"], ["vit"]),
        ("timm/convnext_bas", ["convnext_base"], []),
        ("timm/vit_tiny", ["vit_tiny_patch16_224"], []),
        ("torchvision/nope", [], ["alexnet"]),
    ],
)
def test_an_unknown_model_names_only_related_ones(name, near, far):
    with pytest.raises(AdvCAMError, match="unknown model") as caught:
        load_model(name, random_weights=True)
    assert all(word in str(caught.value) for word in near)
    assert not any(word in str(caught.value) for word in far)


def test_a_missing_layer_lists_those_on_the_way_to_the_pool(small_net):
    resnet = timm.create_model("resnet18")
    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    with pytest.raises(AdvCAMError, match=r"'layer4', 'layer3', 'layer2', 'layer1'") as caught:
        GradCAM(resnet, layer="nothing_like_it")
    for other in ("global_pool", "fc", "layer4.0.conv1"):
        assert repr(other) not in str(caught.value)
    assert resnet.training
    assert hooks_of(resnet) == 0
    assert all(torch.equal(value, state[name]) for name, value in resnet.state_dict().items())
    with pytest.raises(AdvCAMError, match=r"did you mean 'layer4'.*; on the way"):
        heads.view(resnet, "layer_4")
    vit = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(AdvCAMError, match=r"blocks"):
        heads.view(vit, "encoder.layers.11")

    class NeedsData(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    with pytest.raises(AdvCAMError, match="its modules begin with 0, 1"):
        heads.view(NeedsData(*small_net), "nothing_like_it")
    seen = []
    small_net.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(AdvCAMError, match="its modules begin with 0, 1"):
        heads.view(small_net, "nothing_like_it")
    assert not seen
