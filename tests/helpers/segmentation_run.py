"""A segmentation net trained on the masks of small scenes, as any launcher starts it."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from advcam_attr.data.masks import write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.pipelines.wsss.segment import SegmentationConfig, segment
from advcam_attr.training.optimizer import Optimizer
from refine_run import RUNTIME, scenes

CONFIG = SegmentationConfig(
    backbone=Backbone("timm/test_resnet", random_weights=True, stride=8), rates=(1, 2), msc=(0.5,), steps=6, batch=4,
    crop=48, scales=(0.75, 1.0), optimizer=Optimizer(0.01, weight_decay=5e-4, lr_update_every=2), checkpoint_every=2,
    crf=None,
)  # fmt: skip


def masked_scenes(folder: Path, count: int) -> tuple[SegmentationData, SegmentationData, Path]:
    """Scenes to train on, three of them to test on, and a folder of true masks."""
    data, _ = scenes(folder, count)
    for sample in data.samples:
        write_mask(folder / "masks" / f"{sample.id}.png", data.mask(sample))
    return data, replace(data, split="val", samples=data.samples[:3]), folder / "masks"


if __name__ == "__main__":
    torch.set_num_threads(1)
    train, val, masks = masked_scenes(Path(sys.argv[1]), int(sys.argv[2]))
    segment(CONFIG, train, masks, [val], Path(sys.argv[3]), RUNTIME)
