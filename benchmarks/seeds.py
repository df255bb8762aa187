"""How much better are AdvCAM's seeds than CAM's, by the full protocol: stride 16, four scales, mirror images.

    python benchmarks/seeds.py --data DATA --out DIR toy              # scenes with exact masks, a net from scratch
    python benchmarks/seeds.py --data DATA --out DIR coco             # COCO masks, an ImageNet net as it is
    python benchmarks/seeds.py --data DATA --out DIR voc --seeds 0 1 2  # 94 photographs, a net trained on their labels

DATA holds `coco`, `voc` and `weights` in their own layouts. A recipe is chosen on `--half tuning` and reported on
`--half reporting`: of images sorted by id, even places and odd places; of toy scenes, two worlds. One climb gives all
numbers of steps that are asked for.

- toy, voc: mean IoU over classes, pixels pooled over images, at the best background threshold of each method.
- coco: a pair of an image and a category counts when an ImageNet class that depicts the category is among the five
  strongest; the target is the strongest such class. The mean over pairs of the IoU at the best single threshold, and of
  pixel average precision.

Intervals are the 5th and 95th percentile of the paired difference over bootstrap samples of images, thresholds chosen
for each of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from localization import THRESHOLDS, halve, mobilenet

from advcam_attr.climbing.objective import TargetMinusOthers
from advcam_attr.climbing.steps import ClippedStep
from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.coco import CLASSES as COCO_CLASSES
from advcam_attr.data.coco import read_coco
from advcam_attr.data.images import read_rgb
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.toy import CLASS_NAMES, make_scenes
from advcam_attr.data.transforms import to_input
from advcam_attr.data.voc import read_voc
from advcam_attr.metrics.evaluation import SeedEvaluation, compare_best
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.cam_net import cam_net
from advcam_attr.pipelines.demo import train_net
from advcam_attr.pipelines.evaluate import evaluate_seeds
from advcam_attr.pipelines.maps import MapSettings, make_seeds, seed_store, sweep_seeds
from advcam_attr.pipelines.wsss.classifier import ClassifierConfig, train_classifier
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.runtime import Runtime
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import Sample

FINE = tuple(k / 50 for k in range(1, 50))


@dataclass(frozen=True)
class Setting:
    """One net and the images that its seeds are scored on."""

    name: str
    net: nn.Module
    data: SegmentationData
    mean: tuple[float, ...]
    std: tuple[float, ...]
    score: Callable[[MapStore], Any]
    compare: Callable[[str, Any, Any], str]

    def common(self, options: argparse.Namespace) -> dict[str, Any]:
        """What all of its seeds are made with."""
        rows = 64 if options.setting == "toy" else 1
        return {"mean": self.mean, "std": self.std, "scales": tuple(options.scales), "batch": rows}


# --- toy scenes -------------------------------------------------------------------------------------------------------


def toy(options: argparse.Namespace) -> Iterator[Setting]:
    """Pictures on disk, so that seeds are made of them as of any others."""
    world = {"tuning": 1, "reporting": 2}[options.half]
    for seed in options.seeds:
        net = train_net(make_scenes(options.train, size=96, seed=1000 * (seed + 1)), options.toy_epochs, seed)
        scenes = make_scenes(options.count, size=96, seed=1000 * (seed + 1) + world)
        folder = options.out / f"toy{seed}_{options.half}"
        folder.mkdir(parents=True, exist_ok=True)
        samples, masks = [], {}
        for i, (image, labels, mask) in enumerate(zip(scenes.images, scenes.labels, scenes.masks, strict=True)):
            sample = Sample(f"{i:05d}", folder / f"{i:05d}.png", tuple(labels.nonzero()[:, 0].tolist()))
            Image.fromarray((255 * image.permute(1, 2, 0)).round().byte().numpy()).save(sample.image)
            samples.append(sample)
            masks[sample.id] = mask
        data = SegmentationData("toy", folder, options.half, CLASS_NAMES, tuple(samples), lambda s, m=masks: m[s.id])
        yield pooled(f"toy{seed}", net, data, data, (0.5,) * 3, (0.25,) * 3)


# --- VOC's layout -----------------------------------------------------------------------------------------------------


def voc(options: argparse.Namespace) -> Iterator[Setting]:
    whole = read_voc(options.data / "voc", "trainval")
    parts = [read_voc(options.data / "voc", split) for split in ("train", "val")]
    chosen = {s.id for s in halve(sorted(whole.samples, key=lambda s: s.id), options.half)}
    scored = replace(whole, samples=tuple(s for s in whole.samples if s.id in chosen))
    class_map = read_class_map(options.data / "coco/coco_to_imagenet.json", whole.classes, class_offset=1)
    for seed in options.seeds:
        backbone = Backbone(
            "timm/mobilenetv2_100",
            {"num_classes": 1001, "pad_type": "same"},
            mean=[0.5],
            std=[0.5],
            checkpoint=options.data / "weights/mobilenetv2_100_imagenet.safetensors",
            stride_mode="dilation",
            train_from="classifier",
        )
        net = cam_net(backbone, 20, seed=seed, class_map=class_map)
        optimizer = Optimizer(0.1, 0.3, weight_decay=0.0, momentum=0.9)
        config = ClassifierConfig(epochs=10, batch=10, crop=320, long_side=(320, 480), optimizer=optimizer, anchor=0.01)
        out = options.out / f"voc{seed}" / "classifier"
        train_classifier(config, net, parts[0], parts[1], out, Runtime(workers=0, seed=seed))
        yield pooled(f"voc{seed}", net, scored, scored, net.mean, net.std)


def pooled(name: str, net: nn.Module, data: SegmentationData, scored: SegmentationData, mean: Any, std: Any) -> Setting:
    def line(label: str, base: SeedEvaluation, found: SeedEvaluation) -> str:
        a, b = (one.at() for one in (base, found))
        gain, low, high = (100 * value for value in compare_best(found, base))
        one, two = a.scores(), b.scores()
        return (
            f"| {label} | {len(base.scope.ids)} | mIoU | {100 * one.mean_iou:.1f} | {100 * two.mean_iou:.1f} | "
            f"{gain:+.1f} ({low:+.1f} to {high:+.1f}) | {100 * one.precision:.1f} / {100 * one.recall:.1f} | "
            f"{100 * two.precision:.1f} / {100 * two.recall:.1f} | {100 * one.noise:.1f} / {100 * two.noise:.1f} |"
        )

    return Setting(name, net, data, mean, std, lambda store: evaluate_seeds(store, scored, FINE), line)


# --- COCO with an ImageNet net ----------------------------------------------------------------------------------------


def coco(options: argparse.Namespace) -> Iterator[Setting]:
    loaded = mobilenet(options.data, "mobilenetv2_100_imagenet.safetensors", 1001, stride=16)
    whole = read_coco(options.data / "coco", "train2014", masks="draw")
    depicts = json.loads((options.data / "coco/coco_to_imagenet.json").read_text())
    pairs: list[tuple[str, int, int]] = []
    samples = []
    for sample in halve(sorted(whole.samples, key=lambda s: s.id), options.half):
        with torch.no_grad():
            logits = loaded.model(to_input(read_rgb(sample.image), (0.5,) * 3, (0.5,) * 3)[None])[0]
        strongest = set(logits.topk(5).indices.tolist())
        targets = {}
        for category in sample.labels:
            classes = [c + 1 for c in depicts.get(COCO_CLASSES[category], [])]
            if strongest & set(classes):
                targets[category] = max(classes, key=lambda c, scores=logits: float(scores[c]))
        if targets:
            samples.append(Sample(sample.id, sample.image, tuple(sorted(set(targets.values())))))
            pairs += [(sample.id, category, target) for category, target in targets.items()]
    data = SegmentationData("coco", whole.root, options.half, tuple(map(str, range(1001))), tuple(samples), whole.mask)
    masks = {s.id: whole.mask(s).numpy() for s in samples}
    images = np.unique([id for id, _, _ in pairs], return_inverse=True)[1]

    def score(store: MapStore) -> tuple[np.ndarray, np.ndarray]:
        each = [pair_scores(store.read(id), masks[id], category, target) for id, category, target in pairs]
        return np.stack([ious for ious, _ in each]), np.array([precision for _, precision in each])

    def line(label: str, base: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray]) -> str:
        random = np.random.default_rng(0)
        drawn = [random.integers(images.max() + 1, size=images.max() + 1) for _ in range(2000)]
        weights = np.stack([np.bincount(d, minlength=images.max() + 1)[images] for d in drawn]).astype(float)
        weights /= weights.sum(1, keepdims=True)
        gains = 100 * ((weights @ found[0]).max(1) - (weights @ base[0]).max(1))
        better = 100 * (weights @ (found[1] - base[1]))
        one, two = (100 * scores[0].mean(0).max() for scores in (base, found))
        lines = [
            f"| {label} | {len(pairs)} | mean IoU | {one:.1f} | {two:.1f} | {interval(two - one, gains)} |",
            f"| {label} | {len(pairs)} | pixel AP | {100 * base[1].mean():.1f} | {100 * found[1].mean():.1f} | "
            f"{interval(100 * (found[1] - base[1]).mean(), better)} |",
        ]
        return "\n".join(lines)

    yield Setting("coco", loaded.model, data, (0.5,) * 3, (0.5,) * 3, score, line)


def interval(value: float, draws: np.ndarray) -> str:
    low, high = np.percentile(draws, [5, 95])
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def pair_scores(maps: Any, truth: np.ndarray, category: int, target: int) -> tuple[np.ndarray, float]:
    """IoU at each threshold and pixel average precision of one class's map."""
    heat = maps.high_res[maps.classes.index(target)].numpy()
    counted = truth != 255
    wanted, heat = (truth == category + 1)[counted], heat[counted]
    edges = np.append(THRESHOLDS, 1.01)
    hits, misses = (np.histogram(heat[m], edges)[0][::-1].cumsum()[::-1] for m in (wanted, ~wanted))
    order = np.argsort(-heat, kind="stable")
    precision = np.cumsum(wanted[order]) / np.arange(1, len(order) + 1)
    return hits / (wanted.sum() + misses), float(precision[wanted[order]].mean())


