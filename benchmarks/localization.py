"""Does AdvCAM localize better than CAM? Boxes of birds and masks of COCO, on one half of the images.

    python benchmarks/localization.py --data DATA                     # the reporting half, recipe "auto"
    python benchmarks/localization.py --data DATA --half tuning --set steps=6

DATA holds `CUB_200_2011`, `coco`, `imagenet` and `weights` in their own layouts. Sorted by image id, even places are
the tuning half, on which recipes are chosen, odd places the reporting half, which is looked at once a recipe is fixed.

- Birds: an iNaturalist net without training, the images of the six species it knows, 224 x 224, ground-truth class;
  MaxBoxAccV2 (multiple contours, every grey level, best level for each IoU on the set itself).
- COCO: ImageNet nets without training on COCO masks, long side 384; a pair of an image and a category counts when an
  ImageNet class that depicts the category is among the five strongest; the target is the strongest such class. Mean IoU
  at the best single threshold, and the mean of pixel average precision, over pairs.
- Rise: the share of ImageNet photographs (and of all birds) whose strongest class is scored higher at the last step.

Intervals are the 5th and 95th percentile of the paired difference over 2000 bootstrap samples of images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM
from advcam_attr.metrics.box_sweep import best_ious
from advcam_attr.metrics.localization import BoxTable, best_share, measure_counts
from advcam_attr.networks.load import load_model
from advcam_attr.networks.loaded_model import LoadedModel
from advcam_attr.refine.boxes import boxes_above, grey_levels, resize_boxes, score_map

BIRDS = {
    1: "Black-footed Albatross", 2: "Laysan Albatross", 4: "Groove-billed Ani", 8: "Rhinoceros Auklet",
    9: "Brewer's Blackbird", 10: "Red-winged Blackbird",
}  # fmt: skip
THRESHOLDS = np.arange(0, 1, 0.01)


@dataclass(frozen=True)
class Case:
    """One image and class: ``x`` is the net's input ``(3, H, W)``, ``truth`` a box or a mask (and what to ignore)."""

    image: int
    x: Tensor
    target: int
    truth: np.ndarray
    ignored: np.ndarray | None = None


@dataclass(frozen=True)
class Result:
    """Scores of one method, one row a case: hits of boxes, or IoU at each threshold and average precision of masks."""

    images: np.ndarray
    first: np.ndarray
    second: np.ndarray | None = None


def halve(items: Sequence, half: str) -> list:
    """Even places are the tuning half, odd places the reporting half."""
    return list(items[0::2] if half == "tuning" else items[1::2])


def mobilenet(data: Path, file: str, classes: int, stride: int = 32) -> LoadedModel:
    args = {"num_classes": classes, "pad_type": "same"}
    loaded = load_model(
        "timm/mobilenetv2_100", model_args=args, checkpoint=data / "weights" / file, mean=[0.5], std=[0.5]
    )
    if stride == 16:
        loaded.model.blocks[5][0].conv_dw.stride = (1, 1)
    return loaded


def squeezenet(data: Path) -> LoadedModel:
    return load_model("torchvision/squeezenet1_1", checkpoint=data / "weights" / "squeezenet1_1_imagenet.safetensors")


def as_input(loaded: LoadedModel, file: Path, size: tuple[int, int]) -> Tensor:
    """A photograph at exactly ``size`` (width, height), normalised for the net."""
    picture = Image.open(file).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.preprocessing.mean, loaded.preprocessing.std))
    return (x - mean) / std


def birds(data: Path, loaded: LoadedModel, half: str) -> list[Case]:
    root = data / "CUB_200_2011"
    table = {n: dict(line.split(maxsplit=1) for line in (root / f"{n}.txt").read_text().splitlines())
             for n in ("images", "image_class_labels", "bounding_boxes")}  # fmt: skip
    names = (data / "weights" / "inat_birds_labels.txt").read_text().splitlines()
    classes = {k: next(i for i, n in enumerate(names) if f"({bird})" in n) for k, bird in BIRDS.items()}
    known = sorted((i for i in table["images"] if int(table["image_class_labels"][i]) in BIRDS), key=int)
    cases = []
    for i in halve(known, half):
        file = root / "images" / table["images"][i]
        width, height = Image.open(file).size
        x, y, w, h = map(float, table["bounding_boxes"][i].split())
        box = [x, y, min(x + w, width - 1), min(y + h, height - 1)]
        target = classes[int(table["image_class_labels"][i])]
        truth = resize_boxes([box], (height, width))[0]
        cases.append(Case(int(i), as_input(loaded, file, (224, 224)), target, truth))
    return cases


