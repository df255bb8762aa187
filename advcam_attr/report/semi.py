"""A run folder of ``advcam semi`` in; the gallery of its report out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

from advcam_attr.data.images import read_rgb
from advcam_attr.data.masks import mask_path, read_labels
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.metrics import segmentation as measures
from advcam_attr.pipelines.evaluate import evaluate_masks
from advcam_attr.pipelines.semi.config import SemiDataConfig, SemiPredictConfig
from advcam_attr.report.gallery import configured, no_gallery, told
from advcam_attr.report.page import Entry, Frame, Section, labels_uri, most_telling, picture_uri
from advcam_attr.types import AdvCAMError, Sample

#: What the label maps are called, by their folder; images are in the order of the last that is there.
_NAMES = {"predictions": "prediction", "predictions_crf": "prediction after the CRF"}


def semi_sections(folder: Path, limit: int) -> list[Section]:
    """A gallery of the label maps of each split that was predicted; nothing for a run of another kind.

    What is not there yet is left out and named. Without the data set there is no gallery, and the reason is told.

    Raises:
        AdvCAMError: label maps are damaged, or of other sizes than the masks.
    """
    if not (folder / "cct").is_dir():
        return []
    there = sorted({path.parent for kind in _NAMES for path in folder.glob(f"{kind}/*/*.png")})
    splits = {path.name: [one for one in there if one.name == path.name] for path in there}
    if not splits:
        return [no_gallery("nothing is predicted yet (advcam semi evaluate)")]
    found = []
    for split, folders in splits.items():
        title = f"Gallery of {split}"
        try:
            data, missing = without_missing(_data(folder, split))
        except AdvCAMError as error:
            found.append(no_gallery(error, title))
            continue
        maps = {_NAMES[path.parent.name]: path for path in folders}
        found.append(_gallery(title, maps, data, missing, max(1, limit // len(splits))))
    return found


def _data(folder: Path, split: str) -> SegmentationData:
    """The images of a split, by the name of its folder, which is that of a list without its path."""
    config, predict = configured(folder, "data", SemiDataConfig), configured(folder, "predict", SemiPredictConfig)
    named = [name for name in (predict.split, config.val) if name is not None and Path(name).stem == split]
    return config.read(next(iter(named), split))


def _gallery(
    title: str, maps: Mapping[str, Path], data: SegmentationData, missing: tuple[Sample, ...], limit: int
) -> Section:
    samples = [s for s in data.samples if all(mask_path(folder, s.id).is_file() for folder in maps.values())]
    scored = {name: _mean_ious(folder, data, samples) for name, folder in maps.items()}
    order = list(scored.values())[-1]
    kept = most_telling(samples, lambda sample: order.get(sample.id, 0.0), limit)
    notes = told(
        data, len(samples), len(kept), missing, have="predictions", others="have none",
        ends="lowest and highest mean IoU",
    )  # fmt: skip
    notes.append("The mean IoU of an image is over the classes that occur in its truth or prediction.")
    if samples and not order:
        notes.append("No image has a true mask: the order is by name.")
    entries = tuple(_entry(sample, maps, scored, data) for sample in kept)
    return Section(title, tuple(notes), gallery=entries, gain="mean IoU")


def _mean_ious(folder: Path, data: SegmentationData, samples: list[Sample]) -> dict[str, float]:
    """Of each image that has a true mask with a label."""
    found = evaluate_masks(folder, data, samples=samples)
    values = zip(found.scope.ids, measures.mean_iou(found.images).tolist(), strict=True)
    return {id: value for id, value in values if math.isfinite(value)}


def _entry(
    sample: Sample, maps: Mapping[str, Path], scored: Mapping[str, Mapping[str, float]], data: SegmentationData
) -> Entry:
    source, size = picture_uri(read_rgb(sample.image))
    labels = [
        Frame(name, labels_uri(read_labels(mask_path(folder, sample.id), len(data.classes)).numpy()))
        for name, folder in maps.items()
    ]
    with contextlib.suppress(AdvCAMError):  # images without a mask are not scored, and are shown without one
        labels.append(Frame("truth", labels_uri(data.mask(sample).numpy())))
    values = {name: one[sample.id] for name, one in scored.items() if sample.id in one}
    score = "mean IoU: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items()) if values else ""
    classes = tuple(data.classes[k] for k in sample.labels)
    return Entry(sample.id, classes, source, size, (), tuple(labels), score, next(reversed(values.values()), None))
