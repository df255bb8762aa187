"""Real architectures of timm and torchvision: the identity in float64 with random weights, and the survey of all."""

from __future__ import annotations

import dataclasses
from collections import Counter

import grid_probe
import pytest
import torch
from survey import Entry, architectures, documented, examine, make, representatives, survey, write_markdown
from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM, AdvCAMError, GradCAM, heads

FAST = {
    "timm/resnet18": ("exact", "layer4"),
    "timm/resnetv2_50x1_bit": ("exact", "norm"),
    "timm/repvit_m0_9": ("exact", "stages"),
    "timm/levit_128s": ("exact", "stages"),
    "timm/swin_tiny_patch4_window7_224": ("exact", "norm"),
    "torchvision/squeezenet1_1": ("exact", "classifier.2"),
    "torchvision/densenet121": ("exact", None),
    "torchvision/shufflenet_v2_x0_5": ("exact", "conv5"),
    "timm/convnext_atto": ("linearised", "stages"),
    "timm/convnext_atto_rms": ("linearised", "stages"),
    "timm/mobilenetv3_small_100": ("linearised", "blocks"),
    "timm/efficientvim_m1": ("linearised", None),
    "timm/vit_tiny_patch16_224": ("none", "blocks.11.norm1"),
    "timm/resnet50_clip": ("none", None),
    "torchvision/alexnet": ("none", "avgpool"),
}

SLOW_TIMM = """
    bat_resnext26ts beit_base_patch16_224 caformer_s18 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convmixer_768_32
    convnext_zepto_rms_ols convnextv2_atto crossvit_tiny_240 cspresnet50 davit_tiny deit_tiny_distilled_patch16_224
    dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_336 fastvit_t8 fasternet_t0 focalnet_tiny_srf gcvit_xxtiny ghostnetv2_100
    ghostnetv3_100 gmlp_s16_224 hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_tiny
    inception_v3 lcnet_050 levit_conv_128s mambaout_femto maxvit_pico_rw_256 mixer_s32_224 mobilenetv4_conv_small
    mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nf_regnet_b0 pit_ti_224 poolformer_s12
    pvt_v2_b0 regnetx_002 res2net50_14w_8s rexnet_100 sequencer2d_s shvit_s1 starnet_s1 swiftformer_xs
    swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 twins_pcpvt_small visformer_tiny
    volo_d1_224 xception41 xcit_nano_12_p16_224
"""
SLOW_TORCHVISION = "googlenet inception_v3 mnasnet0_5 swin_t vit_b_32 convnext_tiny"
SLOW = [f"timm/{name}" for name in SLOW_TIMM.split()] + [f"torchvision/{name}" for name in SLOW_TORCHVISION.split()]


def randomised(model: str) -> tuple[nn.Module, Tensor]:
    """Return the architecture in float64 with statistics unlike an untrained net's, and two images."""
    library, name = model.split("/")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        net = timm.create_model(name)
    else:
        import torchvision

        net = torchvision.models.get_model(name, weights=None)
    size = make(model)[1]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in net.parameters():
            if float(parameter.abs().max()) < 1e-3:  # heads and layer scales that start at zero
                parameter.normal_(0, 0.1)
    return net.double().eval(), torch.randn(2, *size, dtype=torch.float64)


def check_architecture(model: str) -> heads.Head:
    """Check the head that is found in float64."""
    net, x = randomised(model)
    view = heads.view(net)
    head = view.inspect(x)
    target = torch.tensor([1, 2])
    acts = view(x.requires_grad_())
    assert torch.equal(acts.logits, net(x))
    assert acts.features.shape[1:] == (head.channels, *head.grid)
    gradient = acts.gradient(acts.logits.gather(1, target[:, None]))
    if head.exactness == "none":
        # Every position reaches the logit: this is what Grad-CAM on a class token's last block gets wrong.
        reached = (gradient.abs().amax(1) > 0).float().mean()
        assert reached > 0.2 if head.reason is heads.Reason.MAXIMUM else reached == 1
        with pytest.raises(AdvCAMError):
            view.require(x)
        maps = GradCAM.maps(acts, target)
    else:
        # Pooled by a mean: the derivative is the same at every place.
        assert torch.allclose(gradient, gradient.mean((2, 3), keepdim=True), atol=1e-9 * float(gradient.abs().max()))
        maps = CAM.maps(acts, target)
    if head.exactness == "exact" or head.reason is heads.Reason.NORM:
        wanted = acts.logits.gather(1, target[:, None])[:, 0] - maps.mean((1, 2))
        other = view(x.detach().flip(-1) * 0.7)
        found = other.logits.gather(1, target[:, None])[:, 0] - CAM.maps(other, target).mean((1, 2))
        scale = maps.abs().mean((1, 2))
        assert bool(((wanted - found).abs() <= 1e-8 * scale + 1e-10).all())
    assert maps.isfinite().all()
    assert float(maps.detach().abs().max()) > 0 or head.exactness == "none"
    return head


