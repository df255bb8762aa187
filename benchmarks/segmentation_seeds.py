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

from advcam_attr.cli.wsss import OPTIONS
from advcam_attr.metrics.evaluation import MaskEvaluation, compare
from advcam_attr.pipelines.config import config_of
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.wsss.run import Run
from advcam_attr.pipelines.wsss.segment import predict, trained_net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = OPTIONS.read(config_of(options.run))
    run = Run(replace(config, run=str(options.run)))
    data, val = run.seeds_data, run.predicted_data["val"]
    base = run.config.segmentation
    table = ["| seed | CAM's masks | AdvCAM's masks | difference (90 % interval over images) |", "|---|---|---|---|"]
    scores: dict[str, list[float]] = {"cam": [], "advcam": []}
    for seed in options.seeds:
        found: dict[str, MaskEvaluation] = {}
        for method in scores:
            own = options.run / "segmentation"
            out = (own if seed == run.runtime.seed else options.run / "segmentation_seeds" / f"seed{seed}") / method
            masks = options.run / "refined" / method / config.refine.final_step
            runtime = replace(run.runtime, seed=seed)
            net = trained_net(base, data, masks, out, runtime)
            found[method] = evaluate_masks(predict(base, net, val, out, runtime), val)
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