# --- all --------------------------------------------------------------------------------------------------------------


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """`--set` as parts of a recipe; those that take several numbers are spelt out here."""
    parts: dict[str, Any] = {}
    for item in options.set:
        key, value = item.split("=", 1)
        try:
            parts[key] = json.loads(value)
        except ValueError:
            parts[key] = value
    if "clipped" in parts:
        parts["step_rule"] = ClippedStep(*parts.pop("clipped"))
    if "others" in parts:
        parts["objective"] = TargetMinusOthers("mean", top_k=5, weight=parts.pop("others"), gate_others=True)
    return parts


SETTINGS = {"toy": toy, "coco": coco, "voc": voc}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What is run, on which images, with which recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of maps and nets, gone on with")
    parser.add_argument("--half", choices=["tuning", "reporting"], default="reporting")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="PART=VALUE")
    parser.add_argument("--steps", nargs="*", type=int, default=[], help="numbers of steps (default: the recipe's)")
    parser.add_argument("--scales", nargs="*", type=float, default=[1.0, 0.5, 1.5, 2.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of training")
    parser.add_argument("--count", type=int, default=2000, help="toy scenes that seeds are made of")
    parser.add_argument("--train", type=int, default=2000, help="toy scenes that the net learns from")
    parser.add_argument("--toy-epochs", type=int, default=12)
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--name", default="advcam", help="of the recipe's folder")
    options = parser.parse_args()
    changes = overrides(options)
    print(f"\n{options.setting}, {options.half} half, recipe {options.recipe} {changes or ''}, scales {options.scales}")
    print("\n| setting | rows | measure | CAM | AdvCAM | difference (90 % interval) | P / R | P / R | noise |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for setting in SETTINGS[options.setting](options):
        folder = options.out / f"{setting.name}_{options.half}_seeds"
        common = setting.common(options)
        start = time.perf_counter()
        make_seeds(setting.net, setting.data, folder / "cam", MapSettings(method="cam", **common))
        base = setting.score(seed_store(folder / "cam"))
        between = time.perf_counter()
        settings = MapSettings(recipe=options.recipe, overrides=changes, **common)
        steps = options.steps or [settings.whole_recipe().steps]
        sweep_seeds(setting.net, setting.data, folder / options.name, steps, settings)
        for t in steps:
            found = setting.score(seed_store(folder / options.name, t))
            print(setting.compare(f"{setting.name}, T = {t}", base, found), flush=True)
        seconds = between - start, time.perf_counter() - between
        print(f"{setting.name}: CAM {seconds[0]:.0f} s, AdvCAM {seconds[1]:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
