"""Configuration shared by the pipelines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from advcam_attr.pipelines.config import CONFIG, check_keys, path_of, recorded_config
from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class Backbone:
    name: str = "timm/resnet18"
    stride_mode: str = "removal"


@dataclass(frozen=True)
class Net:
    backbone: Backbone = Backbone()
    class_map: str | None = None


@dataclass(frozen=True)
class Config:
    run: str = "run"
    net: Net = field(default_factory=Net)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"net": {"lowered_by": "removal"}}, "net.lowered_by is now net.backbone.stride_mode"),
        ({"net": {"known": "map.json"}}, "net.known is now net.class_map"),
        ({"net": {"backbone": "timm/resnet18"}}, "net.backbone is now net.backbone.name"),
        ({"net": {"backbone": {"lowered_by": "removal"}}}, "net.backbone.lowered_by is now net.backbone.stride_mode"),
        ({"seeds": {"steps": 1}, "device": "cpu"}, "device is now runtime.device"),
    ],
)
def test_old_keys_name_the_new_one(old, new):
    with pytest.raises(AdvCAMError, match=new.replace(".", r"\.") + "$"):
        check_keys(Config, old)


def test_current_keys_pass():
    check_keys(Config, {"run": "x", "net": {"backbone": {"name": "y", "stride_mode": "dilation"}, "class_map": None}})


def test_path_of_expands_variables(monkeypatch):
    monkeypatch.setenv("ROOT", "/data")
    assert path_of("$ROOT/voc") == Path("/data/voc")
    with pytest.raises(AdvCAMError, match=r"\$ADVCAM_UNSET"):
        path_of("$ADVCAM_UNSET/voc")


def test_recorded_config_is_restored_after_an_error(tmp_path):
    with recorded_config(tmp_path, Config("first")):
        pass
    with pytest.raises(AdvCAMError), recorded_config(tmp_path, Config("second")):
        raise AdvCAMError("no")
    assert json.loads((tmp_path / CONFIG).read_text())["run"] == "first"
    assert (tmp_path / "run.log").read_text().endswith("ERROR AdvCAMError: no\n")
