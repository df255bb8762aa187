"""Configurations of small whole runs, beside their data, for the working directory of a test."""

from __future__ import annotations

from pathlib import Path

from tiny_voc import write_voc
from tiny_wsol import write_cub

TINY = "name: timm/test_resnet, random_weights: true, mean: [0.5], std: [0.25]"

WSSS = f"""
run: run
data: {{root: VOC2012, train: train, val: val, score: train}}
net: {{backbone: {{{TINY}}}}}
classifier: {{epochs: 1, batch: 2, crop: 64, long_side: [64, 64], optimizer: {{head_lr: 0.1}}}}
seeds: {{recipe: auto, overrides: {{steps: 1}}, scales: [1.0]}}
refine:
  irn: {{backbone: {{name: timm/resnet18, random_weights: true}}, batch: 2, epochs: 1, crop: 64, radius: 3, pad_to: 64}}
segmentation:
  {{backbone: {{{TINY}}}, rates: [1, 2], msc: [], steps: 4, batch: 2, crop: 32, checkpoint_every: 2}}
runtime: {{workers: 0}}
"""

SEMI = f"""
run: semi
data:
  {{root: VOC2012, labelled: train, labelled_count: 1, unlabelled: train, pseudo: VOC2012/SegmentationClass, val: val}}
net: {{backbone: {{{TINY}}}, channels: 8, auxiliary: {{dropout: 1, feature_noise: 1}}}}
training: {{epochs: 2, batch: 2, crop: 32, long_side: [30, 60], validate_every: 1, checkpoint_every: 1}}
predict: {{scales: [1.0], flip: false}}
runtime: {{workers: 0}}
"""

WSOL = f"""
run: boxes
data: {{root: CUB_200_2011, score: test}}
classifier: {{backbone: {{{TINY}, stride: null}}, epochs: 2, batch: 2, resize: 72, crop: 64, checkpoint_every: 1}}
maps: {{overrides: {{steps: 1}}, size: 64}}
score: {{search: levels}}
runtime: {{workers: 0}}
"""


def configurations(folder: Path) -> Path:
    """Write data, ``wsss.yaml``, ``semi.yaml`` and ``wsol.yaml`` to a folder; images of ``unmasked`` have no masks."""
    train = {"a": ["dog"], "b": ["cat", "dog"], "c": ["cat"]}
    splits = {"train": train, "val": {"d": ["dog"], "e": ["cat"]}, "unmasked": {"u": ["dog"]}}
    write_voc(folder / "VOC2012", splits, size=(48, 64))
    (folder / "VOC2012" / "SegmentationClass" / "u.png").unlink()
    write_cub(folder)
    for name, text in {"wsss": WSSS, "semi": SEMI, "wsol": WSOL}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder
