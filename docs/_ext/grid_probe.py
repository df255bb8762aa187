"""Probe of the grids that `survey` finds: change one patch of an image and see which cell of the features moves most.

Every timm and torchvision classifier is built with random weights and run at two small shapes, one of them not square;
one JSON line per architecture, appended, so that a run can be stopped and continued::

    python docs/_ext/grid_probe.py probes.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from survey import architectures, make, representatives
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advcam_attr.heads.capture import Capture
from advcam_attr.heads.cells import cells_of
from advcam_attr.heads.find import find_head
from advcam_attr.heads.trace import record
from advcam_attr.heads.view import canonical
from advcam_attr.types import AdvCAMError

#: A square and a wide shape, multiples of all usual strides; ViTs with patches of 14 take the second of each.
SHAPES = (((128, 128), (112, 112)), ((96, 160), (84, 140)))
MOST_PARAMETERS = 450_000_000
MOST_SECONDS = 60.0


class _CheapInitialization(TorchFunctionMode):
    """Random initial weights, copied from a pool of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pools = {
            "normal_": torch.randn(2**20 + 4096, generator=generator),
            "uniform_": torch.rand(2**20 + 4096, generator=generator),
        }
        self.at = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if name in self.pools and tensors[0].numel() > 1024 and not tensors[0].is_meta:
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, (int, float))]
            first, second = [*given, *(0.0, 1.0)[len(given) :]][:2]
            flat = tensors[0].detach().view(-1)
            for start in range(0, len(flat), 2**20):
                part = flat[start : start + 2**20]
                torch.add(first, self._numbers(name, len(part)), alpha=second - first * (name == "uniform_"), out=part)
            return tensors[0]
        if "trunc_normal_" in name:
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, (int, float))]
            return tensors[0].normal_(*[*given, *(0.0, 1.0)[len(given) :]][:2])
        return func(*args, **kwargs)

    def _numbers(self, name: str, count: int) -> Tensor:
        self.at = (self.at + 104729) % 4096
        return self.pools[name][self.at : self.at + count]


