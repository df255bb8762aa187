"""What each part of AdvCAM does to seeds: the climb alone, each regularizer, both, and both with saliency, over T.

    python benchmarks/seed_ablation.py --data DATA --out DIR toy --steps 0 1 2 4 8 16 30

The settings are those of `benchmarks/seeds.py`. Two kinds of saliency are put in, at test time alone: a classical
detector that knows no classes (fine-grained static saliency of OpenCV's contrib modules, high where a pixel differs
from its surroundings), and, as an upper bound that no detector reaches, the true foreground, widened by a tenth of the
image's longer side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from seeds import SETTINGS, Setting, arguments, overrides

from advcam_attr.climbing.objective import TargetMinusOthers
from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store, sweep_seeds
from advcam_attr.types import Sample

Saliency = Callable[[Sample, tuple[int, int]], Tensor]


def detector(sample: Sample, size: tuple[int, int]) -> Tensor:
    """Salient where the fine-grained saliency is above its mean, after blurring by a twentieth of the width."""
    image = np.asarray(Image.open(sample.image).convert("RGB"))[:, :, ::-1]
    found, values = cv2.saliency.StaticSaliencyFineGrained_create().computeSaliency(np.ascontiguousarray(image))
    if not found:
        raise RuntimeError(f"no saliency of {sample.image}")
    values = cv2.GaussianBlur(values.astype(np.float32), (0, 0), max(1.0, image.shape[1] / 20))
    salient = torch.from_numpy(values > values.mean()).float()
    return F.interpolate(salient[None, None], size, mode="nearest")[0, 0]


def truth(setting: Setting) -> Saliency:
    """The true foreground, widened by a tenth of the longer side."""

    def widened(sample: Sample, size: tuple[int, int]) -> Tensor:
        mask = setting.data.mask(sample)
        inside = ((mask > 0) & (mask != 255)).float()[None, None]
        margin = max(mask.shape) // 10
        wide = F.max_pool2d(inside, 2 * margin + 1, stride=1, padding=margin)
        return F.interpolate(wide, size, mode="nearest")[0, 0]

    return widened


def variants(setting: Setting, changes: dict[str, Any]) -> dict[str, tuple[dict[str, Any], Saliency | None]]:
    """For each row of the table, what it changes of the recipe, and its saliency."""
    others = changes.pop("objective", TargetMinusOthers("mean", top_k=5, gate_others=True))
    alone: dict[str, Any] = {**changes, "objective": "target"}
    both = {**changes, "objective": others}
    return {
        "none": ({**alone, "regularizers": 0}, None),
        "other classes": ({**both, "regularizers": 0}, None),
        "high attributions": (alone, None),
        "both": (both, None),
        "both + detector": (both, detector),
        "both + true foreground": (both, truth(setting)),
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    print(f"\n{options.setting}, {options.half} half, recipe {options.recipe} {options.set}, scales {options.scales}")
    steps = options.steps or [0, 1, 2, 4, 8, 16, 30]
    print("\n| variant | rows | measure | CAM | AdvCAM | difference (90 % interval) | P / R | P / R | noise |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for setting in SETTINGS[options.setting](options):
        folder = options.out / f"{setting.name}_{options.half}_ablation"
        common = setting.common(options)
        make_seeds(setting.net, setting.data, folder / "cam", MapSettings(method="cam", **common))
        base = setting.score(seed_store(folder / "cam"))
        for name, (parts, saliency) in variants(setting, overrides(options)).items():
            settings = MapSettings(recipe=options.recipe, overrides=parts, saliency=saliency, **common)
            out = folder / name.replace(" ", "_")
            sweep_seeds(setting.net, setting.data, out, steps, settings)
            for t in steps:
                print(setting.compare(f"{name}, T = {t}", base, setting.score(seed_store(out, t))), flush=True)


if __name__ == "__main__":
    main()
