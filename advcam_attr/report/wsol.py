"""Galleries of a run folder of ``advcam wsol``, one for each classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advcam_attr.data.class_names import in_classes_of
from advcam_attr.data.images import read_stored_rgb
from advcam_attr.data.samples import Box, LocalizationData, missing_images, with_samples
from advcam_attr.metrics.box_sweep import box_iou
from advcam_attr.networks.load import read_labels
from advcam_attr.pipelines.config import path_of
from advcam_attr.pipelines.maps import read_map, wsol_map_store
from advcam_attr.pipelines.wsol.config import ReadyNet, WSOLDataConfig
from advcam_attr.pipelines.wsol.evaluate import REPORT
from advcam_attr.reading import read_json
from advcam_attr.refine.boxes import map_to_boxes
from advcam_attr.refine.opencv import opencv
from advcam_attr.report.gallery import METHOD_NAMES, class_names, gallery_notes, no_gallery, read_config
from advcam_attr.report.page import Entry, Frame, Outline, Section, extremes, heat_uri, thumbnail
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.provenance import read_record
from advcam_attr.types import AdvCAMError, Sample

#: Colours of the methods' boxes, which colour-blind readers can tell apart, and of the true boxes.
_COLOURS = {"cam": "#e69f00", "climb": "#009e73", "advcam": "#56b4e9", "truth": "#ffffff"}


@dataclass(frozen=True)
class _Located:
    """The box of a method in an image (none of a constant map), and its IoU with the nearest true box."""

    boxes: tuple[Box, ...]
    iou: float


def wsol_sections(folder: Path, limit: int) -> list[Section]:
    """Return a gallery of the maps of each classifier, with notes on what is missing."""
    subjects = _subjects(folder)
    if not subjects:
        return []
    try:
        opencv()
        data, missing = _read_data(folder)
    except AdvCAMError as error:
        return [no_gallery(error)]
    each = max(1, limit // len(subjects))
    names = [subject.relative_to(folder).as_posix() for subject in subjects]
    return [_subject_gallery(folder / name, f"Gallery of {name}", data, missing, each) for name in names]


def _subjects(folder: Path) -> list[Path]:
    """The folders ``NAME`` or ``NAME/seedN`` of the classifiers that have maps or a training of their own."""
    mapped = [path for level in ("*", "*/*") for path in folder.glob(f"{level}/maps/*/maps.json")]
    trained = folder.glob("*/seed*/classifier/training.json")
    return sorted({p.parents[2] for p in mapped if p.parent.name in METHOD_NAMES} | {p.parents[1] for p in trained})


def _read_data(folder: Path) -> tuple[LocalizationData, list[Sample]]:
    """The images that are scored, in the classes of the net, and the samples whose image is missing."""
    config, net = read_config(folder, "data", WSOLDataConfig), read_config(folder, "net", ReadyNet)
    data = config.read(config.score)
    if net.labels is not None:
        data, _ = in_classes_of(data, read_labels(path_of(net.labels)))
    missing = missing_images(data.samples)
    gone = {sample.id for sample in missing}
    return with_samples(data, [sample for sample in data.samples if sample.id not in gone]), missing


def _subject_gallery(
    subject: Path, title: str, data: LocalizationData, missing: Sequence[Sample], limit: int
) -> Section:  # fmt: skip
    folders = {method: subject / "maps" / method for method in METHOD_NAMES}
    stores = {method: wsol_map_store(path) for method, path in folders.items() if (path / "maps.json").is_file()}
    stores = {method: store for method, store in stores.items() if next(store.ids(), None) is not None}
    if not stores:
        return no_gallery("there are no maps yet (advcam wsol maps)", title)
    samples = [sample for sample in data.samples if all(_has(store, sample.id) for store in stores.values())]
    thresholds = {method: _best_threshold(folders[method]) for method in stores}
    found = {sample.id: _locate(sample.id, stores, thresholds, data) for sample in samples}
    shown = extremes(samples, lambda sample: _gain(found[sample.id]) or 0.0, limit)
    others = "have none, or not of all methods"
    notes = gallery_notes(data, len(samples), len(shown), missing, have="maps", others=others)
    scored = [f"{METHOD_NAMES[method]} {value:.3f}" for method, value in thresholds.items() if value is not None]
    unscored = [METHOD_NAMES[method] for method, value in thresholds.items() if value is None]
    if scored:
        notes.append(
            "A box is that of a map's largest part above the threshold of the best GT-known Loc: "
            f"{', '.join(scored)}. The scores of the tables are of the best box of all parts."
        )
    if unscored:
        names = " and ".join(unscored)
        notes.append(f"The maps of {names} are not scored yet (advcam wsol evaluate): they have no boxes.")
    entries = tuple(_entry(sample, stores, found[sample.id], data) for sample in shown)
    return Section(title, tuple(notes), gallery=entries, gain="gain in IoU over CAM")


def _has(store: MapStore, id: str) -> bool:
    """Whether there is a map of the store's settings, or a damaged one, whose reading then raises."""
    header = store.header(id)
    return id in store and (header is None or header.settings == store.settings)