def coco(data: Path, loaded: LoadedModel, offset: int, half: str) -> list[Case]:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(data / "coco/annotations/instances_train2014.json"))
    depicts = json.loads((data / "coco/coco_to_imagenet.json").read_text())
    cases = []
    for i in halve(sorted(index.imgs), half):
        info = index.imgs[i]
        scale = 384 / max(info["width"], info["height"])
        size = round(info["width"] * scale), round(info["height"] * scale)
        x = as_input(loaded, data / "coco/train2014" / info["file_name"], size)
        with torch.no_grad():
            logits = loaded.model(x[None])[0]
        strongest = set(logits.topk(5).indices.tolist())
        notes = index.loadAnns(index.getAnnIds(i))
        for category in sorted({a["category_id"] for a in notes if not a["iscrowd"]}):
            classes = [c + offset for c in depicts.get(index.cats[category]["name"], [])]
            if not strongest & set(classes):
                continue
            truth, ignored = (np.zeros((info["height"], info["width"]), np.uint8) for _ in range(2))
            for note in notes:
                if note["category_id"] == category:
                    (ignored if note["iscrowd"] else truth)[index.annToMask(note) > 0] = 1
            truth, ignored = (cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) > 0 for m in (truth, ignored))
            target = max(classes, key=lambda c: float(logits[c]))
            cases.append(Case(i, x, target, truth, ignored & ~truth))
    return cases


def box_table(cases: Sequence[Case], maps: Sequence[np.ndarray]) -> BoxTable:
    """The best IoU of any contour's box at each grey level, for each case."""
    grey = [grey_levels(score_map(m)) for m in maps]
    best = [best_ious(g, c.truth[None], boxes_above) for g, c in zip(grey, cases, strict=True)]
    ids = tuple(str(c.image) for c in cases)
    return BoxTable(ids, torch.from_numpy(np.stack(best)), torch.tensor([g.max() for g in grey]))


def mask_scores(scores: np.ndarray, case: Case) -> tuple[np.ndarray, float]:
    """IoU at each threshold and the average precision of one map."""
    size = case.truth.shape
    up = F.interpolate(torch.from_numpy(scores)[None, None].double(), size, mode="bilinear", align_corners=False)[0, 0]
    heat = up.relu().numpy()
    heat = heat / max(heat.max(), 1e-12)
    s, y = heat[~case.ignored], case.truth[~case.ignored]
    edges = np.append(THRESHOLDS, 1.01)
    hits, misses = (np.histogram(s[m], edges)[0][::-1].cumsum()[::-1] for m in (y, ~y))
    order = np.argsort(-s, kind="stable")
    last = np.append(np.diff(s[order]) != 0, True)
    found = y[order].cumsum()[last]
    precision = found / (np.nonzero(last)[0] + 1)
    return hits / (y.sum() + misses), float((np.diff(found, prepend=0) * precision).sum() / y.sum())


def attribute(method: CAM | AdvCAM, cases: Sequence[Case], batch: int = 8) -> list[np.ndarray]:
    """The native map of each case; cases of a size go in batches."""
    maps: list[np.ndarray] = [np.empty(0)] * len(cases)
    by_size: dict[torch.Size, list[int]] = {}
    for i, case in enumerate(cases):
        by_size.setdefault(case.x.shape, []).append(i)
    for rows in by_size.values():
        x = torch.stack([cases[i].x for i in rows])
        found = method.attribute(x, [cases[i].target for i in rows], output="native", internal_batch_size=batch)
        for i, one in zip(rows, found, strict=True):
            maps[i] = one[0].numpy()
    return maps


def score_boxes(cases: Sequence[Case], maps: Sequence[np.ndarray]) -> Result:
    hits = measure_counts(box_table(cases, maps), "max_box_acc_v2")
    return Result(np.array([c.image for c in cases]), hits.numpy())


def score_masks(cases: Sequence[Case], maps: Sequence[np.ndarray]) -> Result:
    each = [mask_scores(m, c) for m, c in zip(maps, cases, strict=True)]
    return Result(np.array([c.image for c in cases]), np.stack([e[0] for e in each]), np.array([e[1] for e in each]))


def measures(result: Result, weights: np.ndarray) -> dict[str, float]:
    if result.second is None:
        pooled = torch.from_numpy(np.tensordot(weights, result.first, 1))
        return {"MaxBoxAccV2": 100 * float(best_share(pooled))}
    return {"mean IoU": float(100 * (weights @ result.first).max()), "pixel AP": float(100 * weights @ result.second)}


