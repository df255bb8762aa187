"""Architecture survey: the head of every timm and torchvision classifier; writes ``docs/models.md``.

Models are made and traced on the meta device, without weights or computation, so that the survey takes minutes::

    python docs/_ext/survey.py docs/models.md --jobs 2
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advcam_attr.heads import HeadView
from advcam_attr.types import AdvCAMError

PAGE = Path(__file__).resolve().parents[1] / "models.md"


@dataclass(frozen=True)
class Entry:
    """One architecture of the survey.

    Attributes:
        model: ``"timm/NAME"`` or ``"torchvision/NAME"``.
        exactness: ``"exact"``, ``"linearised"``, ``"none"`` (Grad-CAM), ``"no classifier"`` or ``"refused"``.
        kind, layer, layout, grid, stride, note: as of `advcam_attr.heads.Head`.
        size: the input size, (C, H, W).
        fixed: whether the model declares that it takes no other size.
    """

    model: str
    exactness: str
    kind: str = ""
    layer: str = ""
    layout: str = ""
    grid: tuple[int, int] = (0, 0)
    stride: float = 0.0
    note: str = ""
    size: tuple[int, int, int] = (3, 224, 224)
    fixed: bool = False


def architectures() -> list[str]:
    """Return every architecture of timm and every image classifier of torchvision, as ``library/NAME``."""
    import timm
    import torchvision

    names = [f"timm/{name}" for name in timm.list_models()]
    return names + [f"torchvision/{n}" for n in torchvision.models.list_models(module=torchvision.models)]


def documented(page: Path = PAGE) -> dict[str, tuple[str, ...]]:
    """Return the rows of ``docs/models.md``: exactness, layer, grid, stride, input, ..., head of each architecture."""
    lines = (line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| "))
    return {cells[0]: tuple(c.strip("`") for c in cells[1:]) for cells in lines if "/" in cells[0] and len(cells) > 5}


def representatives(page: Path = PAGE) -> list[str]:
    """Return one architecture for each kind of head and name of layer in each of the libraries' files."""
    import timm
    import torchvision

    def file_of(model: str) -> str:
        library, name = model.split("/", 1)
        if library == "timm":
            return str(timm.models.model_entrypoint(name).__module__)
        return str(torchvision.models.get_model_builder(name).__module__)

    known = {m: row for m, row in documented(page).items() if m in set(architectures())}
    first: dict[tuple[str, ...], str] = {}
    for model, (exactness, layer, *_, head) in known.items():
        first.setdefault((file_of(model), exactness, re.sub(r"\d+", "", layer), head), model)
    return list(first.values())


def make(model: str) -> tuple[nn.Module, tuple[int, int, int], bool]:
    """Return an architecture on the meta device, its default input size, and whether that is fixed."""
    library, name = model.split("/", 1)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "torchvision":
            import torchvision

            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            try:
                net = torchvision.models.get_model(name, weights=None, **options)
            except NotImplementedError:  # RegNets read values while they are built, which meta tensors lack
                with torch.device("cpu"):
                    net = torchvision.models.get_model(name, weights=None).to("meta")
            size = 299 if name == "inception_v3" else 224
            return net.eval(), (3, size, size), name.startswith(("vit_", "maxvit"))
        import timm

        net = timm.create_model(name).eval()
    config = getattr(net, "pretrained_cfg", None) or {}
    return net, tuple(config.get("input_size", (3, 224, 224))), bool(config.get("fixed_input_size", False))


def examine(model: str) -> Entry:
    """Return the entry of one architecture."""
    net, size, fixed = make(model)
    if getattr(net, "num_classes", 1) == 0:
        return Entry(model, "no classifier", size=size, fixed=fixed)
    try:
        head = HeadView(net).inspect(torch.empty(1, *size, device="meta"))
    except AdvCAMError as error:
        return Entry(model, "refused", note=str(error), size=size, fixed=fixed)
    return Entry(
        model, head.exactness, head.kind, head.layer or "", head.layout, head.grid, round(head.stride[0], 1), head.note,
        size, fixed,
    )  # fmt: skip


