"""How fast boxes are scored at all thresholds: every threshold on its own, every grey level, and a union-find.

    python benchmarks/box_speed.py                            # milliseconds a map, on one core
    python benchmarks/box_speed.py --maps 2                   # a smoke run
    python benchmarks/box_speed.py --many 2000 --processes 2  # and a whole evaluation, extrapolated to 50 000 maps

The first way is the protocol as it is written: 1000 times a threshold, OpenCV's contours, a loop over their boxes; the
overlaps of all boxes are then computed at once. Grey levels are made once a map and are the same for all three. The
tables are equal to the last bit, which is checked for every map. Rounds are interleaved, and processor seconds are
counted, so that a busy machine slows all three alike; the ratio is that of the medians of rounds, with its range.

A whole evaluation reads stored maps of the net's grid from disk, resizes and scores them, as a user's does. Seconds of
the wall clock are printed, the start of processes included, and the peak memory of this process and of the largest
other.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from advcam_attr.metrics.box_sweep import available, best_ious, best_ious_by_union_find, box_iou
from advcam_attr.metrics.localization import MAP_THRESHOLDS, levels_at, localization_scores
from advcam_attr.pipelines.maps import read_map
from advcam_attr.pipelines.wsol.evaluate import score_boxes
from advcam_attr.refine.boxes import boxes_above, grey_levels, score_map
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import Sample

#: What maps are made of: a grid of so many cells, how much of it is blobs, and how much noise.
KINDS = {
    "blobs, 14 x 14": (14, 1.0, 0.0),
    "blobs and noise, 28 x 28": (28, 1.0, 0.15),
    "noise, 7 x 7": (7, 0.0, 1.0),
    "noise, 14 x 14": (14, 0.0, 1.0),
    "noise, 28 x 28": (28, 0.0, 1.0),
}
#: Those that look like class maps.
CAM_LIKE = ("blobs, 14 x 14", "blobs and noise, 28 x 28", "noise, 7 x 7", "noise, 14 x 14")


def make_grid(kind: str, random: np.random.Generator) -> np.ndarray:
    """A map on a net's grid: one to three Gaussians, and noise."""
    cells, blobs, noise = KINDS[kind]
    y, x = (np.mgrid[:cells, :cells] + 0.5) / cells
    grid = noise * random.random((cells, cells))
    for _ in range(random.integers(1, 4)):
        (a, b), s = random.uniform(0.2, 0.8, 2), random.uniform(0.08, 0.25)
        grid += blobs * random.uniform(0.5, 1) * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * s**2))
    return grid


def make_truth(random: np.random.Generator) -> np.ndarray:
    """One box, as most of ImageNet's images have."""
    (x0, y0), (w, h) = random.integers(0, 100, 2), random.integers(40, 120, 2)
    return np.array([[x0, y0, x0 + w, y0 + h]])


def every_threshold(grey: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best overlap at each of the 1000 thresholds."""
    boxes, counts = [], []
    for threshold in MAP_THRESHOLDS:
        above = cv2.threshold(grey, int(threshold * np.max(grey)), 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        found = []
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            found.append([x, y, min(x + w, grey.shape[1] - 1), min(y + h, grey.shape[0] - 1)])
        boxes += found or [[0, 0, 0, 0]]
        counts.append(max(len(found), 1))
    best = box_iou(np.array(boxes), truth).max(1)
    return np.maximum.reduceat(best, np.cumsum([0, *counts[:-1]]))


def every_level(grey: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return best_ious(grey, truth, boxes_above)


def seconds(score: Callable[..., np.ndarray], maps: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Processor seconds a map."""
    start = time.process_time()
    for grey, truth in maps:
        score(grey, truth)
    return (time.process_time() - start) / len(maps)


def columns() -> list[str]:
    """Of the table, after the kind and the number of maps."""
    ways = ["levels", "union-find"] if available() else ["levels"]
    return ["every threshold, ms", *(f"{way}, ms" for way in ways), *(f"{way}, times faster" for way in ways)]


def compare(kind: str, count: int, rounds: int) -> str:
    """A line of the table."""
    random = np.random.default_rng(0)
    maps = [(grey_levels(score_map(make_grid(kind, random))), make_truth(random)) for _ in range(count)]
    ways: list[Callable[..., np.ndarray]] = [every_threshold, every_level]
    ways += [best_ious_by_union_find] if available() else []
    for grey, truth in maps:
        expected, levels = every_threshold(grey, truth), levels_at(int(grey.max()))
        for way in ways[1:]:
            assert np.array_equal(way(grey, truth)[levels], expected)
    times = [[seconds(way, maps) for way in ways] for _ in range(rounds)]
    cells = [f"{1000 * statistics.median(column):.1f}" for column in zip(*times, strict=True)]
    for place in range(1, len(ways)):
        ratios = [row[0] / row[place] for row in times]
        cells.append(f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    return f"| {kind} | {count} | " + " | ".join(cells) + " |"


def whole_evaluation(count: int, processes: int, search: str) -> str:
    """A line on ``count`` stored maps of the CAM-like kinds."""
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        store = MapStore(Path(folder) / "maps")
        samples = tuple(Sample(f"{i:05d}", Path(f"{i}.jpg"), (0,)) for i in range(count))
        for i, sample in enumerate(samples):
            grid = torch.from_numpy(make_grid(CAM_LIKE[i % len(CAM_LIKE)], random)).float()[None]
            store.write(sample.id, GridMaps((0,), (375, 500), (grid,)))
        boxes = {s.id: [(int(b[0]), int(b[1]), int(b[2]), int(b[3]))] for s in samples for b in make_truth(random)}
        data = SimpleNamespace(
            name="made", root=Path(folder), split="up", samples=samples, boxes=boxes,
            sizes=dict.fromkeys(boxes, (375, 500)),
        )  # fmt: skip
        peaks: list[float] = []
        start = time.perf_counter()
        table = score_boxes(
            partial(read_map, store), data, processes=processes, search=search,  # type: ignore[arg-type]
            progress=lambda done, total: peaks.append(_own_peak()),
        )  # fmt: skip
        took = time.perf_counter() - start
    localization_scores(table)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    minutes = took / count * 50_000 / 60
    return (
        f"| {search} | {processes} | {count} | {took:.0f} | {1000 * took / count:.1f} | {minutes:.1f} | "
        f"{peaks[len(peaks) // 4]:.0f}, {peaks[-1]:.0f}; others {workers:.0f} |"
    )


def _own_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=10, help="of each kind; 0 leaves the table out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=0, help="maps of a whole evaluation; 0 leaves it out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--search", nargs="*", default=["union-find", "levels"] if available() else ["levels"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"{platform.machine()}, OpenCV {cv2.__version__}, NumPy {np.__version__}\n")
    if options.maps:
        print(f"| maps, 224 x 224 | number | {' | '.join(columns())} |\n" + "|---" * (2 + len(columns())) + "|")
        for kind in KINDS:
            print(compare(kind, options.maps, options.rounds), flush=True)
    if options.many:
        print("\n| search | processes | maps | seconds | ms a map | minutes for 50 000 | peak MiB at 1/4, at the end |")
        print("|---" * 7 + "|")
        for search in options.search:
            print(whole_evaluation(options.many, options.processes, search), flush=True)


if __name__ == "__main__":
    main()
