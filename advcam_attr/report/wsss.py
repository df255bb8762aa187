"""Gallery of a run folder of ``advcam wsss``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from advcam_attr.analysis.failures import image_gains
from advcam_attr.data.images import read_rgb
from advcam_attr.data.masks import mask_path, read_labels
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.pipelines.analyze.seeds import WITH
from advcam_attr.pipelines.evaluate import COUNTS, load_counts
from advcam_attr.pipelines.wsss.config import DataConfig
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.report.attribution import step_name
from advcam_attr.report.gallery import METHOD_NAMES, class_names, gallery_notes, no_gallery, read_config, truth_frames
from advcam_attr.report.page import Entry, Frame, Section, extremes, heat_uri, labels_uri, thumbnail
from advcam_attr.runs.map_store import MapStore
from advcam_attr.types import AdvCAMError, Sample

_METHODS = ("cam", "advcam")


@dataclass(frozen=True)
class _Run:
    """Results of a run.

    Attributes:
        steps: Maps by their captions at the slider.
        methods: Maps that the seeds are made of.
        scored: Evaluations by method.
        gains: IoU of both methods by image id.
    """

    folder: Path
    data: SegmentationData
    steps: Mapping[str, MapStore]
    methods: Mapping[str, MapStore]
    scored: Mapping[str, SeedEvaluation]
    gains: Mapping[str, tuple[float, float]]


def wsss_sections(folder: Path, limit: int) -> list[Section]:
    """Return the gallery of a run's seeds, with notes on what is missing."""
    methods = {name: folder / "seeds" / name for name in _METHODS if (folder / "seeds" / name / "maps").is_dir()}
    if not methods:
        return []
    try:
        config = read_config(folder, "data", DataConfig)
        data, missing = without_missing(config.read(config.score))
    except AdvCAMError as error:
        return [no_gallery(error)]
    stores = {name: MapStore(path / "maps") for name, path in methods.items()}
    scored = {name: load_counts(path / COUNTS) for name, path in methods.items() if (path / COUNTS).is_file()}
    gains: dict[str, tuple[float, float]] = {}
    if set(scored) == set(_METHODS) and scored["cam"].scope.ids == scored["advcam"].scope.ids:
        found = image_gains(scored["cam"], scored["advcam"])
        gains = {id: (a, b) for id, a, b in zip(found.ids, found.cam, found.advcam, strict=True)}
    samples = [s for s in data.samples if s.labels and all(s.id in store for store in stores.values())]
    shown = extremes(samples, lambda s: gains[s.id][1] - gains[s.id][0] if s.id in gains else 0.0, limit)
    run = _Run(folder, data, _steps(folder, stores, [s.id for s in shown]), stores, scored, gains)
    notes = gallery_notes(data, len(samples), len(shown), missing, have="maps", others="have none, or no class")
    if not gains:
        notes.append("The seeds are not scored yet (advcam wsss evaluate): the order is by name.")
    entries = tuple(_entry(run, sample) for sample in shown)
    return [Section("Gallery", tuple(notes), gallery=entries, gain="gain in IoU over CAM")]


def _steps(folder: Path, methods: Mapping[str, MapStore], ids: list[str]) -> dict[str, MapStore]:
    """The stores of the slider: a sweep of ``advcam analyze`` over T of these images, else the seeds'."""
    sweep = sorted((folder / "analysis" / "maps" / WITH / "maps").glob("T[0-9]*"), key=lambda path: int(path.name[1:]))
    stores = {step_name(int(path.name[1:])): MapStore(path) for path in sweep}
    if stores and ids and all(id in store for id in ids for store in stores.values()):
        return stores
    return {METHOD_NAMES[name]: store for name, store in methods.items()}


def _entry(run: _Run, sample: Sample) -> Entry:
    source, size = thumbnail(read_rgb(sample.image))
    steps = tuple(Frame(name, heat_uri(store.read(sample.id).cam.amax(0).numpy())) for name, store in run.steps.items())
    labels = []
    for name, evaluation in run.scored.items():
        maps = run.methods[name].read(sample.id)
        seed = threshold_maps(maps.high_res, maps.classes, evaluation.sweep.best_threshold())
        labels.append(Frame(f"seed of {METHOD_NAMES[name]}", labels_uri(seed.numpy())))
    for name in run.methods:
        path = mask_path(run.folder / "refined" / name / "masks", sample.id)
        if path.is_file():
            mask = read_labels(path, len(run.data.classes)).numpy()
            labels.append(Frame(f"mask from {METHOD_NAMES[name]}", labels_uri(mask)))
    score, gain = "", None
    if sample.id in run.gains:
        cam, advcam = run.gains[sample.id]
        score, gain = f"IoU of the seed {100 * cam:.1f} → {100 * advcam:.1f}", advcam - cam
    frames = (*labels, *truth_frames(run.data, sample))
    return Entry(sample.id, class_names(run.data, sample), source, size, steps, frames, score, gain)
