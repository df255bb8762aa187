"""A run folder of ``advcam wsol`` in; the galleries of its report, one a classifier, out."""

from __future__ import annotations

import json
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
from advcam_attr.pipelines.wsol.config import ReadyNet, WSOLDataConfig, WSOLMethod
from advcam_attr.pipelines.wsol.evaluate import REPORT
from advcam_attr.pipelines.wsol_maps import read_map, wsol_map_store
from advcam_attr.refine.boxes import map_to_boxes, opencv
from advcam_attr.report.gallery import configured, no_gallery, told
from advcam_attr.report.page import Entry, Frame, Outline, Section, heat_uri, most_telling, picture_uri
from advcam_attr.runs.map_store import MapStore
from advcam_attr.runs.provenance import read_record
from advcam_attr.types import AdvCAMError, Sample

#: What the methods are called, and the colours of their boxes, which differ to colour-blind eyes too.
_NAMES: dict[WSOLMethod, str] = {"cam": "CAM", "climb": "climbing alone", "advcam": "AdvCAM"}
_COLOURS: dict[WSOLMethod, str] = {"cam": "#e69f00", "climb": "#009e73", "advcam": "#56b4e9"}
_TRUE = "#ffffff"

#: How deep the classifiers lie below a run: ``NAME`` or ``NAME/seedN``.
_LEVELS = ("*", "*/*")


@dataclass(frozen=True)
class _Located:
    """What a method finds in an image: its box (none of an even map), and the overlap with the nearest true one."""

    boxes: tuple[Box, ...]
    iou: float


