"""What a climbing step costs: its ratio to the floor and to the released step, peak memory, images a second.

The floor of a step is one forward and one backward to the input of the same net with frozen weights, at the same
batch: nothing that computes the gradient of a logit to the image does less. The released step is re-derived here: two
backwards with weight gradients, an image and its mirror image at a time, image, mask and map copied to the host.

    python benchmarks/step_cost.py            # CPU, and the GPU where there is one
    python benchmarks/step_cost.py --quick    # a smoke run

Ratios come from interleaved rounds in one run (the median of each round's ratio), so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr import heads
from advcam_attr.climbing import climb, recipes

#: `auto` at the floor's batch (no mirror images), with a margin that is measured but never reached: a row that stops
#: repeats its last step for nothing, which must not be timed as a step.
EVERY_STEP = recipes.get("auto", flip=False, stop=1e9)


def make_net(classes: int = 1000) -> nn.Module:
    """ResNet-50 as timm has it, without weights; norms made to keep the signal's size."""
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet50", num_classes=classes).eval()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def floor_step(net: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """One forward and one backward to the input; the net's weights must be frozen."""

    def step() -> None:
        leaf = x.detach().requires_grad_()
        score = net(leaf).gather(1, target[:, None]).sum()
        torch.autograd.grad(score, leaf)

    return step


def climbing_step(net: nn.Module, x: Tensor, target: Tensor, recipe: recipes.Recipe) -> Callable[[], None]:
    """One step of an endless climb of this package."""

    def endless() -> Iterator[None]:
        while True:
            yield from (None for _ in climb(heads.view(net), x, target, recipe.plan(), steps=10_000))

    walk = endless()
    return lambda: next(walk)


def released_step(net: nn.Module, x: Tensor, c: int) -> Callable[[], None]:
    """A step of the released code for one image and class: ``x`` is ``(1, 3, H, W)`` on the host."""
    device = next(net.parameters()).device
    state = {"x": torch.cat([x, x.flip(-1)]), "first": None, "total": 0.0}

    def step() -> None:
        leaf = state["x"].to(device).requires_grad_()
        f = net.forward_features(leaf)
        z = F.conv2d(f, net.fc.weight[:, :, None, None])
        f.retain_grad()
        net.zero_grad()
        z[:, c].relu().sum().backward(retain_graph=True)
        alpha = f.grad.sum((2, 3), keepdim=True) / (f.grad > 0).sum()
        r = (alpha.detach() * f).sum(1).relu()
        r = r[0] + r[1].flip(-1)
        state["first"] = r.detach() if state["first"] is None else state["first"]
        state["total"] = state["total"] + r.detach().cpu().numpy()
        y = z.relu().mean((2, 3))
        mask = torch.from_numpy((r / r.max()).detach().cpu().numpy() > 0.5).to(device)
        loss = (2 * y[:, c] - y.sum(1)).sum() - 7.0 * ((r - state["first"]).abs() * mask).sum()
        net.zero_grad()
        leaf.grad = None
        loss.backward()
        moved = leaf.detach() + 0.08 * leaf.grad / (leaf.grad.abs().max() + 1e-12)
        state["x"] = moved.clamp(float(leaf.detach().min()), float(leaf.detach().max())).cpu()

    return step


def seconds(step: Callable[[], None], device: str, repeats: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def compare(steps: dict[str, Callable[[], None]], device: str, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step, one number a round; all are warmed up, then run in turns."""
    for step in steps.values():
        step(), step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device, repeats))
    return times


def ratio(times: dict[str, list[float]], over: str, under: str, scale: float = 1.0) -> str:
    each = sorted(scale * a / b for a, b in zip(times[over], times[under], strict=True))
    return f"{statistics.median(each):.3f} ({each[0]:.3f} to {each[-1]:.3f})"


def peak_memory(what: str, device: str, batch: int, size: int, steps: int) -> float:
    """MiB above the net and its input at the peak of ``steps`` steps; in a process of its own on the CPU."""
    if device == "cuda":
        return _peak(what, device, batch, size, steps)
    command = [sys.executable, __file__, "--peak", what, str(batch), str(size), str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _peak(what: str, device: str, batch: int, size: int, steps: int) -> float:
    net, x = make_net().to(device), torch.randn(batch, 3, size, size, device=device)
    target = torch.arange(batch, device=device)
    if what == "floor":
        net.requires_grad_(False)
    step = floor_step(net, x, target) if what == "floor" else climbing_step(net, x, target, EVERY_STEP)
    if device == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        net(x[:1, :, :32, :32])
        before = _resident()
    for _ in range(steps):
        step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * _peak_resident()
    return (after - before) / 2**20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(device: str, batch: int, size: int, rounds: int, repeats: int, batches: list[int], memory: bool) -> None:
    x, target = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device)
    frozen, trainable = make_net().to(device).requires_grad_(False), make_net().to(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()}"
    print(f"\n## {device}: {name}, {torch.get_num_threads()} threads, torch {torch.__version__}, ResNet-50, {size}²\n")
    steps = {
        "floor": floor_step(frozen, x, target),
        "auto, frozen": climbing_step(frozen, x, target, EVERY_STEP),
        "auto, trainable": climbing_step(trainable, x, target, EVERY_STEP),
    }
    times = compare(steps, device, rounds, repeats)
    print("| step | batch | seconds | × floor (range of rounds) |\n|---|---|---|---|")
    for key in steps:
        print(f"| {key} | {batch} | {statistics.median(times[key]):.4f} | {ratio(times, key, 'floor')} |")

    seeds, pairs = make_net(20).to(device), max(1, batch // 2)
    official = recipes.get("official", scales=1.0)
    steps = {
        "released": released_step(seeds, x[:1].cpu(), 3),
        "official": climbing_step(seeds, x[:pairs], target[:pairs] % 20, official),
    }
    times = compare(steps, device, rounds, repeats)
    print(f"\nReleased step over this package's `official` step, an image and its mirror image each, {pairs} images at "
          f"a time: {ratio(times, 'released', 'official', pairs)} times faster.")  # fmt: skip

    print("\n| batch | images a second (one step each) |\n|---|---|")
    for count in batches:
        many = torch.randn(count, 3, size, size, device=device)
        step = climbing_step(frozen, many, torch.arange(count, device=device), EVERY_STEP)
        step(), step()
        print(f"| {count} | {count / seconds(step, device, repeats):.1f} |")

    if memory:
        print("\n| peak memory above net and input | MiB | × floor |\n|---|---|---|")
        base = peak_memory("floor", device, batch, size, 3)
        for what, count in (("floor", 3), ("climb", 3), ("climb", 12)):
            mib = base if what == "floor" else peak_memory(what, device, batch, size, count)
            print(f"| {what}, {count} steps, batch {batch} | {mib:.0f} | {mib / base:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        what, *numbers = options.peak
        print(_peak(what, "cpu", *map(int, numbers)))
        return
    if options.quick:
        report("cpu", 2, 64, 1, 1, [1, 2], memory=False)
        return
    report("cpu", 8, 224, 7, 2, [1, 2, 4, 8, 16], memory=True)
    if torch.cuda.is_available():
        report("cuda", 64, 224, 9, 10, [1, 8, 32, 64, 128, 256], memory=True)


if __name__ == "__main__":
    main()
