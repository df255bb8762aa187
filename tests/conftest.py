"""Fixtures: where the real data is, nets with hand-set weights, and single-threaded torch for small nets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from advcam_attr.networks.backbone import Backbone
from logs import stop_recording


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small nets are slower on two threads than on one, and much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_recorders() -> Iterator[None]:
    yield
    stop_recording()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real weights and photographs; tests skip where they are not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("ADVCAM_DATA", beside))
    if not (root / "weights").is_dir():
        pytest.skip(f"no real data at {root} (set ADVCAM_DATA)")
    return root


@pytest.fixture
def tiny() -> nn.Sequential:
    """Two channels picked from the image, pooled, two classes: every number can be worked out by hand."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[..., None, None])
        net[3].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
        net[3].bias.copy_(torch.tensor([0.5, 0.25]))
    return net.eval()


@pytest.fixture
def small_net() -> nn.Sequential:
    """A small convolutional classifier with random, fixed weights: five classes, stride 4."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        net[1].running_mean.copy_(torch.randn(8, generator=generator) * 0.2)
        net[1].running_var.copy_(torch.rand(8, generator=generator) + 0.5)
    return net.eval()


@pytest.fixture
def images() -> torch.Tensor:
    """Three random images, 32 x 32."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def mobilenet(data_root: Path) -> Backbone:
    """MobileNetV2 with its weights of ImageNet."""
    checkpoint = data_root / "weights" / "mobilenetv2_100_imagenet.safetensors"
    arguments = {"num_classes": 1001, "pad_type": "same"}
    return Backbone("timm/mobilenetv2_100", arguments, checkpoint, mean=(0.5,) * 3, std=(0.5,) * 3)
