"""How long does a dense CRF take? This package's against pydensecrf2's, in one run, on one thread; and on a GPU.

    python benchmarks/crf_speed.py --data DATA            # DATA/voc in PASCAL VOC's layout, its first photographs
    python benchmarks/crf_speed.py --data DATA --labels 4 --repetitions 3

Photographs are resized to 500 x 375, the logits are smooth noise. Both sides start from the photograph and the unary,
so laying out the lattices counts. Repetitions alternate between the two; times are of the processor, not of the clock,
and ratios are medians over repetitions. Where CUDA is, a batch of 16 photographs is timed as well, by the clock.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advcam_attr.refine.crf import CRF_RECIPES, CRFRecipe, DenseCRF, unary_from_logits

WIDTH, HEIGHT = 500, 375


def photographs(data: Path, number: int) -> Tensor:
    """The first photographs of the data set, ``(N, 3, H, W)`` uint8."""
    files = sorted((data / "voc/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:number]
    if len(files) < number:
        raise SystemExit(f"{data} holds {len(files)} photographs in voc/VOCdevkit/VOC2012/JPEGImages, {number} needed")
    pictures = [Image.open(f).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for f in files]
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])


def unaries(number: int, labels: int) -> Tensor:
    """Energies of smooth random logits, ``(N, K, H, W)``."""
    coarse = torch.randn(number, labels, 12, 16, generator=torch.Generator().manual_seed(0))
    return unary_from_logits(3 * F.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic"))


def ours(images: Tensor, unary: Tensor, recipe: CRFRecipe) -> Tensor:
    return DenseCRF(images, recipe)(unary)


def theirs(images: Tensor, unary: Tensor, recipe: CRFRecipe) -> Tensor:
    import pydensecrf.densecrf as densecrf

    crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, unary.shape[1])
    crf.setUnaryEnergy(unary[0].flatten(1).numpy())
    crf.addPairwiseGaussian(sxy=recipe.spatial_deviation, compat=recipe.spatial_weight)
    crf.addPairwiseBilateral(
        sxy=recipe.bilateral_deviation,
        srgb=recipe.color_deviation,
        rgbim=np.ascontiguousarray(images[0].permute(1, 2, 0).numpy()),
        compat=recipe.bilateral_weight,
    )
    return torch.tensor(np.array(crf.inference(recipe.iterations))).reshape(1, -1, HEIGHT, WIDTH)


def on_cpu(images: Tensor, unary: Tensor, recipe: CRFRecipe, repetitions: int) -> float:
    """Prints one line of the table; returns this package's seconds."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "layout": []}
    marginals = {}
    for repetition in range(repetitions + 1):
        for name, run in (("ours", ours), ("theirs", theirs), ("layout", lambda i, u, r: DenseCRF(i, r))):
            start = time.process_time()
            marginals[name] = run(images, unary, recipe)
            if repetition:
                seconds[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    difference = float((marginals["ours"] - marginals["theirs"]).abs().max())
    agree = float((marginals["ours"].argmax(1) == marginals["theirs"].argmax(1)).double().mean())
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"| `{recipe.name}` | {middle['theirs']:.3f} | {middle['ours']:.3f} | {middle['layout']:.3f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {difference:.0e} | {agree:.2%} |",
        flush=True,
    )
    return middle["ours"]


def on_gpu(images: Tensor, unary: Tensor, recipe: CRFRecipe, repetitions: int) -> float:
    """Seconds of a batch on the GPU."""
    images, unary = images.cuda(), unary.cuda()
    seconds = []
    for _ in range(repetitions + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        ours(images, unary, recipe)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=21)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--recipes", nargs="+", default=["irn", "psa", "deeplab"], choices=list(CRF_RECIPES))
    parser.add_argument("--batch", type=int, default=16, help="photographs on the GPU at once")
    options = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{platform.machine()} {platform.processor()}, torch {torch.__version__}, {torch.get_num_threads()} thread")
    print(f"{WIDTH} x {HEIGHT}, {options.labels} labels, {options.repetitions} alternating repetitions\n")
    print("| recipe | pydensecrf2, s | ours, s | of which layout | ratio (range) | max ΔQ | argmax equal |")
    print("|---|---|---|---|---|---|---|")
    single = photographs(options.data, 1), unaries(1, options.labels)
    cpu = {name: on_cpu(*single, CRF_RECIPES[name], options.repetitions) for name in options.recipes}
    if not torch.cuda.is_available():
        print("\nno CUDA here: the GPU was not measured")
        return
    batch = photographs(options.data, options.batch), unaries(options.batch, options.labels)
    print(f"\n{torch.cuda.get_device_name()}, batch of {options.batch}\n\n| recipe | s | × one thread |\n|---|---|---|")
    for name in options.recipes:
        seconds = on_gpu(*batch, CRF_RECIPES[name], options.repetitions)
        print(f"| `{name}` | {seconds:.3f} | {cpu[name] * options.batch / seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