def mirrored(cases: Sequence[Case], net: nn.Module) -> list[np.ndarray]:
    """CAM of the image and of its mirror image, summed: the base of a recipe that climbs the pair."""
    plain = attribute(CAM(net), cases)
    mirror = attribute(CAM(net), [replace(c, x=c.x.flip(-1)) for c in cases])
    return [a + b[:, ::-1] for a, b in zip(plain, mirror, strict=True)]


def compare(name: str, cam: Result, adv: Result, draws: int = 2000) -> list[str]:
    """Lines of the table: both methods, and the difference with its bootstrap interval over images."""
    images, row_image = np.unique(cam.images, return_inverse=True)
    whole = np.full(len(row_image), 1 / len(row_image))
    before, after = measures(cam, whole), measures(adv, whole)
    random = np.random.default_rng(0)
    draws_of: dict[str, list[float]] = {key: [] for key in before}
    for _ in range(draws):
        weights = np.bincount(random.integers(len(images), size=len(images)), minlength=len(images))[row_image].astype(
            float
        )
        weights /= weights.sum()
        one, two = measures(cam, weights), measures(adv, weights)
        for key in draws_of:
            draws_of[key].append(two[key] - one[key])
    lines = []
    for key in before:
        low, high = np.percentile(draws_of[key], [5, 95])
        lines.append(f"| {name} | {len(row_image)} | {key} | {before[key]:.1f} | {after[key]:.1f} | "
                     f"{after[key] - before[key]:+.1f} ({low:+.1f} to {high:+.1f}) |")  # fmt: skip
    return lines


def rise(method: AdvCAM, model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The share of images, percent, whose strongest class is scored higher at the last step than at the first."""
    risen = 0
    for x in inputs:
        logits: list[float] = []
        with torch.no_grad():
            target = int(model(x[None]).argmax())
        method.attribute(
            x[None], target, on_step=lambda s, t=target, seen=logits: seen.append(float(s.logits[0, 0, t]))
        )
        risen += logits[-1] > logits[0]
    return 100 * risen / len(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=["tuning", "reporting"], default="reporting")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="PART=VALUE", help="overrides of the recipe")
    parser.add_argument("--only", nargs="*", default=["birds", "coco32", "coco16", "squeezenet", "rise"])
    options = parser.parse_args()
    changes = {k: json.loads(v) if v[0] in "-0123456789[tf" else v for k, v in (s.split("=", 1) for s in options.set)}

    def settings() -> dict[str, Callable[[], tuple[LoadedModel, list[Case], Callable]]]:
        def imagenet(stride: int) -> tuple[LoadedModel, list[Case], Callable]:
            net = mobilenet(options.data, "mobilenetv2_100_imagenet.safetensors", 1001, stride)
            return net, coco(options.data, net, 1, options.half), score_masks

        def inat() -> tuple[LoadedModel, list[Case], Callable]:
            net = mobilenet(options.data, "mobilenetv2_100_inat_birds.safetensors", 965)
            return net, birds(options.data, net, options.half), score_boxes

        def squeeze() -> tuple[LoadedModel, list[Case], Callable]:
            net = squeezenet(options.data)
            return net, coco(options.data, net, 0, options.half), score_masks

        return {"birds": inat, "coco32": lambda: imagenet(32), "coco16": lambda: imagenet(16), "squeezenet": squeeze}

    print(f"\n{options.half} half, recipe {options.recipe} {changes or ''}\n")
    print("| setting | base | rows | measure | base | AdvCAM | difference (90 % interval) |")
    print("|---|---|---|---|---|---|---|")
    photographs = sorted((options.data / "imagenet/val").rglob("*.JPEG"))
    rises = []
    for name, make in settings().items():
        start = time.perf_counter()
        net, cases, score = make()
        cam, adv = CAM(net.model), AdvCAM(net.model, recipe=options.recipe, **changes)
        if name in options.only:
            found = score(cases, attribute(adv, cases))
            bases = {"CAM": attribute(cam, cases), "CAM of the pair": mirrored(cases, net.model)}
            for base, maps in bases.items():
                print("\n".join(compare(f"{name} | {base}", score(cases, maps), found)), flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if "rise" in options.only and name != "coco16":
            inputs = [c.x for c in cases] if name == "birds" else [as_input(net, f, (224, 224)) for f in photographs]
            rises.append(f"| {name} | {len(inputs)} | {rise(adv, net.model, inputs):.1f} |")
    if rises:
        print("\n| net of | photographs | target rises, % |\n|---|---|---|\n" + "\n".join(rises))


if __name__ == "__main__":
    main()
