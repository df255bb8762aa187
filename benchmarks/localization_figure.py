"""Twelve photographs of a run with their true boxes and those of CAM and AdvCAM.

    python benchmarks/localization_figure.py runs/cub_small --out figures

RUN is a folder of `advcam wsol`. The box of a map is that of its largest part above the threshold at which most images
have a right box (IoU 0.5) by that method, in pixels of the photograph. Photographs are taken at equal steps through the
list, so that none is chosen for how it looks. White: true; orange: CAM; blue: AdvCAM.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from advcam_attr.cli.wsol import OPTIONS
from advcam_attr.data.class_names import in_classes_of
from advcam_attr.data.images import read_stored_rgb
from advcam_attr.networks.load import read_labels
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.maps import read_map, wsol_map_store
from advcam_attr.pipelines.wsol.run import maps_folder
from advcam_attr.refine.boxes import map_to_boxes

COLOURS = {"cam": "#e69f00", "advcam": "#0072b2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    options = parser.parse_args()
    config = OPTIONS.read(options.run / "config.json")
    data = config.data.read(config.data.score)
    if config.net is not None and config.net.labels is not None:
        data, _ = in_classes_of(data, read_labels(path_of(config.net.labels)))
    folders = {method: maps_folder(config.nets()[0], method) for method in COLOURS}
    stores = {method: wsol_map_store(folder) for method, folder in folders.items()}
    best = {
        method: json.loads((folder / "localization.json").read_text())["scores"]["all"]["gt_known_threshold"]
        for method, folder in folders.items()
    }
    chosen = [data.samples[i] for i in np.linspace(0, len(data.samples) - 1, options.count).round().astype(int)]
    rows = -(-len(chosen) // 4)
    drawing, axes = plt.subplots(rows, 4, figsize=(12, 2.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, sample in zip(axes.flat, chosen, strict=False):
        axis.imshow(np.asarray(read_stored_rgb(sample.image)))
        for box in data.boxes[sample.id]:
            draw(axis, box, "white", 3)
        for method, store in stores.items():
            for box in map_to_boxes(read_map(store, sample.id), best[method], size=data.sizes[sample.id]).tolist():
                draw(axis, box, COLOURS[method], 2)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "boxes.png"
    drawing.savefig(path, dpi=90)
    print(f"wrote {path}; thresholds {best}")


def draw(axis: plt.Axes, box: tuple[int, int, int, int], colour: str, width: float) -> None:
    x0, y0, x1, y1 = box
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width))


if __name__ == "__main__":
    main()