def survey(models: Iterable[str] | None = None, *, match: str = "*", jobs: int = 1) -> Iterator[Entry]:
    """Examine architectures, in the order of their names.

    Args:
        models: ``library/NAME``; None takes all.
        match: only names that match this pattern, e.g. ``"timm/resnet*"``.
        jobs: processes to use.
    """
    names = [name for name in (architectures() if models is None else models) if fnmatch.fnmatch(name, match)]
    if jobs == 1:
        yield from map(examine, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(examine, names, chunksize=8)


def summary(entries: Iterable[Entry]) -> dict[str, Counter[str]]:
    """Count the architectures of each library by exactness."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        counts.setdefault(entry.model.split("/")[0], Counter())[entry.exactness] += 1
    return counts


def write_markdown(
    entries: Iterable[Entry], path: Path, *, versions: str, probes: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write the survey as a page: counts, kinds, the probes of the grids, and one line per architecture."""
    rows, probes = list(entries), probes or {}
    classifiers = [e for e in rows if e.exactness != "no classifier"]
    kinds: Counter[tuple[str, str]] = Counter((e.exactness, e.kind or e.note) for e in rows)
    lines = [
        "# Models",
        "",
        f"The head of every classifier of timm and torchvision ({versions}), as `docs/_ext/survey.py` finds it by "
        "tracing each architecture in its default configuration. The axes of "
        f"{sum(e.exactness != 'refused' for e in classifiers)} of {len(classifiers)} heads are followed.",
        "",
        "- **exact**: the mean of the class map plus a constant is the logit.",
        "- **linearised**: class weights are the derivative of the logit with respect to the pooled features, "
        "norms after the pool with their scale frozen.",
        '- **none**: no class activation map; `base="grad_cam"` and its family work on the layer named.',
        "",
        "| library | exact | linearised | none (Grad-CAM) | refused | classifiers | no classifier |",
        "|---|---|---|---|---|---|---|",
    ]
    for library, count in summary(rows).items():
        kinds_of = ("exact", "linearised", "none", "refused")
        numbers = [*(count[kind] for kind in kinds_of), sum(count.values()) - count["no classifier"]]
        lines.append(f"| {library} | " + " | ".join(map(str, [*numbers, count["no classifier"]])) + " |")
    lines += ["", "## Kinds of head", "", "| count | exactness | head |", "|---|---|---|"]
    lines += [f"| {n} | {exactness} | {kind} |" for (exactness, kind), n in kinds.most_common() if kind]
    lines += _about_probes([e.model for e in classifiers], probes) if probes else []
    lines += [
        "",
        "## Architectures",
        "",
        "| model | exactness | layer | grid | stride | input | probed | head |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in classifiers:
        grid, fixed = f"{e.grid[0]}×{e.grid[1]}", " fixed" if e.fixed else ""
        head = e.note if e.exactness in ("none", "refused") else e.kind
        size = f"{e.size[1]}×{e.size[2]}{fixed}"
        agreed = " ".join(f"{p['size'][0]}×{p['size'][1]}" for p in _made(probes.get(e.model, {})) if p["away"] < 2)
        lines.append(
            f"| {e.model} | {e.exactness} | `{e.layer or '-'}` | {grid} | {e.stride:g} | {size} | {agreed or '-'} | "
            f"{head} |"
        )
    path.write_text("\n".join(lines) + "\n")


def _made(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The probes of an entry in which something moved."""
    return [p for p in entry.get("probes", ()) if p.get("moved") is not None]


def _about_probes(models: Sequence[str], probes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    made = {m: _made(probes[m]) for m in models if m in probes}
    two, one = (sum(len(found) == count for found in made.values()) for count in (2, 1))
    large = sum("skipped" in probes.get(m, {}) for m in models)
    away = Counter(min(2, p["away"]) for found in made.values() for p in found)
    far = [f"`{m}` at {p['size'][0]}×{p['size'][1]}" for m, found in made.items() for p in found if p["away"] > 1]
    return [
        "",
        "## Probe of the grids",
        "",
        "`docs/_ext/grid_probe.py` runs each architecture with random weights, changes one patch of the image and sees "
        "which cell of the mapped tensor moves most, and how far it is from the cell that lies over the patch by the "
        "axes of the trace. The shapes are 128×128 and 96×160 (multiples of 14 for such patches, three times as large "
        "where the cells differ, the architecture's own where it takes no other).",
        "",
        f"Of {len(models)} classifiers, {two} are probed at two shapes, {one} at one (they take no other), {large} not "
        "at all (more than 450 million parameters, or out of memory); "
        f"{len(models) - two - one - large} are left. Of {away.total()} probes, {away[0]} move that cell most, "
        f"{away[1]} a neighbour and {away[2]} another{': ' if far else ''}{', '.join(far)}. With random weights, a "
        "cell may hide where each of them reads much of the image.",
    ]


def main() -> None:
    """Write the page and print the counts."""
    import timm
    import torchvision

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--filter", default="*", metavar="PATTERN", help="e.g. 'timm/resnet*'")
    parser.add_argument("--probes", type=Path, metavar="FILE", help="JSON lines of docs/_ext/grid_probe.py")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    options = parser.parse_args()
    entries = list(survey(match=options.filter, jobs=options.jobs))
    for library, counts in summary(entries).items():
        print(f"{library}: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}"
    lines = options.probes.read_text().splitlines() if options.probes else []
    probes = {entry["model"]: entry for entry in map(json.loads, lines)}
    write_markdown(entries, options.out, versions=versions, probes=probes)


if __name__ == "__main__":
    main()
