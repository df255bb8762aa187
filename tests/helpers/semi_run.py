"""A small CCT training on scenes; as a script, for launchers of several processes."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from advcam_attr.data.masks import write_mask
from advcam_attr.data.samples import SegmentationData
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cct import CCT, cct_net
from advcam_attr.pipelines.semi.config import SemiSettings
from advcam_attr.pipelines.semi.data import PseudoMaskFolder, SemiData
from advcam_attr.pipelines.semi.training import train_semi
from advcam_attr.runs.runtime import Runtime
from refine_run import scenes

SETTINGS = SemiSettings(epochs=3, batch=2, crop=32, long_side=(30, 60), validate_every=1, checkpoint_every=2)
RUNTIME = Runtime("cpu", workers=0, seed=42)
FEW = {"vat": 1, "dropout": 1, "context_mask": 1, "feature_noise": 1}


def small_net(seed: int = 0, auxiliary: dict[str, int] = FEW) -> CCT:
    """Return a net of three classes and the background; a training step takes a tenth of a second."""
    return cct_net(Backbone("timm/test_resnet", random_weights=True), 4, auxiliary=auxiliary, channels=8, seed=seed)


def semi_scenes(folder: Path) -> SemiData:
    """Return two labelled scenes, five unlabelled ones with pseudo masks, and two for validation."""
    data, _ = scenes(folder, 9)
    for sample in data.samples[2:7]:
        write_mask(folder / "pseudo" / f"{sample.id}.png", data.mask(sample))
    return SemiData(_part(data, 0, 2), _part(data, 2, 7), PseudoMaskFolder(folder / "pseudo", 3), _part(data, 7, 9))


def _part(data: SegmentationData, first: int, last: int) -> SegmentationData:
    return replace(data, samples=data.samples[first:last], split=f"{first}-{last}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_semi(replace(SETTINGS, batch=4), small_net(), semi_scenes(Path(sys.argv[1])), Path(sys.argv[2]), RUNTIME)