@pytest.mark.parametrize("model", FAST)
def test_an_architecture_is_what_the_trace_says(model):
    head = check_architecture(model)
    assert (head.exactness, head.layer) == FAST[model]
    entry = examine(model)
    assert (entry.exactness, entry.grid, entry.note) == (head.exactness, head.grid, head.note)


@pytest.mark.slow
@pytest.mark.parametrize("model", SLOW)
def test_more_architectures_are_what_the_trace_says(model):
    check_architecture(model)


def test_every_architecture_is_documented():
    rows = documented()
    assert rows.keys() <= set(architectures())
    assert len(architectures()) - len(rows) == 145, "docs/models.md is stale: run docs/_ext/survey.py"
    counts = Counter((model.split("/")[0], row[0]) for model, row in rows.items())
    assert counts["timm", "exact"] >= 720
    assert counts["timm", "exact"] + counts["timm", "linearised"] >= 1014
    assert counts["torchvision", "exact"] >= 59
    assert not counts["timm", "refused"] + counts["torchvision", "refused"]
    assert "1×1" not in {row[2] for row in rows.values()}


@pytest.mark.slow
def test_the_survey_finds_what_is_documented(tmp_path):
    """One architecture for each kind of head in each of the libraries' files; the page has them all."""
    names = representatives()
    assert len(names) >= 140
    write_markdown(survey(names, jobs=2), tmp_path / "models.md", versions="now")
    now, then = documented(tmp_path / "models.md"), documented()
    found = ((model, (*row[:5], row[-1]), (*then[model][:5], then[model][-1])) for model, row in now.items())
    stale = [(model, row, shipped) for model, row, shipped in found if row != shipped]
    assert not stale, "docs/models.md is stale: run docs/_ext/survey.py"


def test_the_survey_page(tmp_path):
    entries = [*survey(["timm/resnet18", "torchvision/vgg11"]), Entry("timm/x", "no classifier")]
    write_markdown(entries, tmp_path / "m.md", versions="here")
    text = (tmp_path / "m.md").read_text()
    assert "| timm | 1 | 0 | 0 | 0 | 1 | 1 |" in text
    assert "| timm/resnet18 | exact | `layer4` | 7×7 | 32 | 224×224 | - | NCHW mean -> linear |" in text
    assert "timm/x" not in text
    assert documented(tmp_path / "m.md")["timm/resnet18"][:3] == ("exact", "layer4", "7×7")
    probes = {"timm/resnet18": grid_probe.examine("timm/resnet18")}
    write_markdown(entries, tmp_path / "m.md", versions="here", probes=probes)
    text = (tmp_path / "m.md").read_text()
    assert "224×224 | 128×128 96×160 | NCHW" in text
    assert "Of 2 classifiers, 1 are probed at two shapes" in text
    assert "Of 2 probes, 2 move that cell most, 0 a neighbour and 0 another." in text


def test_the_probe_notices_a_wrong_grid(monkeypatch):
    net, size = grid_probe.build("timm/resnet18", None), (96, 160)
    right = grid_probe.probe(net, size)
    assert (right["grid"], right["moved"], right["away"]) == ((3, 5), (1, 3), 0)
    find = grid_probe.find_head

    def transposed(trace):
        head = find(trace)
        return dataclasses.replace(head, grid=head.grid[::-1], layout="NCWH")

    monkeypatch.setattr(grid_probe, "find_head", transposed)
    assert grid_probe.probe(net, size)["away"]


def test_advcam_on_real_architectures():
    for name, base in (("timm/convnext_atto", "cam"), ("timm/vit_tiny_patch16_224", "layer_cam")):
        net, x = randomised(name)
        maps = AdvCAM(net.float(), base=base, steps=2).attribute(x.float(), target=[3, 4], internal_batch_size=1)
        assert maps.shape == (2, 1, 224, 224)
        assert maps.isfinite().all()
