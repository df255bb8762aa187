"""Which recipe of AdvCAM localizes better than CAM, and after how many steps? One climb gives every number of steps.

    python benchmarks/recipes.py --data DATA --net runs/voc_animals/classifier/classifier.safetensors
    python benchmarks/recipes.py --data DATA --only birds coco32 --recipes auto --half reporting

DATA holds `CUB_200_2011`, `coco`, `voc_animals` and `weights` in their own layouts. Recipes are chosen on the tuning
half (even places of the sorted ids); the reporting half is looked at once. One scale, views as the recipe has them.

- voc: images of VOC's animals at their own size, with the net that `configs/voc_animals.yaml` trains; mean IoU over
  classes at the best background threshold.
- birds, coco32, coco16, squeezenet: as in `benchmarks/localization.py`, whose protocol and intervals these are. Names
  that end in lite0 have another ImageNet net, which was used for no earlier choice.

CAM is that of the image alone for birds and COCO, and of the pair of image and mirror image for VOC's seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from localization import (
    Case,
    Result,
    as_input,
    birds,
    coco,
    compare,
    halve,
    mobilenet,
    score_boxes,
    score_masks,
    squeezenet,
)

from advcam_attr import AdvCAM
from advcam_attr.climbing import recipes
from advcam_attr.climbing.loop import totals
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.transforms import to_input
from advcam_attr.data.voc import read_voc
from advcam_attr.metrics.evaluation import SeedEvaluation, compare_best
from advcam_attr.networks.cam_net import CAM_NET
from advcam_attr.networks.load import load_model
from advcam_attr.networks.loaded_model import LoadedModel, Preprocessing
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.evaluate import evaluate_seeds
from advcam_attr.refine.seeds import GridMaps, class_maps
from advcam_attr.types import ClassMaps

FINE = tuple(k / 50 for k in range(1, 50))
VOC = "voc_animals/VOCdevkit/VOC2012"


def variants() -> dict[str, Recipe]:
    """Every recipe that was tried, by the name of its row in docs/choosing.md."""
    official, auto = recipes.get("official", scales=1.0, schedule="same"), recipes.get("auto")
    return {
        "auto": auto,
        "auto, all steps": auto.with_(stop=None),
        "auto, sum of views": auto.with_(flip="pair"),
        "auto, sum of views, all steps": auto.with_(flip="pair", stop=None),
        "official": official,
        "official, target alone": official.with_(objective="target"),
        "official, top five": official.with_(objective="minus_top5"),
    }


@dataclass(frozen=True)
class Setting:
    """A net, its cases, and how maps of the cases become lines of the table: (name, maps of CAM, maps)."""

    net: LoadedModel
    cases: Sequence[Case]
    lines: Callable[[str, Sequence[np.ndarray], Sequence[np.ndarray]], list[str]]
    pair: bool = False


def scored(net: LoadedModel, cases: Sequence[Case], score: Callable[..., Result]) -> Setting:
    """Boxes or masks of single cases."""

    def lines(name: str, base: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> list[str]:
        return compare(name, score(cases, base), score(cases, maps))

    return Setting(net, cases, lines)


class MapsById(dict[str, ClassMaps]):
    """Class maps in memory, read as those of a store."""

    read = dict.__getitem__


def voc(data: Path, net: LoadedModel, half: str, take: int) -> Setting:
    """Every ``take``-th image of the half of VOC's ``train``."""
    whole = read_voc(data / VOC, "train")
    chosen = halve(sorted(whole.samples, key=lambda s: s.id), half)[::take]
    cases = []
    for number, sample in enumerate(chosen):
        x = as_input(net, sample.image, Image.open(sample.image).size)
        cases += [Case(number, x, k, np.empty(0)) for k in sample.labels]
    split = replace(whole, split=f"{half} half of train", samples=tuple(chosen))

    def seeds(maps: Sequence[np.ndarray]) -> SeedEvaluation:
        found = MapsById()
        for number, sample in enumerate(chosen):
            own = [torch.from_numpy(m) for c, m in zip(cases, maps, strict=True) if c.image == number]
            size = tuple(whole.mask(sample).shape)
            found[sample.id] = class_maps(GridMaps(sample.labels, size, (torch.stack(own).float(),)))
        return evaluate_seeds(found, split, FINE)

    def lines(name: str, base: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> list[str]:
        one, two = seeds(base), seeds(maps)
        gain, low, high = (100 * value for value in compare_best(two, one))
        before, after = (100 * each.at().scores().mean_iou for each in (one, two))
        return [
            f"| {name} | {len(chosen)} | mIoU | {before:.1f} | {after:.1f} | {gain:+.1f} ({low:+.1f} to {high:+.1f}) |"
        ]

    return Setting(net, cases, lines, pair=True)


def trained(file: Path) -> LoadedModel:
    net, names = load_net(file, CAM_NET)
    normalize = Preprocessing(lambda image: to_input(image, net.mean, net.std), tuple(net.mean), tuple(net.std), None)
    return LoadedModel(str(file), net.eval(), normalize, names, str(file), False)


def finer(net: LoadedModel) -> LoadedModel:
    """The net of stride 16: its last stride removed, as `localization.mobilenet` does."""
    net.model.blocks[5][0].conv_dw.stride = (1, 1)
    return net


def climbed(setting: Setting, recipe: Recipe, steps: Sequence[int], batch: int) -> dict[int, list[np.ndarray]]:
    """The native maps of all cases after each number of steps."""
    adv = AdvCAM(setting.net.model, recipe=recipe.with_(steps=max(steps)))
    maps = {t: [np.empty(0)] * len(setting.cases) for t in steps}
    by_size: dict[torch.Size, list[int]] = {}
    for row, case in enumerate(setting.cases):
        by_size.setdefault(case.x.shape, []).append(row)
    for rows in (one[k : k + batch] for one in by_size.values() for k in range(0, len(one), batch)):
        x = torch.stack([setting.cases[row].x for row in rows])
        climb = adv.climb(x, [setting.cases[row].target for row in rows])
        for step, total in totals(climb, adv.recipe.plan().aggregate):
            for row, one in zip(rows, total, strict=True):
                if step.index in maps:
                    maps[step.index][row] = one.numpy()
    return maps


def settings(options: argparse.Namespace) -> dict[str, Callable[[], Setting]]:
    data, half = options.data, options.half

    def lite0() -> LoadedModel:
        file = data / "weights/tf_efficientnet_lite0_imagenet.safetensors"
        return load_model("timm/tf_efficientnet_lite0", checkpoint=file)

    def imagenet() -> LoadedModel:
        return mobilenet(data, "mobilenetv2_100_imagenet.safetensors", 1001)

    def of_coco(net: LoadedModel, offset: int) -> Setting:
        return scored(net, coco(data, net, offset, half), score_masks)

    def of_birds() -> Setting:
        net = mobilenet(data, "mobilenetv2_100_inat_birds.safetensors", 965)
        return scored(net, birds(data, net, half), score_boxes)

    return {
        "voc": lambda: voc(data, trained(options.net), half, options.take),
        "birds": of_birds,
        "coco32": lambda: of_coco(imagenet(), 1),
        "coco16": lambda: of_coco(finer(imagenet()), 1),
        "squeezenet": lambda: of_coco(squeezenet(data), 0),
        "coco32 lite0": lambda: of_coco(lite0(), 0),
        "coco16 lite0": lambda: of_coco(finer(lite0()), 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--net", type=Path, help="the net of setting voc")
    parser.add_argument("--half", choices=["tuning", "reporting"], default="tuning")
    parser.add_argument("--only", nargs="*", default=None, help="settings (default: all)")
    parser.add_argument("--recipes", nargs="*", default=None, help="recipes (default: all)")
    parser.add_argument("--steps", nargs="*", type=int, default=[1, 2, 3, 5, 8])
    parser.add_argument("--take", type=int, default=3, help="every so many images of VOC's half")
    parser.add_argument("--batch", type=int, default=4, help="images climbed at once")
    options = parser.parse_args()
    print(
        f"\n{options.half} half\n\n| setting, recipe, T | rows | measure | CAM | AdvCAM | difference (90 % interval) |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for name, make in settings(options).items():
        if name not in (options.only or [name]):
            continue
        setting = make()
        cam = recipes.get("auto", transform="relu", flip=setting.pair, stop=None)
        base = climbed(setting, cam, [0], options.batch)[0]
        for title, recipe in variants().items():
            if title not in (options.recipes or [title]):
                continue
            start = time.perf_counter()
            maps = climbed(setting, recipe, options.steps, options.batch)
            seconds = time.perf_counter() - start
            for t in options.steps:
                print("\n".join(setting.lines(f"{name}, {title}, T = {t}", base, maps[t])), flush=True)
            print(f"{name}, {title}: {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
