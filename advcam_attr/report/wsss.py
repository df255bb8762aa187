"""A run folder of ``advcam wsss`` in; the gallery of its report out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advcam_attr.analysis.failures import image_gains
from advcam_attr.data.images import read_rgb
from advcam_attr.data.masks import read_labels
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.pipelines.analyze.seeds import WITH
from advcam_attr.pipelines.evaluate import COUNTS, load_counts
from advcam_attr.pipelines.wsss.config import DataConfig
from advcam_attr.pipelines.wsss.stages import read_split
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.report.attribution import step_name
from advcam_attr.report.gallery import configured, no_gallery, told
from advcam_attr.report.page import Entry, Frame, Section, heat_uri, labels_uri, most_telling, picture_uri
from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import AdvCAMError, Sample

_NAMES = {"cam": "CAM", "advcam": "AdvCAM"}


@dataclass(frozen=True)
class _Run:
    """What there is of a run.

    Attributes:
        folder: of the run.
        data: the images that are scored.
        steps: maps by what the slider calls them.
        methods: the seeds' maps.
        scored: their evaluations, where there are some.
        gains: of each image, and both methods' scores.
    """

    folder: Path
    data: SegmentationData
    steps: Mapping[str, MapStore]
    methods: Mapping[str, MapStore]
    scored: Mapping[str, SeedEvaluation]
    gains: Mapping[str, tuple[float, float]]


def wsss_sections(folder: Path, limit: int) -> list[Section]:
    """The gallery of a run's seeds; nothing where there are no seeds.

    What is not there yet is left out and named. Without the data set there is no gallery, and the reason is told.

    Raises:
        AdvCAMError: maps or masks are damaged.
    """
    methods = {name: folder / "seeds" / name for name in _NAMES if (folder / "seeds" / name / "maps").is_dir()}
    if not methods:
        return []
    try:
        data, missing = without_missing(_data(folder))
    except AdvCAMError as error:
        return [no_gallery(error)]
    stores = {name: MapStore(path / "maps") for name, path in methods.items()}
    scored = {name: load_counts(path / COUNTS) for name, path in methods.items() if (path / COUNTS).is_file()}
    gains: dict[str, tuple[float, float]] = {}
    if set(scored) == set(_NAMES) and scored["cam"].scope.ids == scored["advcam"].scope.ids:
        found = image_gains(scored["cam"], scored["advcam"])
        gains = {id: (a, b) for id, a, b in zip(found.ids, found.cam, found.advcam, strict=True)}
    samples = [s for s in data.samples if s.labels and all(s.id in store for store in stores.values())]
    kept = most_telling(samples, lambda s: np.subtract(*gains.get(s.id, (0.0, 0.0))[::-1]), limit)
    run = _Run(folder, data, _steps(folder, stores, [s.id for s in kept]), stores, scored, gains)
    notes = told(data, len(samples), len(kept), missing, have="maps", others="have none, or no class")
    if not gains:
        notes.append("The seeds are not scored yet (advcam wsss evaluate): the order is by name.")
    entries = tuple(_entry(run, sample) for sample in kept)
    return [Section("Gallery", tuple(notes), gallery=entries, gain="gain in IoU over CAM")]


def _data(folder: Path) -> SegmentationData:
    config = configured(folder, "data", DataConfig)
    return read_split(config, config.score)


def _steps(folder: Path, methods: Mapping[str, MapStore], ids: list[str]) -> dict[str, MapStore]:
    """The stores that the slider walks: those of a sweep over T if ``advcam analyze`` has made one of these images."""
    sweep = sorted((folder / "analysis" / "maps" / WITH / "maps").glob("T[0-9]*"), key=lambda path: int(path.name[1:]))
    stores = {step_name(int(path.name[1:])): MapStore(path) for path in sweep}
    if stores and ids and all(id in store for id in ids for store in stores.values()):
        return stores
    return {_NAMES[name]: store for name, store in methods.items()}


def _entry(run: _Run, sample: Sample) -> Entry:
    source, size = picture_uri(read_rgb(sample.image))
    steps = tuple(Frame(name, heat_uri(store.read(sample.id).cam.amax(0).numpy())) for name, store in run.steps.items())
    labels = []
    for name, evaluation in run.scored.items():
        maps = run.methods[name].read(sample.id)
        seed = threshold_maps(maps.high_res, maps.classes, evaluation.sweep.best_threshold())
        labels.append(Frame(f"seed of {_NAMES[name]}", labels_uri(seed.numpy())))
    for name in run.methods:
        path = run.folder / "refined" / name / "masks" / f"{sample.id}.png"
        if path.is_file():
            mask = read_labels(path, len(run.data.classes)).numpy()
            labels.append(Frame(f"mask from {_NAMES[name]}", labels_uri(mask)))
    with contextlib.suppress(AdvCAMError):  # images without a mask are not scored, and are shown without one
        labels.append(Frame("truth", labels_uri(run.data.mask(sample).numpy())))
    a, b = run.gains.get(sample.id, (0.0, 0.0))
    scored = sample.id in run.gains
    classes = tuple(run.data.classes[k] for k in sample.labels)
    score = f"IoU of the seed {100 * a:.1f} → {100 * b:.1f}" if scored else ""
    return Entry(sample.id, classes, source, size, steps, tuple(labels), score, b - a if scored else None)
