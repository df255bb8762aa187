"""Grey maps of every kind and boxes to score them by, random and from a real net."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advcam_attr import CAM
from advcam_attr.networks.load import load_model
from advcam_attr.refine.boxes import grey_levels, resize_boxes, score_map

#: Kinds of maps as nets make them, and of others.
SMOOTH = ("blobs", "noisy blobs", "coarse", "fine", "low")
KINDS = (*SMOOTH, "white", "binary", "dim", "flat", "steps", "rings")
#: CUB's ten species that are classes of the iNaturalist net.
SPECIES = {1: "Black-footed Albatross", 2: "Laysan Albatross", 4: "Groove-billed Ani", 8: "Rhinoceros Auklet",
         9: "Brewer's Blackbird", 10: "Red-winged Blackbird"}  # fmt: skip


def random_grey(kind: str, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """A map ``(H, W)`` uint8."""
    if kind in ("white", "binary", "dim", "flat", "steps", "rings"):
        return _drawn(kind, size, random)
    cells = {"blobs": 14, "noisy blobs": 28, "coarse": 7, "fine": 28, "low": 14}[kind]
    y, x = np.mgrid[:cells, :cells] / cells
    raw = sum(
        random.uniform(0.5, 1) * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * s**2))
        for a, b, s in random.uniform((0.1, 0.1, 0.05), (0.9, 0.9, 0.25), (3, 3))
    )
    if kind in ("coarse", "fine"):
        raw = random.random((cells, cells))
    if kind == "noisy blobs":
        raw = raw + 0.1 * random.random((cells, cells))
    scores = score_map(raw, size)
    return grey_levels(scores * (random.uniform(0.05, 0.999) if kind == "low" else 1))


def _drawn(kind: str, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    if kind == "flat":
        return np.full(size, random.choice([0, 0, 1, 254, 255]), np.uint8)
    if kind == "rings":
        y, x = np.mgrid[: size[0], : size[1]]
        return (np.hypot(y - size[0] / 3, x - size[1] / 2) * 9).astype(np.int64).astype(np.uint8)
    values = {"white": range(256), "binary": (0, 255), "dim": range(9), "steps": (3, 40, 41, 200)}[kind]
    return random.choice(np.array(values, np.uint8), size)


def random_truth(size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """One to four boxes ``(G, 4)``, some of one pixel."""
    ends = random.integers(0, (size[1], size[0]), (random.integers(1, 5), 2, 2))
    return np.concatenate([ends.min(1), ends.max(1)], axis=1)


def bird_maps(data_root: Path, count: int, step: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """CAMs of real birds by a real net, 224 x 224 grey, and their boxes on that grid."""
    root = data_root / "CUB_200_2011"
    table = {n: dict(line.split(maxsplit=1) for line in (root / f"{n}.txt").read_text().splitlines())
             for n in ("images", "image_class_labels", "bounding_boxes")}  # fmt: skip
    names = (data_root / "weights" / "inat_birds_labels.txt").read_text().splitlines()
    loaded = load_model(
        "timm/mobilenetv2_100", model_args={"num_classes": 965, "pad_type": "same"}, mean=[0.5], std=[0.5],
        checkpoint=data_root / "weights" / "mobilenetv2_100_inat_birds.safetensors",
    )  # fmt: skip
    found = []
    birds = [i for i in table["images"] if int(table["image_class_labels"][i]) in SPECIES]
    for i in birds[::step][:count]:
        image = Image.open(root / "images" / table["images"][i]).convert("RGB")
        small = np.array(image.resize((224, 224), Image.Resampling.BILINEAR))
        x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 127.5 - 1
        bird = SPECIES[int(table["image_class_labels"][i])]
        target = next(k for k, name in enumerate(names) if f"({bird})" in name)
        raw = CAM(loaded.model).attribute(x, target, output="native")[0, 0]
        left, top, w, h = (int(float(v)) for v in table["bounding_boxes"][i].split())
        box = [left, top, min(left + w, image.width - 1), min(top + h, image.height - 1)]
        found.append((grey_levels(score_map(raw)), resize_boxes([box], (image.height, image.width))))
    return found
