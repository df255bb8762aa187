"""A demonstration: CAM and AdvCAM of a small classifier on toy scenes with exact masks, offline.

Each method's threshold is the best on validation scenes; the scores are those of other test scenes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.attr.cam import CAM
from advcam_attr.data.samples import SegmentationData
from advcam_attr.data.toy import CLASS_NAMES, ToyScenes, make_scenes
from advcam_attr.files import make_folder, replacing, write_bytes, write_json, write_text
from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.tensor_files import dump_tensors
from advcam_attr.types import Sample
from advcam_attr.viz.overlay import heat_over, labels_over, panels

logger = logging.getLogger(__name__)


#: Background thresholds, as shares of each map's peak.
DEMO_THRESHOLDS = tuple(k / 50 for k in range(1, 50))


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration.

    Attributes:
        train, validation, test: numbers of scenes.
        size: height and width of scenes.
        shown: number of test scenes in the figure.
    """

    seed: int = 0
    train: int = 600
    validation: int = 60
    test: int = 120
    size: int = 96
    epochs: int = 12
    shown: int = 6


@dataclass(frozen=True)
class Score:
    """Scores of a method on the test scenes, in percent; the mean IoU includes the background."""

    method: str
    threshold: float
    miou: float
    precision: float
    recall: float


@dataclass(frozen=True)
class DemoResult:
    """Results of the demonstration: ``accuracy`` of class decisions in percent, ``scores``, and these as Markdown."""

    accuracy: float
    scores: tuple[Score, ...]
    seconds: float
    table: str
    table_file: Path
    scores_file: Path
    figure_file: Path


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread of torch: as fast for tensors so small, and not slowed by busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def run_demo(out: Path, settings: DemoSettings = DemoSettings()) -> DemoResult:
    """Draw scenes, train, compare, and write ``table.md``, ``scores.json`` and ``scenes.png`` into a folder."""
    make_folder(out)
    start = time.monotonic()
    counts = settings.train, settings.validation, settings.test
    logger.info(f"drawing {sum(counts)} scenes")
    train, validation, test = (
        make_scenes(count, size=settings.size, seed=3 * settings.seed + part) for part, count in enumerate(counts)
    )
    logger.info(f"training a small classifier on {settings.train} scenes, {settings.epochs} epochs")
    net = train_net(train, settings.epochs, settings.seed)
    with torch.no_grad():
        right = (net(normalise(test.images)) > 0) == test.labels
    accuracy = 100 * float(right.float().mean())
    logger.info(f"{accuracy:.1f} % of class decisions on test scenes are right")
    methods = {"CAM": CAM(net), "AdvCAM": AdvCAM(net)}
    scores, maps = [], {}
    for name, method in methods.items():
        logger.info(f"attributing {settings.validation + settings.test} scenes with {name}")
        threshold = _best_threshold(class_maps(method, validation), validation)
        maps[name] = class_maps(method, test)
        scores.append(_score(name, maps[name], test, threshold))
    table = _table(scores)
    result = DemoResult(
        accuracy, tuple(scores), time.monotonic() - start, table,
        out / "table.md", out / "scores.json", out / "scenes.png",
    )  # fmt: skip
    _write(result, settings, test, maps)
    return result


def small_net(num_classes: int = len(CLASS_NAMES)) -> nn.Sequential:
    """Return five convolutions of stride 8 in all, average pooling, and a linear layer.

    Strided kernels are 4 wide, so that receptive fields are centred on their cells and maps are not shifted.
    """
    layers: list[nn.Module] = []
    inside = 3
    for outside, stride in ((16, 2), (32, 2), (48, 1), (64, 2), (64, 1)):
        conv = nn.Conv2d(inside, outside, 2 + stride, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, num_classes))