@contextmanager
def _cheap_initialization() -> Iterator[None]:
    """Random weights of the architectures' own distributions; truncated normal ones are not truncated."""
    from timm.layers import weight_init

    truncated = weight_init._trunc_normal_
    weight_init._trunc_normal_ = lambda tensor, mean, std, a, b: tensor.normal_(mean, std)
    try:
        with _CheapInitialization(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        weight_init._trunc_normal_ = truncated


def build(model: str, size: tuple[int, int] | None) -> nn.Module:
    """Return an architecture with random weights, for images of ``size`` (None: its own)."""
    library, name = model.split("/", 1)
    with _cheap_initialization():
        if library == "torchvision":
            import torchvision

            options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return torchvision.models.get_model(name, weights=None, **options).eval()
        import timm

        return timm.create_model(name, **({"img_size": size} if size else {})).eval()


def probe(net: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Return the head at a size, the cell over the changed patch by its axes, and the one that moved most."""
    began = time.perf_counter()
    with torch.no_grad():
        subject = _Subject(net, size)
        h, w = subject.head.grid
        cell = (h // 3, min(w - 1, (2 * w) // 3))
        moved = subject.moved(cell)
    head = subject.head
    found = {
        "size": size, "exactness": head.exactness, "kind": head.kind, "layer": head.layer or "", "grid": head.grid,
        "prefix": head.prefix, "cell": cell, "moved": None,
    }  # fmt: skip
    if bool(moved.isfinite().all()) and float(moved.max()) > 0:
        top = divmod(int(moved.argmax()), w)
        found |= {"moved": top, "away": max(abs(top[0] - cell[0]), abs(top[1] - cell[1]))}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


class _Subject:
    """A net, an image and the features that its head has there."""

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        self.net, self.generator = net, torch.Generator().manual_seed(1)
        dtype = next(net.parameters()).dtype
        self.image = torch.randn(1, 3, *size, generator=self.generator).to(dtype)
        trace = record(net, self.image)
        self.head = find_head(trace)
        self.cells = cells_of(trace, self.head)
        del trace
        self.features = self._mapped(self.image)

    def moved(self, cell: tuple[int, int]) -> Tensor:
        """Return by how much each cell of the features moves, ``(h, w)``, when the patch under one changes."""
        changed, (rows, columns) = self.image.clone(), map(self._span, range(2), cell)
        patch = changed[:, :, rows, columns]
        patch.copy_(2 * torch.randn(patch.shape, generator=self.generator) + 1)
        return (self._mapped(changed) - self.features).double().square().sum(0)

    def _span(self, axis: int, index: int) -> slice:
        stride = self.cells.stride[axis]
        first = self.cells.offset[axis] + stride * (index - 0.5) + 0.5
        last = self.image.shape[2 + axis]
        return slice(min(max(0, round(first)), last - 1), max(1, round(first + stride)))

    def _mapped(self, image: Tensor) -> Tensor:
        capture, x = Capture(self.head.site, {}), image.clone()
        with capture:
            self.net(x)
        assert capture.raw is not None
        return canonical(capture.raw, self.head)[0]


def examine(model: str) -> dict[str, Any]:
    """Return the probes of one architecture at two shapes, or why there are none."""
    net, own, fixed = make(model)
    if getattr(net, "num_classes", 1) == 0:
        return {"model": model, "skipped": "no classifier"}
    count = sum(p.numel() for p in net.parameters())
    found: dict[str, Any] = {"model": model, "parameters": count, "own": own, "fixed": fixed, "probes": []}
    if count > MOST_PARAMETERS:
        return found | {"skipped": f"{count / 1e6:.0f} M parameters"}
    del net
    built: tuple[Any, nn.Module] | None = None
    for sizes in SHAPES:
        notes = []
        ways = [(size, size if fixed and model.startswith("timm/") else None) for size in sizes]
        square = sizes[0][0] == sizes[0][1]
        for size, option in [*ways, *([(own[1:], None)] if square else [((own[1], own[2] * 3 // 2), None)])]:
            try:
                if built is None or built[0] != option:
                    built = option, build(model, option)
                result = probe(built[1], size)
                if result.get("away", 1) and option is None:  # so few cells that their fields overlap, perhaps
                    result = probe(built[1], (3 * size[0], 3 * size[1])) | {"first": result}
                found["probes"].append(result)
                break
            except AdvCAMError as error:
                found["probes"].append({"size": size, "refused": str(error)})
                break
            except Exception as error:  # the architecture takes no image of this size
                notes.append(f"{size}: {type(error).__name__} {error}"[:160])
        else:
            found["probes"].append({"size": sizes[0], "impossible": notes})
    return found


def order(models: list[str]) -> list[str]:
    """One architecture for each kind of head in each of the libraries' files first, then the others as they come."""
    chosen = set(representatives())
    return sorted(models, key=lambda model: model not in chosen)


@contextmanager
def _limited(gigabytes: float) -> Iterator[None]:
    """Fail rather than take the memory of others."""
    limit = int(gigabytes * 2**30)
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def main() -> None:
    """Append the probes of all architectures that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"))
    parser.add_argument("--gigabytes", type=float, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {json.loads(line)["model"] for line in lines}
    names = order(architectures())[options.part[0] :: options.part[1]]
    with options.out.open("a") as file, _limited(options.gigabytes):
        for name in (n for n in names if n not in done):
            began = time.perf_counter()
            try:
                entry = examine(name)
            except MemoryError as error:
                entry = {"model": name, "skipped": f"memory: {error}"}
            entry["seconds"], entry["cpu"] = round(time.perf_counter() - began, 1), round(time.process_time(), 1)
            file.write(json.dumps(entry) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
