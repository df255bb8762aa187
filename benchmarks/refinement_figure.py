"""What becomes of six images on their way from seed to mask: one row an image.

    python benchmarks/refinement_figure.py RUN figure.png [--method advcam] [--ids ID ...]

RUN is the folder of `advcam wsss seeds` and `advcam wsss refine --method irn --crf`. Columns: the image, the seed (cut
at 0.35), the seed after the CRF, the map after the random walk, the pseudo mask, the true mask. Without ids, images are
taken evenly from those with labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from advcam_attr.cli.wsss import OPTIONS
from advcam_attr.data.masks import mask_path, read_mask
from advcam_attr.networks.irnet import IRNET
from advcam_attr.networks.net_file import load_net
from advcam_attr.pipelines.config import config_of
from advcam_attr.pipelines.maps import seed_store
from advcam_attr.pipelines.wsss.irn import edges
from advcam_attr.refine.random_walk import edge_walk
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.runs.stage import read_seeded
from advcam_attr.viz.overlay import ImageArray, heat_over, labels_over, panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="advcam")
    parser.add_argument("--ids", nargs="*", default=[])
    options = parser.parse_args()
    config = OPTIONS.read(config_of(options.run))
    data = config.data.read(config.data.seeds_split)
    labelled = [sample for sample in data.samples if sample.labels]
    chosen = [sample for sample in labelled if sample.id in options.ids] or labelled[:: max(1, len(labelled) // 6)][:6]
    refined, seeds = options.run / "refined" / options.method, seed_store(options.run / "seeds" / options.method)
    net = load_net(refined / "irnet" / "irnet.safetensors", IRNET)[0].eval()
    walk, classes = config.refine.irn.walk, len(data.classes)
    rows: list[list[ImageArray]] = []
    for sample in chosen:
        read = read_seeded(seeds, sample)
        image = (read.pixels.permute(1, 2, 0).float() / 255).numpy()
        with torch.no_grad():
            cam = read.maps.cam.clamp(min=0) ** walk.exponent
            walked = edge_walk(cam, edges(net, read.pixels), walk.radius, walk.beta, walk.steps).amax(0)
        heat = torch.nn.functional.interpolate(walked[None, None], image.shape[:2], mode="bilinear")[0, 0]
        steps = [read_mask(mask_path(refined / step, sample.id), classes) for step in ("seeds_crf", "masks")]
        truth = data.mask(sample)
        seed = threshold_maps(read.maps.high_res, read.maps.classes, 0.35)
        shown = [seed, *steps, torch.where(truth == 255, 0, truth)]
        seed, crf, mask, true = (labels_over(image, np.asarray(labels)) for labels in shown)
        rows.append([image, seed, crf, heat_over(image, heat.numpy()), mask, true])
    names = [", ".join(data.classes[k] for k in sample.labels) for sample in chosen]
    titles = ("image", "seed", "seed + CRF", "walk", "mask", "truth")
    panels(rows, titles, names, cell=160).save(options.out)


if __name__ == "__main__":
    main()
