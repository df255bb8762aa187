"""A seed classifier trained on tinted noise, as any launcher starts it."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import CAMNet, CAMNetSpec
from advcam_attr.pipelines.wsss import classifier
from advcam_attr.pipelines.wsss.classifier import ClassifierConfig, train_classifier
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError, Sample

OPTIMIZER = Optimizer(0.05, 0.5, momentum=RELEASED_MOMENTUM)
CONFIG = ClassifierConfig(epochs=2, batch=4, crop=16, optimizer=OPTIMIZER)
RUNTIME = Runtime("cpu", workers=0)


class TinyCAM(CAMNet):
    """A stem with a norm, a layer with dropout, two classes; stride 2."""

    def __init__(self, dropout: float = 0.2) -> None:
        torch.manual_seed(0)
        super().__init__(CAMNetSpec(Backbone("tests/tiny", stride=16), 2), 2, 6, (0.5,) * 3, (0.5,) * 3)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        for parameter in self.backbone[:2].parameters():
            parameter.requires_grad_(False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


class Blobs:
    """Noise whose first channel is bright in class 0, the second in class 1."""

    def __init__(self, data: SegmentationData, config: ClassifierConfig) -> None:
        self.data, self.size = data, config.crop

    def __len__(self) -> int:
        return len(self.data.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(2)
        labels[list(self.data.samples[index].labels)] = 1
        image = torch.rand(3, self.size, self.size)
        image[:2] += labels[:, None, None]
        return image, labels


def no_mask(sample: Sample) -> torch.Tensor:
    raise AdvCAMError("no masks")


def blobs(count: int, split: str = "train") -> SegmentationData:
    labels = [(0,), (1,), (0, 1), ()]
    samples = tuple(Sample(f"{split}{n}", Path(f"{n}.png"), labels[n % 4]) for n in range(count))
    return SegmentationData("blobs", Path(), split, ("red", "green"), samples, no_mask)


TRAIN, VAL = blobs(22), blobs(9, "val")


class SlowBlobs(Blobs):
    """Blobs whose reading takes a while, and ends a rank's first process after 12 images."""

    delay, reads = 0.0, 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.delay)
        SlowBlobs.reads += 1
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and os.environ.get("DIES") == os.environ.get("RANK") and SlowBlobs.reads == 13:
            print("a rank dies", flush=True)
            os._exit(1)
        return super().__getitem__(index)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stdout)
    torch.set_num_threads(1)
    out, delay, dropout = sys.argv[1:]
    SlowBlobs.delay = float(delay)
    classifier.training_items = classifier.validation_items = lambda data, config, net: SlowBlobs(data, config)
    train_classifier(replace(CONFIG, checkpoint_every=2), TinyCAM(float(dropout)), TRAIN, VAL, Path(out), RUNTIME)
