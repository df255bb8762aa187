"""Everything that a GPU should show, in one run of at most six minutes: a JSON file, and the tables it holds.

    python benchmarks/gpu.py --out gpu.json                # all sections
    python benchmarks/gpu.py --out gpu.json --only step crf
    python benchmarks/gpu.py --miniature --device cpu      # a smoke run of seconds

Nothing is downloaded: nets have random weights, photographs are smooth noise. From a checkout, with torch, timm and
torchvision on the machine, ``pip install --no-index --no-deps WHEELS/captum*.whl`` and ``PYTHONPATH=.`` suffice.

A section is skipped once the minutes are spent, and an error in one is its result; the others go on. Seconds are
medians of interleaved rounds between two synchronizations, so that ratios hold within a run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from deeplab_step import own_step, plain_net, plain_step
from step_cost import EVERY_STEP, climbing_step, floor_step, make_net, released_step
from torch import Tensor

from advcam_attr import AdvCAM
from advcam_attr.climbing import recipes
from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.deeplab import deeplab
from advcam_attr.networks.resnet101 import RESNET101
from advcam_attr.refine.crf import CRF_RECIPES, CRFRecipe, DenseCRF, unary_from_logits
from advcam_attr.refine.random_walk import edge_affinities, random_walk, transition

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        batches, side: of the steps of ResNet-50.
        photo: (height, width) of photographs.
        photos: images of the seeds, the CRF's batch.
        crop, crops: of DeepLab.
        walk: side of the random walk's grid.
        maps: whose boxes are scored.
        rounds: of interleaved measurements.
        steps: of a climb.
    """

    batches: tuple[int, ...] = (64, 256)
    side: int = 224
    photo: tuple[int, int] = (375, 500)
    photos: int = 16
    crop: int = 321
    crops: int = 10
    walk: int = 128
    maps: int = 60
    rounds: int = 5
    steps: int = 8


MINIATURE = Sizes((2,), 64, (60, 80), 2, 65, 1, 16, 2, 1, 2)


class Bench:
    """One run: the device, the sizes and the clock."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.cuda = device.startswith("cuda")

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start

    def rounds(self, runs: dict[str, Callable[[], object]], warm: int = 2) -> dict[str, list[float]]:
        """Seconds by name, one number a round; rounds are interleaved after ``warm`` calls of each."""
        for run in runs.values():
            for _ in range(warm):
                run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.sizes.rounds):
            for name, run in runs.items():
                times[name].append(self.seconds(run))
        return times

    def peak_mib(self, run: Callable[[], object]) -> float | None:
        """Peak of allocated memory above what is held before, in MiB; None on the CPU."""
        if not self.cuda:
            return None
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def images(self, number: int, height: int, width: int) -> Tensor:
        """Smooth noise, ``(N, 3, H, W)``, about normalized."""
        coarse = torch.randn(number, 3, 12, 16, generator=torch.Generator().manual_seed(0))
        return F.interpolate(coarse, (height, width), mode="bicubic").to(self.device)


def ratio(times: dict[str, list[float]], over: str, under: str, factor: float = 1.0) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios."""
    each = [factor * a / b for a, b in zip(times[over], times[under], strict=True)]
    return statistics.median(each), min(each), max(each)


@contextlib.contextmanager
def precision(bench: Bench, name: str) -> Iterator[torch.dtype | None]:
    """Set TF32 for a block; yield the dtype of autocast."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield torch.bfloat16 if name == "bf16" else None
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def step(bench: Bench) -> Iterator[Row]:
    """A step of `auto` without mirror images against the floor: one forward and one backward to the input."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    names = [(p, f) for p in ("fp32", "tf32", "bf16") for f in formats]
    for batch in bench.sizes.batches:
        x, target = bench.images(batch, bench.sizes.side, bench.sizes.side), torch.arange(batch, device=bench.device)
        base: float | None = None
        for name, form in names:
            with precision(bench, name) as dtype:
                net = make_net().to(bench.device, memory_format=formats[form]).requires_grad_(False)
                given = x.to(memory_format=formats[form])
                auto = AdvCAM(net, recipe=EVERY_STEP, autocast=dtype or False, channels_last=form == "channels_last")
                climb = _endless(auto, given, target)
                floor = _autocast(bench, floor_step(net, given, target), dtype)
                times = bench.rounds({"floor": floor, "step": climb})
                base = base or statistics.median(times["floor"])
                middle, least, most = ratio(times, "step", "floor")
                yield {
                    "batch": batch, "precision": name, "format": form,
                    "floor s": statistics.median(times["floor"]), "step s": statistics.median(times["step"]),
                    "step / floor": middle, "least": least, "most": most,
                    "fp32 floor / step": base / statistics.median(times["step"]),
                    "images/s": batch / statistics.median(times["step"]),
                    "peak MiB, floor": bench.peak_mib(floor), "peak MiB, step": bench.peak_mib(climb),
                }  # fmt: skip
                del net, auto, climb, floor