def normalise(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


@_one_thread()
def train_net(scenes: ToyScenes, epochs: int, seed: int = 0, batch_size: int = 32) -> nn.Sequential:
    """Train a `small_net` on the class labels of scenes, and return it in eval mode; restore global random state."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = small_net()
    x, y = normalise(scenes.images), scenes.labels.float()
    batch_size = min(batch_size, len(x))
    batches = len(x) // batch_size
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)[: batches * batch_size]
        for chunk in order.split(batch_size):
            mirrored = [axis for axis in (2, 3) if torch.rand((), generator=generator) < 0.5]
            loss = F.multilabel_soft_margin_loss(net(x[chunk].flip(mirrored)), y[chunk])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def class_maps(method: CAM | AdvCAM, scenes: ToyScenes) -> Tensor:
    """Return maps in [0, 1] of the classes in each scene, zero for the others: ``(N, K, S, S)``."""
    image, label = scenes.labels.nonzero().unbind(1)
    maps = method.attribute(normalise(scenes.images[image]), label, normalize=True, internal_batch_size=64)
    dense = torch.zeros(*scenes.labels.shape, *scenes.images.shape[2:])
    dense[image, label] = maps[:, 0]
    return dense


def label_maps(maps: Tensor, threshold: float) -> Tensor:
    """Return the strongest class + 1 at each pixel, or 0 if none exceeds the threshold: ``(N, S, S)``."""
    peak, label = maps.max(1)
    return torch.where(peak > threshold, label + 1, 0)


def _measure(maps: Tensor, scenes: ToyScenes, threshold: float) -> ConfusionMatrix:
    matrix = ConfusionMatrix(maps.shape[1] + 1)
    matrix.update(label_maps(maps, threshold), scenes.masks)
    return matrix


def _best_threshold(maps: Tensor, scenes: ToyScenes) -> float:
    return max(DEMO_THRESHOLDS, key=lambda threshold: _measure(maps, scenes, threshold).mean_iou())


def _score(method: str, maps: Tensor, scenes: ToyScenes, threshold: float) -> Score:
    matrix = _measure(maps, scenes, threshold)
    precision, recall = (100 * float(v[1:].nanmean()) for v in (matrix.precision(), matrix.recall()))
    return Score(method, threshold, 100 * matrix.mean_iou(), precision, recall)


def _table(scores: Sequence[Score]) -> str:
    lines = ["| method | mIoU | precision | recall | threshold |", "|---|---|---|---|---|"]
    lines += [f"| {s.method} | {s.miou:.1f} | {s.precision:.1f} | {s.recall:.1f} | {s.threshold:.2f} |" for s in scores]
    return "\n".join(lines)


def _write(result: DemoResult, settings: DemoSettings, test: ToyScenes, maps: dict[str, Tensor]) -> None:
    with replacing(result.figure_file) as file:
        _figure(test, maps, {s.method: s.threshold for s in result.scores}, settings.shown).save(file)
    text = (
        f"{result.table}\n\nPercent, on {settings.test} test scenes; thresholds were chosen on {settings.validation} "
        f"others. Seed {settings.seed}; {result.accuracy:.1f} % of the net's class decisions are right.\n"
    )
    write_text(result.table_file, text)
    content = {
        "settings": dataclasses.asdict(settings),
        "accuracy": result.accuracy,
        "scores": [dataclasses.asdict(score) for score in result.scores],
        "seconds": round(result.seconds, 1),
    }
    write_json(result.scores_file, content)


def _figure(scenes: ToyScenes, maps: dict[str, Tensor], thresholds: dict[str, float], shown: int) -> Image.Image:
    titles = ["image", "truth"]
    for method, threshold in thresholds.items():
        titles += [f"{method}: one class", f"{method} > {threshold:.2f}"]
    rows, captions = [], []
    for n in range(min(shown, len(scenes.images))):
        image = scenes.images[n].permute(1, 2, 0).numpy()
        labels = scenes.labels[n].nonzero()[:, 0].tolist()
        row = [image, labels_over(image, scenes.masks[n].numpy())]
        for method, threshold in thresholds.items():
            found = label_maps(maps[method][n : n + 1], threshold)[0]
            row += [heat_over(image, maps[method][n, labels[0]].numpy()), labels_over(image, found.numpy())]
        rows.append(row)
        captions.append(f"{', '.join(CLASS_NAMES[k] for k in labels)}; heat for {CLASS_NAMES[labels[0]]}")
    return panels(rows, titles, captions, cell=2 * scenes.images.shape[2])


#: Seeds of the demonstration's training and test scenes.
TRAIN_SEED, TEST_SEED = 0, 2

#: The normalisation that `advcam_attr.pipelines.demo.normalise` applies.
MEAN, STD = (0.5,), (0.25,)


def toy_net(folder: Path) -> nn.Module:
    """Return the demonstration's net, from ``net.safetensors`` of a folder or trained (half a minute) and saved."""
    path = folder / "net.safetensors"
    net: nn.Module = small_net().eval()
    if path.is_file():
        load_weights(net, read_checkpoint(path), "the net of the toy scenes")
        return net
    settings = DemoSettings()
    net = train_net(make_scenes(settings.train, size=settings.size, seed=TRAIN_SEED), settings.epochs)
    write_bytes(path, dump_tensors(net.state_dict(), {}))
    return net


def toy_data(folder: Path, count: int) -> SegmentationData:
    """Write ``count`` test scenes to a folder as ``NNNN.png``, if missing, and return them with their masks."""
    scenes = make_scenes(count, seed=TEST_SEED)
    samples = []
    for n, (image, labels) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        path = folder / f"{n:04d}.png"
        if not path.is_file():
            values = (image * 255).round().byte().permute(1, 2, 0).numpy()
            with replacing(path) as file:
                Image.fromarray(values).save(file)
        samples.append(Sample(path.stem, path, tuple(labels.nonzero()[:, 0].tolist())))

    def mask(sample: Sample) -> Tensor:
        return scenes.masks[int(sample.id)]

    return SegmentationData("toy", folder, "test", CLASS_NAMES, tuple(samples), mask)