def wsol_sections(folder: Path, limit: int) -> list[Section]:
    """A gallery of the maps of each classifier; nothing where there are none.

    What is not there yet is left out and named. Without the data set there is no gallery, and the reason is told.

    Raises:
        AdvCAMError: maps, or their scores, are damaged.
    """
    subjects = _subjects(folder)
    if not subjects:
        return []
    try:
        opencv()
        data, missing = _data(folder)
    except AdvCAMError as error:
        return [no_gallery(error)]
    each = max(1, limit // len(subjects))
    names = [subject.relative_to(folder).as_posix() for subject in subjects]
    return [_gallery(folder / name, f"Gallery of {name}", data, missing, each) for name in names]


def _subjects(folder: Path) -> list[Path]:
    """The folders of the classifiers that have maps or a training of their own."""
    mapped = [path for level in _LEVELS for path in folder.glob(f"{level}/maps/*/maps.json")]
    trained = folder.glob("*/seed*/classifier/training.json")
    return sorted({path.parents[2] for path in mapped if path.parent.name in _NAMES} | {p.parents[1] for p in trained})


def _data(folder: Path) -> tuple[LocalizationData, list[Sample]]:
    """The images that are scored, in the classes of the net; and those whose photograph is gone."""
    config, net = configured(folder, "data", WSOLDataConfig), configured(folder, "net", ReadyNet)
    data = config.read(config.score)
    if net.labels is not None:
        data, _ = in_classes_of(data, read_labels(path_of(net.labels)))
    missing = missing_images(data.samples)
    gone = {sample.id for sample in missing}
    return with_samples(data, [sample for sample in data.samples if sample.id not in gone]), missing


def _gallery(subject: Path, title: str, data: LocalizationData, missing: Sequence[Sample], limit: int) -> Section:
    folders = {method: subject / "maps" / method for method in _NAMES}
    stores = {method: wsol_map_store(path) for method, path in folders.items() if (path / "maps.json").is_file()}
    stores = {method: store for method, store in stores.items() if next(store.ids(), None) is not None}
    if not stores:
        return no_gallery("there are no maps yet (advcam wsol maps)", title)
    samples = [sample for sample in data.samples if all(_has(store, sample.id) for store in stores.values())]
    thresholds = {method: _threshold(folders[method]) for method in stores}
    found = {sample.id: _locate(sample.id, stores, thresholds, data) for sample in samples}
    kept = most_telling(samples, lambda sample: _gain(found[sample.id]) or 0.0, limit)
    notes = told(data, len(samples), len(kept), missing, have="maps", others="have none, or not of all methods")
    at = ", ".join(f"{_NAMES[method]} {value:.3f}" for method, value in thresholds.items() if value is not None)
    if at:
        notes.append(
            f"A box is that of a map's largest part above the threshold of the best GT-known Loc: {at}. The scores of "
            "the tables are of the best box of all parts."
        )
    if None in thresholds.values():
        without = " and ".join(_NAMES[method] for method, value in thresholds.items() if value is None)
        notes.append(f"The maps of {without} are not scored yet (advcam wsol evaluate): they have no boxes.")
    entries = tuple(_entry(sample, stores, found[sample.id], data) for sample in kept)
    return Section(title, tuple(notes), gallery=entries, gain="gain in IoU over CAM")


def _has(store: MapStore, id: str) -> bool:
    """Whether there is a map of the store's settings, or a damaged one, which is told of when it is read."""
    header = store.header(id)
    return id in store and (header is None or header.settings == store.settings)


def _threshold(folder: Path) -> float | None:
    """Where most images have a right box; None where these maps are not scored yet."""
    path, made = folder / REPORT, read_record(folder / "maps.json")
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        threshold = float(record["scores"]["all"]["gt_known_threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvCAMError(f"{path} is damaged: evaluate anew, or remove it") from error
    return threshold if made is not None and record.get("maps") == made["settings"] else None


def _locate(
    id: str,
    stores: Mapping[WSOLMethod, MapStore],
    thresholds: Mapping[WSOLMethod, float | None],
    data: LocalizationData,
) -> dict[WSOLMethod, _Located]:
    truth, found = data.boxes.get(id, ()), {}
    for method, threshold in thresholds.items():
        if threshold is not None and truth:
            boxes = map_to_boxes(read_map(stores[method], id), threshold, size=data.sizes[id]).numpy()
            iou = float(box_iou(boxes, np.asarray(truth)).max()) if len(boxes) else 0.0
            found[method] = _Located(tuple(map(tuple, boxes.tolist())), iou)
    return found


def _gain(found: Mapping[WSOLMethod, _Located]) -> float | None:
    return found["advcam"].iou - found["cam"].iou if {"cam", "advcam"} <= found.keys() else None


def _entry(
    sample: Sample, stores: Mapping[WSOLMethod, MapStore], found: Mapping[WSOLMethod, _Located], data: LocalizationData
) -> Entry:
    picture = read_stored_rgb(sample.image)
    source, size = picture_uri(picture)
    scale = size[0] / picture.width, size[1] / picture.height
    steps = []
    for method, store in stores.items():
        heat = read_map(store, sample.id).numpy()
        steps.append(Frame(_NAMES[method], heat_uri(heat - heat.min())))  # as thresholds count: from the lowest value
    outlines = [Outline("truth", _TRUE, _drawn(data.boxes.get(sample.id, ()), scale))]
    outlines += [Outline(_NAMES[method], _COLOURS[method], _drawn(one.boxes, scale)) for method, one in found.items()]
    score = ", ".join(f"{_NAMES[method]} {100 * one.iou:.1f}" for method, one in found.items())
    return Entry(
        sample.id, tuple(data.classes[k] for k in sample.labels), source, size, tuple(steps), (),
        f"IoU of the box: {score}" if score else "", _gain(found), tuple(one for one in outlines if one.boxes),
    )  # fmt: skip


def _drawn(boxes: Sequence[Box], scale: tuple[float, float]) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes, given by first and last pixels, as x, y, width and height on a picture of another size."""
    (x, y), corners = scale, [(x0, y0, x1 - x0 + 1, y1 - y0 + 1) for x0, y0, x1, y1 in boxes]
    return tuple((round(a * x, 1), round(b * y, 1), round(w * x, 1), round(h * y, 1)) for a, b, w, h in corners)
