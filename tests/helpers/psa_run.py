"""A small PSA refinement of scenes with discs, as any launcher starts it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.affinitynet import ResNet38Affinity
from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.wsss.affinity import refine_by_affinity
from advcam_attr.pipelines.wsss.mask_config import PSA_MOMENTUM
from advcam_attr.pipelines.wsss.psa import PSA, PSAConfig
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import ClassMaps, Sample
from refine_run import RUNTIME
from wrn38 import randomised

BACKBONE = Backbone("resnet38", random_weights=True)
OPTIMIZER = Optimizer(0.01, weight_decay=5e-4, momentum=PSA_MOMENTUM)
SMALL = PSAConfig(
    backbone=BACKBONE, width=2, radius=3, epochs=2, batch=2, crop=40, optimizer=OPTIMIZER, steps=4, small_grids="seam"
)
SIZES = ((44, 60), (60, 44), (37, 53))


class Seeds(dict[str, ClassMaps]):
    """Maps in memory."""

    settings = "made by hand"

    def read(self, id: str) -> ClassMaps:
        return self[id]


def discs(folder: Path, count: int) -> tuple[SegmentationData, Seeds]:
    """Return scenes of a red or a blue disc on green ground, and maps of the discs' upper parts only."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, seeds, masks = [], Seeds(), {}
    for n in range(count):
        height, width = SIZES[n % 3]
        random = np.random.default_rng(n)
        y, x = np.mgrid[:height, :width]
        disc = np.hypot(y - height / 2, x - width / 2) < 15
        label = n % 2
        image = np.full((height, width, 3), (40, 140, 60)) + random.integers(-10, 11, (height, width, 3))
        image[disc] = np.array([(200, 50, 40), (40, 60, 210)])[label] + random.integers(-10, 11, (int(disc.sum()), 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.png")
        peak = (2 * np.exp(-(((y - height / 2 + 5) / 8) ** 2) - ((x - width / 2) / 8) ** 2)).clip(0, 1)
        samples.append(Sample(f"{n}", folder / f"{n}.png", (label,)))
        seeds[f"{n}"] = ClassMaps((label,), (height, width), torch.zeros(1, 1, 1), torch.tensor(peak)[None].float())
        masks[f"{n}"] = torch.from_numpy(disc * (label + 1)).to(torch.uint8)
    return SegmentationData(
        "discs", folder, "all", ("red", "blue"), tuple(samples), lambda sample: masks[sample.id]
    ), seeds


def with_trunk(config: PSAConfig, folder: Path) -> PSAConfig:
    """Return a configuration whose trunk's features vary as trained ones do; as initialised they hardly do."""
    net = randomised(ResNet38Affinity(config.width)).float()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= 0.6
    torch.save(net.state_dict(), folder / "trunk.pth")
    return replace(config, backbone=Backbone("resnet38", checkpoint=folder / "trunk.pth"))


def without_dropout(net: ResNet38Affinity) -> ResNet38Affinity:
    for layer in (net.b6.dropout_2b1, net.b6.dropout_2b2, net.b7.dropout_2b1, net.b7.dropout_2b2):
        layer.p = 0.0
    return net


class SteadyPSA(PSA):
    """PSA whose net has no dropout, which would differ between ranks."""

    def make_net(self) -> ResNet38Affinity:
        return without_dropout(super().make_net())


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, seeds = discs(Path(sys.argv[1]), 5)
    refine_by_affinity(SteadyPSA(SMALL, RUNTIME), seeds, data, Path(sys.argv[2]))