def _best_threshold(folder: Path) -> float | None:
    """The threshold at which most images have a correct box; None where these maps are not scored yet."""
    path, made = folder / REPORT, read_record(folder / "maps.json")
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        threshold = float(record["scores"]["all"]["gt_known_threshold"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise AdvCAMError(f"{path} is damaged: evaluate again, or remove it") from error
    return threshold if made is not None and record.get("maps") == made["settings"] else None


def _locate(
    id: str, stores: Mapping[str, MapStore], thresholds: Mapping[str, float | None], data: LocalizationData
) -> dict[str, _Located]:
    truth, found = data.boxes.get(id, ()), {}
    for method, threshold in thresholds.items():
        if threshold is not None and truth:
            boxes = map_to_boxes(read_map(stores[method], id), threshold, size=data.sizes[id]).numpy()
            iou = float(box_iou(boxes, np.asarray(truth)).max()) if len(boxes) else 0.0
            found[method] = _Located(tuple(map(tuple, boxes.tolist())), iou)
    return found


def _gain(found: Mapping[str, _Located]) -> float | None:
    return found["advcam"].iou - found["cam"].iou if {"cam", "advcam"} <= found.keys() else None


def _entry(
    sample: Sample, stores: Mapping[str, MapStore], found: Mapping[str, _Located], data: LocalizationData
) -> Entry:
    image = read_stored_rgb(sample.image)
    source, size = thumbnail(image)
    scale = size[0] / image.width, size[1] / image.height
    steps = []
    for method, store in stores.items():
        heat = read_map(store, sample.id).numpy()
        steps.append(Frame(METHOD_NAMES[method], heat_uri(heat - heat.min())))  # thresholds count from the minimum
    boxes = {"truth": data.boxes.get(sample.id, ()), **{method: one.boxes for method, one in found.items()}}
    outlines = tuple(
        Outline(METHOD_NAMES.get(name, name), _COLOURS[name], _rectangles(some, scale))
        for name, some in boxes.items()
        if some
    )
    score = ", ".join(f"{METHOD_NAMES[method]} {100 * one.iou:.1f}" for method, one in found.items())
    return Entry(
        sample.id, class_names(data, sample), source, size, tuple(steps), (),
        f"IoU of the box: {score}" if score else "", _gain(found), outlines,
    )  # fmt: skip


def _rectangles(boxes: Sequence[Box], scale: tuple[float, float]) -> tuple[tuple[float, float, float, float], ...]:
    """Convert boxes of first and last pixels to x, y, width and height in a scaled image."""
    (x, y), corners = scale, [(x0, y0, x1 - x0 + 1, y1 - y0 + 1) for x0, y0, x1, y1 in boxes]
    return tuple((round(a * x, 1), round(b * y, 1), round(w * x, 1), round(h * y, 1)) for a, b, w, h in corners)