def compiled(bench: Bench) -> Iterator[Row]:
    """The floor by torch.compile: what a compiled step could reach."""
    batch = bench.sizes.batches[0]
    x, target = bench.images(batch, bench.sizes.side, bench.sizes.side), torch.arange(batch, device=bench.device)
    net = make_net().to(bench.device).requires_grad_(False)
    for name in ("fp32", "bf16"):
        with precision(bench, name) as dtype:
            runs = {
                "eager": _autocast(bench, floor_step(net, x, target), dtype),
                "compiled": _autocast(bench, floor_step(torch.compile(net, dynamic=False), x, target), dtype),  # type: ignore[arg-type]
            }
            first = bench.seconds(runs["compiled"])
            times = bench.rounds(runs)
            middle, least, most = ratio(times, "eager", "compiled")
            yield {
                "batch": batch, "precision": name, "eager s": statistics.median(times["eager"]),
                "compiled s": statistics.median(times["compiled"]), "times faster": middle, "least": least,
                "most": most, "first call s": first,
            }  # fmt: skip


def released(bench: Bench) -> Iterator[Row]:
    """A step of the released code (re-derived), image after image, against `official`'s over a batch of pairs."""
    pairs = max(1, bench.sizes.batches[0] // 2)
    x = bench.images(pairs, bench.sizes.side, bench.sizes.side)
    net, target = make_net(20).to(bench.device), torch.arange(pairs, device=bench.device) % 20
    official = recipes.get("official", scales=1.0)
    times = bench.rounds(
        {"released": released_step(net, x[:1].cpu(), 3), "official": climbing_step(net, x, target, official)}
    )
    middle, least, most = ratio(times, "released", "official", pairs)
    one, many = statistics.median(times["released"]), statistics.median(times["official"])
    yield {
        "pairs": pairs, "released s": one, "official s": many, "times faster": middle, "least": least, "most": most
    }  # fmt: skip


def seeds(bench: Bench) -> Iterator[Row]:
    """Images a second of the paper's protocol: four scales with flips, one class an image."""
    sizes = bench.sizes
    x = bench.images(sizes.photos, *sizes.photo)
    net, target = make_net(20).to(bench.device).requires_grad_(False), torch.arange(sizes.photos) % 20
    for name, steps in (("cam", 0), ("auto", sizes.steps), ("official", sizes.steps)):
        for kind in ("fp32", "bf16"):
            with precision(bench, kind) as dtype:
                recipe = "official" if name == "cam" else name
                method = AdvCAM(
                    net, recipe=recipe, scales=(0.5, 1.0, 1.5, 2.0), flip=True, stop=None, autocast=dtype or False
                )
                took = bench.seconds(lambda m=method, t=steps: m.attribute(x, target, steps=t))  # type: ignore[misc]
                yield {"maps": name, "steps": steps, "precision": kind, "images": len(x), "images/s": len(x) / took}


def crf(bench: Bench) -> Iterator[Row]:
    """Dense CRF of a batch, against pydensecrf2 on one thread of the CPU where it is installed."""
    height, width = bench.sizes.photo
    number = bench.sizes.photos
    images = (40 * bench.images(number, height, width) + 128).clamp(0, 255).to(torch.uint8)
    coarse = torch.randn(number, 21, 12, 16, generator=torch.Generator().manual_seed(1))
    unary = unary_from_logits(3 * F.interpolate(coarse, (height, width), mode="bicubic")).to(bench.device)
    for name in ("irn", "deeplab"):
        recipe = CRF_RECIPES[name]
        times = bench.rounds({"ours": lambda r=recipe: DenseCRF(images, r)(unary)}, warm=1)  # type: ignore[misc]
        ours = statistics.median(times["ours"]) / number
        peer = _pydensecrf(images[:1].cpu(), unary[:1].cpu(), recipe)
        yield {
            "recipe": name, "batch": number, "s an image": ours, "pydensecrf2 s an image": peer,
            "times faster": None if peer is None else peer / ours,
        }  # fmt: skip


def _pydensecrf(images: Tensor, unary: Tensor, recipe: CRFRecipe) -> float | None:
    try:
        import pydensecrf.densecrf  # noqa: F401
        from crf_speed import theirs
    except ImportError:
        return None
    start = time.process_time()
    theirs(images, unary, recipe)
    return time.process_time() - start


def walk(bench: Bench) -> Iterator[Row]:
    """IRN's random walk of three classes, 256 steps, on this device and on the CPU."""
    side = bench.sizes.walk
    generator = torch.Generator().manual_seed(2)
    edge, maps = torch.rand(side, side, generator=generator), torch.rand(3, side, side, generator=generator)

    def run(device: str) -> Tensor:
        return random_walk(maps.to(device), transition(edge_affinities(edge.to(device))))

    times = bench.rounds({"device": lambda: run(bench.device), "cpu": lambda: run("cpu")}, warm=1)
    middle, least, most = ratio(times, "cpu", "device")
    yield {
        "grid": f"{side} x {side}", "s": statistics.median(times["device"]), "CPU s": statistics.median(times["cpu"]),
        "times faster": middle, "least": least, "most": most,
        "greatest difference": float((run(bench.device).cpu() - run("cpu")).abs().max()),
    }  # fmt: skip


def segmentation(bench: Bench) -> Iterator[Row]:
    """A training step of DeepLab-v2 (ResNet-101), against torchvision's ResNet-101 of equal arithmetic."""
    number, crop = bench.sizes.crops, bench.sizes.crop
    x = bench.images(number, crop, crop)
    labels = torch.randint(0, 21, (number, crop, crop), device=bench.device).to(torch.uint8)
    own = deeplab(Backbone(RESNET101, random_weights=True), scales=()).to(bench.device)
    runs = {"plain": plain_step(plain_net().to(bench.device), x, labels, ()), "own": own_step(own, x, labels)}
    for kind in ("fp32", "tf32"):
        with precision(bench, kind):
            times = bench.rounds(runs, warm=1)
            middle, least, most = ratio(times, "own", "plain")
            yield {
                "batch": number, "crop": crop, "precision": kind, "s": statistics.median(times["own"]),
                "own / plain": middle, "least": least, "most": most, "peak MiB": bench.peak_mib(runs["own"]),
            }  # fmt: skip


def boxes(bench: Bench) -> Iterator[Row]:
    """Box scoring at 1000 thresholds (on the CPU), the three ways of ``box_speed.py``."""
    try:
        import box_speed
    except ImportError as error:
        yield {"skipped": f"{error}"}
        return
    for kind in box_speed.CAM_LIKE:
        cells = [
            cell.strip() for cell in box_speed.compare(kind, bench.sizes.maps // 4 or 1, bench.sizes.rounds).split("|")
        ]
        names = ("maps", "number", *box_speed.columns())
        yield dict(zip(names, cells[1:-1], strict=True))


def equality(bench: Bench) -> Iterator[Row]:
    """Maps on this device against the CPU's, float32 without TF32."""
    side = bench.sizes.side
    x, target = bench.images(2, side, side), torch.tensor([1, 2])
    net = make_net(20).requires_grad_(False)
    for name, steps in (("official", 0), ("official", 1), ("official", bench.sizes.steps), ("auto", bench.sizes.steps)):
        with precision(bench, "fp32"):
            maps = [
                AdvCAM(net.to(device), recipe=name, scales=1.0, stop=None).attribute(
                    x.to(device), target, steps=steps, normalize=True
                ).cpu()
                for device in ("cpu", bench.device)
            ]  # fmt: skip
        cosine = F.cosine_similarity(maps[0].flatten(1), maps[1].flatten(1)).min()
        yield {
            "recipe": name, "steps": steps, "greatest difference": float((maps[0] - maps[1]).abs().max()),
            "least cosine": float(cosine),
        }  # fmt: skip


def _endless(method: AdvCAM, x: Tensor, target: Tensor) -> Callable[[], object]:
    """Return a function that takes one step of a climb; the climb restarts after 10 000."""

    def every() -> Iterator[object]:
        while True:
            yield from method.climb(x, target, steps=10_000)

    steps = every()
    return lambda: next(steps)


def _autocast(bench: Bench, run: Callable[[], object], dtype: torch.dtype | None) -> Callable[[], object]:
    def within() -> None:
        with torch.autocast(bench.device.split(":")[0], dtype=dtype, enabled=dtype is not None):
            run()

    return within


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "equality": equality, "step": step, "released": released, "seeds": seeds, "crf": crf, "walk": walk,
    "segmentation": segmentation, "boxes": boxes, "compiled": compiled,
}  # fmt: skip


def measure(bench: Bench, names: list[str], minutes: float, out: Path | None) -> dict[str, Any]:
    """Run sections in order until the minutes are spent; the file is rewritten after each."""
    start = time.monotonic()
    gpu = torch.cuda.get_device_name() if bench.cuda else None
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "device": gpu or platform.processor() or platform.machine(),
        "torch": torch.__version__, "cuda": torch.version.cuda if bench.cuda else None,
        "threads": torch.get_num_threads(), "sections": {},
    }  # fmt: skip
    for name in names:
        began = time.monotonic()
        rows: list[Row] = []
        try:
            for row in SECTIONS[name](bench):
                rows.append(row)
                if time.monotonic() - start > 60 * minutes:
                    rows.append({"skipped": "the rest: the minutes are spent"})
                    break
        except Exception as error:  # a section that fails on a new device must not cost the others
            rows.append({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
        if bench.cuda:
            torch.cuda.empty_cache()
        found["sections"][name] = {"seconds": round(time.monotonic() - began, 1), "rows": rows}
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def markdown(found: dict[str, Any]) -> str:
    """The tables of a run."""
    lines = [f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}, {found['date']}"]
    for name, section in found["sections"].items():
        lines += ["", f"### {name} ({section['seconds']} s)", "", (SECTIONS[name].__doc__ or "").partition("\n")[0], ""]
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_shown(row.get(c)) for c in columns) + " |" for row in section["rows"]]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=6.0, help="no section begins after these (default: 6)")
    parser.add_argument("--miniature", action="store_true", help="small sizes, one round")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args(arguments)
    bench = Bench(options.device, MINIATURE if options.miniature else Sizes())
    print(markdown(measure(bench, options.only, options.minutes, options.out)))


if __name__ == "__main__":
    main()
