"""How much do segmentation nets learn from CAM's and from AdvCAM's masks, over several training seeds.

    python benchmarks/segmentation_seeds.py runs/voc_small --seeds 0 1 2

RUN is a folder of `advcam wsss run`, or of its stages up to `refine`. The net of the run's configuration is trained
once with each seed on each method's pseudo masks, and labels the run's `val` images; seeds change the pyramid's
weights, the order and the augmentation. Nets are kept in RUN/segmentation_seeds and gone on with; the seed that the run
itself has trained with is taken from there. The interval of each seed's difference is over images (5th and 95th
percentile of a paired bootstrap); the last row has the mean over seeds and, behind ±, their standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from advcam_attr.cli.wsss import CONFIG
from advcam_attr.metrics.evaluation import MaskEvaluation, compare
from advcam_attr.pipelines.config import config_of, with_paths
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.wsss.refine import final_step
from advcam_attr.pipelines.wsss.segment import predict, trained_net
from advcam_attr.pipelines.wsss.stages import labelled_images, seeded_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = CONFIG.read(config_of(options.run))
    data, val = seeded_images(config), labelled_images(config)["val"]
    base = replace(with_paths(config.segmentation, "checkpoint", "trained", "class_map"), crf=None)
    table = ["| seed | CAM's masks | AdvCAM's masks | difference (90 % interval over images) |", "|---|---|---|---|"]
    scores: dict[str, list[float]] = {"cam": [], "advcam": []}
    for seed in options.seeds:
        found: dict[str, MaskEvaluation] = {}
        for method in scores:
            own = options.run / "segmentation"
            out = (own if seed == base.seed else options.run / "segmentation_seeds" / f"seed{seed}") / method
            masks = options.run / "refined" / method / final_step(config.refine)
            settings = replace(base, seed=seed)
            net = trained_net(settings, data, masks, out)
            found[method] = evaluate_masks(predict(settings, net, val, out), val)
            scores[method].append(100 * found[method].scores().mean_iou)
        gain, low, high = (100 * value for value in compare(found["advcam"], found["cam"]))
        cam, advcam = (scores[method][-1] for method in scores)
        table.append(f"| {seed} | {cam:.1f} | {advcam:.1f} | {gain:+.1f} ({low:+.1f} to {high:+.1f}) |")
    gains = [a - b for a, b in zip(scores["advcam"], scores["cam"], strict=True)]
    cells = [spread(scores["cam"]), spread(scores["advcam"]), spread(gains, "+")]
    print("\n".join(["", *table, f"| mean | {' | '.join(cells)} |"]))


def spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
