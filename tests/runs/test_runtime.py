"""Execution settings and devices."""

from __future__ import annotations

import pytest
import torch

from advcam_attr.runs.runtime import Runtime, choose_device
from advcam_attr.runs.sharding import Shard
from advcam_attr.types import AdvCAMError


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 6) == choose_device("cuda", 6) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 6) == torch.device("cpu")
    with pytest.raises(AdvCAMError, match="device 'nonsense' cannot be used here"):
        choose_device("nonsense")


def test_a_runtime_selects_device_and_precision(monkeypatch):
    assert Runtime().autocast_dtype is None
    assert Runtime(autocast="bfloat16").autocast_dtype == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Runtime().torch_device(Shard(5, 8, local=3)) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("changes", "name"), [({"workers": -1}, "workers"), ({"seed": -1}, "seed"), ({"autocast": "half"}, "autocast")]
)
def test_a_runtime_is_checked(changes, name):
    with pytest.raises(AdvCAMError, match=rf"runtime\.{name}"):
        Runtime(**changes)
