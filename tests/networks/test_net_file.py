"""What all trained networks share: their files, the seed of their new weights, and their backbones' settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from advcam_attr.networks.affinitynet import AFFINITY_NET, affinity_net
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAM_NET, cam_net
from advcam_attr.networks.cct import CCT_NET, cct_net
from advcam_attr.networks.checkpoint import read_checkpoint
from advcam_attr.networks.deeplab import DEEPLAB, deeplab
from advcam_attr.networks.irnet import IRNET, irnet
from advcam_attr.networks.net_file import load_net, read_notes, save_net
from advcam_attr.networks.wsol import WSOL_NET, wsol_net
from advcam_attr.types import AdvCAMError

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)
ARGS = {"model_args": {"num_classes": 7}, "random_weights": True, "mean": MEAN, "std": [0.5]}
SMALL = Backbone("timm/test_resnet", **ARGS)


def resnet38(seed: int) -> nn.Module:
    return affinity_net(Backbone("resnet38", random_weights=True), width=1, seed=seed)


#: By name: the kind, a net from a seed, and the names of its classes.
NETS: dict[str, tuple[Any, Callable[[int], Any], tuple[str, ...]]] = {
    "cam": (
        CAM_NET,
        lambda s: cam_net(Backbone("timm/test_resnet", **ARGS, train_from="layer3"), 2, seed=s),
        ("a", "ö"),
    ),
    "irn": (IRNET, lambda s: irnet(SMALL, seed=s), ()),
    "affinity": (
        AFFINITY_NET,
        lambda s: affinity_net(Backbone("timm/test_resnet", **ARGS, stride=32), width=4, seed=s),
        (),
    ),
    "resnet38": (AFFINITY_NET, resnet38, ()),
    "deeplab": (DEEPLAB, lambda s: deeplab(SMALL, 3, rates=(1, 3), scales=(0.5,), seed=s), ("a", "b")),
    "cct": (CCT_NET, lambda s: cct_net(SMALL, 3, auxiliary={"dropout": 1}, norms="frozen", seed=s), ("a", "b")),
    "wsol": (WSOL_NET, lambda s: wsol_net(SMALL, 2, norms="running", seed=s), ("gull", "wren")),
}


@pytest.fixture(params=NETS)
def made(request, tmp_path) -> tuple[Any, Any, tuple[str, ...], Path]:
    kind, make, classes = NETS[request.param]
    return kind, make, classes, tmp_path / "net.safetensors"


def frozen(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def test_a_net_comes_back_from_its_file(made):
    kind, make, classes, file = made
    net = make(3)
    save_net(file, net, classes, {"step": "3"})
    again, names = load_net(file, kind)
    assert names == classes
    assert (again.spec, again.stride if hasattr(net, "stride") else None) == (net.spec, getattr(net, "stride", None))
    assert (again.mean, again.std) == (net.mean, net.std)
    assert not again.training
    assert frozen(again) == frozen(net)
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())
    save_net(file.with_name("again.safetensors"), again, classes, {"step": "3"})
    assert file.with_name("again.safetensors").read_bytes() == file.read_bytes()
    assert read_notes(file)["step"] == "3"
    assert len(list(file.parent.iterdir())) == 2, "no temporary file is left"
    with pytest.raises(AdvCAMError, match=f"has {len(classes)} classes, but {len(classes) + 1} names"):
        save_net(file, net, (*classes, "more"))


def test_a_net_comes_back_from_a_file_of_before_backbones(made):
    """Version 0.1 had the backbone's fields beside the others, and ``lowered_by`` for ``stride_mode``."""
    kind, make, classes, file = made
    net = make(3)
    save_net(file, net, classes)
    metadata = dict(read_checkpoint(file).metadata)
    spec = json.loads(metadata[kind.spec.key])
    backbone = spec.pop("backbone")
    spec |= {"backbone": backbone["name"], "lowered_by": backbone["stride_mode"]}
    spec |= {name: backbone[name] for name in ("model_args", "stride", "train_from")}
    if kind is IRNET:
        spec["num_classes"] = 1
    if kind is AFFINITY_NET:
        spec |= {name: metadata.pop(name).split() for name in ("mean", "std")}
        spec |= {name: list(map(float, spec[name])) for name in ("mean", "std")}
    save_file(load_file(file), file, metadata | {kind.spec.key: json.dumps(spec)})
    again, _ = load_net(file, kind)
    assert again.spec == net.spec
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_new_weights_depend_on_the_seed_alone(made):
    _, make, _, _ = made
    state = torch.random.get_rng_state()
    first, same, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in NETS if name != "resnet38"])
def test_files_of_other_nets_raise(tmp_path, name):
    kind = NETS[name][0]
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors", {kind.spec.key: '{"backbone": 1}'})
    with pytest.raises(AdvCAMError, match=r"other\.safetensors does not say which .* it holds"):
        load_net(tmp_path / "other.safetensors", kind)
    torch.save({"net": nn.Linear}, tmp_path / "evil.pth")
    with pytest.raises(AdvCAMError, match="could run code"):
        load_net(tmp_path / "evil.pth", kind)
    with pytest.raises(AdvCAMError, match="no such checkpoint file"):
        load_net(tmp_path / "missing.safetensors", kind)
    assert read_notes(tmp_path / "missing.safetensors") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "x.pth", "random_weights": True}, "exclude each other"),
        ({"stride": 0}, "must be positive"),
        ({"stride_mode": "magic"}, "'removal' or 'dilation'"),
        ({"std": (0.0,)}, "std takes one or three"),
    ],
)
def test_backbones_that_cannot_be(options, message):
    with pytest.raises(AdvCAMError, match=message):
        Backbone("timm/resnet18", **options)


@pytest.mark.parametrize("factory", [affinity_net, cct_net, irnet])
def test_settings_without_use_raise(factory):
    args = (3,) if factory is cct_net else ()
    with pytest.raises(AdvCAMError, match="train_from"):
        factory(Backbone("timm/test_resnet", random_weights=True, train_from="layer3"), *args)
