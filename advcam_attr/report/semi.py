"""Galleries of a run folder of ``advcam semi``, one for each predicted split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from advcam_attr.data.images import read_rgb
from advcam_attr.data.masks import mask_path, read_labels
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.metrics import segmentation as measures
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.semi.config import SemiDataConfig, SemiPredictConfig
from advcam_attr.report.gallery import class_names, gallery_notes, no_gallery, read_config, truth_frames
from advcam_attr.report.page import Entry, Frame, Section, extremes, labels_uri, thumbnail
from advcam_attr.types import AdvCAMError, Sample

#: Captions of the label maps by folder; images are ordered by the scores of the last folder that exists.
_CAPTIONS = {"predictions": "prediction", "predictions_crf": "prediction after the CRF"}


def semi_sections(folder: Path, limit: int) -> list[Section]:
    """Return a gallery of the label maps of each predicted split, with notes on what is missing."""
    if not (folder / "cct").is_dir():
        return []
    predicted = sorted({path.parent for kind in _CAPTIONS for path in folder.glob(f"{kind}/*/*.png")})
    splits = {path.name: {_CAPTIONS[p.parent.name]: p for p in predicted if p.name == path.name} for path in predicted}
    if not splits:
        return [no_gallery("nothing is predicted yet (advcam semi evaluate)")]
    return [_split_gallery(folder, split, maps, max(1, limit // len(splits))) for split, maps in splits.items()]


def _split_gallery(folder: Path, split: str, maps: Mapping[str, Path], limit: int) -> Section:
    title = f"Gallery of {split}"
    try:
        data, missing = without_missing(_read_data(folder, split))
    except AdvCAMError as error:
        return no_gallery(error, title)
    samples = [s for s in data.samples if all(mask_path(path, s.id).is_file() for path in maps.values())]
    scored = {name: _mean_ious(path, data, samples) for name, path in maps.items()}
    order = list(scored.values())[-1]
    shown = extremes(samples, lambda sample: order.get(sample.id, 0.0), limit)
    notes = gallery_notes(
        data, len(samples), len(shown), missing, have="predictions", others="have none",
        ends="lowest and highest mean IoU",
    )  # fmt: skip
    notes.append("The mean IoU of an image is over the classes that occur in its truth or prediction.")
    if samples and not order:
        notes.append("No image has a true mask: the order is by name.")
    entries = tuple(_entry(sample, maps, scored, data) for sample in shown)
    return Section(title, tuple(notes), gallery=entries, gain="mean IoU")


def _read_data(folder: Path, split: str) -> SegmentationData:
    """The images of a split by the name of its folder, which is that of its list without the path."""
    config, predict = read_config(folder, "data", SemiDataConfig), read_config(folder, "predict", SemiPredictConfig)
    named = [name for name in (predict.split, config.val) if name is not None and Path(name).stem == split]
    return config.read(next(iter(named), split))


def _mean_ious(folder: Path, data: SegmentationData, samples: list[Sample]) -> dict[str, float]:
    found = evaluate_masks(folder, data, samples=samples)
    values = zip(found.scope.ids, measures.mean_iou(found.images).tolist(), strict=True)
    return {id: value for id, value in values if math.isfinite(value)}


def _entry(
    sample: Sample, maps: Mapping[str, Path], scored: Mapping[str, Mapping[str, float]], data: SegmentationData
) -> Entry:
    source, size = thumbnail(read_rgb(sample.image))
    labels = [
        Frame(name, labels_uri(read_labels(mask_path(folder, sample.id), len(data.classes)).numpy()))
        for name, folder in maps.items()
    ]
    values = {name: one[sample.id] for name, one in scored.items() if sample.id in one}
    score = "mean IoU: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items()) if values else ""
    return Entry(
        sample.id, class_names(data, sample), source, size, (), (*labels, *truth_frames(data, sample)), score,
        next(reversed(values.values()), None),
    )  # fmt: skip
