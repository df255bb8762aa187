"""A localization classifier of tinted noise, as any launcher starts it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from advcam_attr.data.samples import LocalizationData, per_class
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.wsol_parts import WSOLNet, WSOLNetSpec
from advcam_attr.pipelines.wsol.classifier import train_wsol_classifier
from advcam_attr.pipelines.wsol.config import WSOLClassifierSettings
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import Sample

OPTIMIZER = Optimizer(0.02, nesterov=True)
QUICK = WSOLClassifierSettings(
    optimizer=OPTIMIZER, epochs=3, batch=4, resize=12, crop=10, decay_every=2, cutmix_probability=0.5
)
RUNTIME = Runtime("cpu", workers=0)


class Tiny(WSOLNet):
    """A convolution with batch norm, and a classifier."""

    def __init__(self, norms: str = "batch", dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        backbone = Backbone("tests/tiny", stride=16, mean=(0.5,), std=(0.5,))
        self.spec, self.stride, self.dropout = WSOLNetSpec(backbone, 2, norms=norms), 1, dropout
        self.mean = self.std = (0.5,) * 3
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.dropout(self.norm(self.conv(x)).relu().mean((2, 3)), self.dropout, self.training))


def tints(root: Path) -> LocalizationData:
    """Return noise, reddish in class 0 and greenish in class 1."""
    rng, samples = np.random.default_rng(0), tuple(Sample(str(n), root / f"{n}.png", (n % 2,)) for n in range(19))
    root.mkdir(parents=True, exist_ok=True)
    for n, sample in enumerate(samples):
        pixels = rng.integers(0, 160, (14, 18, 3))
        pixels[..., n % 2] += 90
        if not sample.image.exists():
            Image.fromarray(pixels.astype(np.uint8)).save(sample.image)
    return LocalizationData("tints", root, "train", ("red", "green"), samples, {}, {})


def part(data: LocalizationData, count: int) -> LocalizationData:
    return replace(per_class(data, count), split="val")


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, out, norms = sys.argv[1:]
    steady = norms == "running"
    net = Tiny(norms, 0.0) if steady else Tiny()
    settings = replace(QUICK, cutmix_probability=0.0) if steady else QUICK
    data = tints(Path(images))
    train_wsol_classifier(settings, net, data, part(data, 3), Path(out), RUNTIME)
