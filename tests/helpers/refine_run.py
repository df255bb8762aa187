"""Scenes with seeds, and their refinement, as any launcher starts it."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.wsss.irn import IRNConfig
from advcam_attr.pipelines.wsss.refine import RefineConfig, refine
from advcam_attr.refine.seeds import strided_size
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import ClassMaps, Sample

SIZES = ((40, 56), (56, 40), (48, 48))
RUNTIME = Runtime("cpu", workers=0)
IRN_CONFIG = IRNConfig(
    backbone=Backbone("timm/test_resnet", random_weights=True), radius=3, epochs=2, batch=4, crop=64, pad_to=64,
    optimizer=Optimizer(0.05, 0.05, momentum=RELEASED_MOMENTUM), checkpoint_every=2,
)  # fmt: skip
CONFIG = RefineConfig(irn=IRN_CONFIG)


def scenes(folder: Path, count: int) -> tuple[SegmentationData, MapStore]:
    """Dark discs on light ground, of one of three classes, and seeds that cover their middles."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    store, samples, masks = MapStore(folder / "maps", settings="scenes"), [], {}
    for n in range(count):
        height, width = SIZES[n % len(SIZES)]
        y, x = np.mgrid[:height, :width]
        distance = np.hypot(y - random.uniform(0.4, 0.6) * height, x - random.uniform(0.4, 0.6) * width)
        label, id = n % 3, f"{n:03d}"
        masks[id] = torch.from_numpy(np.where(distance < 15, label + 1, 0).astype(np.uint8))
        noise = random.normal(0, 2, (height, width, 3))
        colour = np.where((distance < 15)[..., None], np.roll((20, 60, 110), label), (200, 210, 190))
        Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{id}.png")
        high_res = torch.from_numpy(np.exp(-((distance / 12) ** 2))).float()[None]
        cam = F.interpolate(high_res[None], strided_size((height, width), 4), mode="bilinear")[0]
        store.write(id, ClassMaps((label,), (height, width), cam, high_res))
        samples.append(Sample(id, folder / f"{id}.png", (label,)))
    classes = ("red", "green", "blue")
    data = SegmentationData("scenes", folder, "train", classes, tuple(samples), lambda sample: masks[sample.id])
    return data, store


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, seeds = scenes(Path(sys.argv[1]), int(sys.argv[2]))
    refine(CONFIG, seeds, data, Path(sys.argv[3]), RUNTIME)
