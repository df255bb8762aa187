"""How fast seeds are evaluated: one pass over all thresholds against a NumPy pass for each of them, as released.

    python benchmarks/evaluation_speed.py                 # 60 synthetic images of VOC's shapes
    python benchmarks/evaluation_speed.py --images 8      # a smoke run

The released scripts threshold the maps once for each threshold: a constant map before the maps, argmax, labels, and
pixels counted with `bincount`. Both count the same pixels, which is checked. Maps and masks are in memory: reading them
is the same for both. Rounds are interleaved, so that a busy machine slows both; the ratio is the median of the rounds'
ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from advcam_attr.metrics.seeds import SEAM_THRESHOLDS, VOC_THRESHOLDS, ImageCounts, ThresholdSweep
from advcam_attr.types import ClassMaps

CLASSES = 21
#: Height and width of most of VOC's images, and how many classes they show, in about VOC's shares.
SIZES = ((375, 500), (333, 500), (500, 375), (500, 333))
COUNTS, SHARES = (1, 2, 3, 4), (0.62, 0.26, 0.09, 0.03)


def make_images(count: int) -> list[tuple[ClassMaps, torch.Tensor]]:
    """Smooth random maps of peak 1, and true label maps of blobs of the same classes, some of it void."""
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    images = []
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        classes = tuple(sorted(random.choice(CLASSES - 1, random.choice(COUNTS, p=SHARES), replace=False).tolist()))
        grid = torch.rand(2, len(classes), 12, 16, generator=generator)
        maps, truth = F.interpolate(grid, size, mode="bilinear", align_corners=False)
        maps /= maps.amax((1, 2), keepdim=True)
        strength, strongest = truth.max(0)
        labels = torch.where(strength > 0.6, torch.tensor(classes)[strongest] + 1, 0)
        labels[(strength > 0.58) & (strength < 0.6)] = 255
        images.append((ClassMaps(classes, size, maps[:, ::4, ::4], maps), labels.byte()))
    return images


def each_threshold(images: list[tuple[ClassMaps, torch.Tensor]], thresholds: tuple[float, ...]) -> np.ndarray:
    """The confusion matrices ``(T, K, K)``, one cut after the other."""
    matrices = np.zeros((len(thresholds), CLASSES, CLASSES), np.int64)
    for maps, truth in images:
        high_res, labels = maps.high_res.numpy(), truth.numpy()
        keys = np.pad(np.array(maps.classes) + 1, (1, 0))
        for matrix, threshold in zip(matrices, thresholds, strict=True):
            padded = np.pad(high_res, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
            predicted = keys[np.argmax(padded, axis=0)].flatten()
            true = labels.flatten()
            valid = true < CLASSES
            cells = CLASSES * true[valid].astype(np.int64) + predicted[valid]
            matrix += np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return matrices


def one_pass(
    images: list[tuple[ClassMaps, torch.Tensor]], thresholds: tuple[float, ...], device: str = "cpu"
) -> np.ndarray:
    """The same matrices, and the counts of single images besides, as `evaluate_seeds` keeps them."""
    sweep, single = ThresholdSweep(thresholds, CLASSES, device=device), ImageCounts(len(thresholds), CLASSES)
    for maps, truth in images:
        histogram = sweep.histogram(maps.high_res.to(device), maps.classes, truth.to(device))
        sweep.add(histogram, maps.classes)
        single.add(histogram, maps.classes)
    single.state()
    return sweep.matrices().cpu().numpy()


def compare(
    name: str, images: list[tuple[ClassMaps, torch.Tensor]], thresholds: tuple[float, ...], device: str, rounds: int
) -> str:
    """A line of the table."""
    assert np.array_equal(one_pass(images, thresholds, device), each_threshold(images, thresholds))
    slow, fast = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        each_threshold(images, thresholds)
        middle = time.perf_counter()
        one_pass(images, thresholds, device)
        slow.append(middle - start)
        fast.append(time.perf_counter() - middle)
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return (
        f"| {name} | {len(thresholds)} | {device} | {len(images) / statistics.median(slow):.1f} | "
        f"{len(images) / statistics.median(fast):.0f} | {statistics.median(ratios):.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; NumPy's part always runs on one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = make_images(options.images)
    print(
        f"{platform.machine()}, torch {torch.__version__} on {options.threads} thread(s), NumPy {np.__version__}, "
        f"{options.images} images, {CLASSES} classes, {options.rounds} rounds\n"
    )
    print("| sweep | thresholds | device | each threshold, images/s | one pass, images/s | ratio (range of rounds) |")
    print("|---|---|---|---|---|---|")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name, thresholds in (("VOC", VOC_THRESHOLDS), ("SEAM", SEAM_THRESHOLDS)):
            print(compare(name, images, thresholds, device, options.rounds), flush=True)


if __name__ == "__main__":
    main()
