"""Evaluation of localization maps and label maps against a data set's masks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from advcam_attr.data.labels import few
from advcam_attr.data.masks import read_labels
from advcam_attr.data.samples import SegmentationData
from advcam_attr.files import write_bytes, write_json
from advcam_attr.metrics.evaluation import MaskEvaluation, Scope, SeedEvaluation
from advcam_attr.metrics.seeds import VOC_THRESHOLDS, ImageCounts, ThresholdSweep
from advcam_attr.metrics.segmentation import ConfusionMatrix, void_as_background
from advcam_attr.reading import parse_json
from advcam_attr.runs.map_store import MapReader, maps_of
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.tensor_files import dump_tensors, read_tensors
from advcam_attr.types import AdvCAMError, ClassMaps, NoMaskError, Sample

#: The files of the report and of the counts that it was made of.
REPORT, COUNTS = "evaluation.json", "evaluation.safetensors"


def evaluate_seeds(
    maps: MapReader,
    data: SegmentationData,
    thresholds: Sequence[float] = VOC_THRESHOLDS,
    *,
    samples: Sequence[Sample] | None = None,
    device: torch.device | str = "cpu",
    allow_missing: bool = False,
) -> SeedEvaluation:
    """Score localization maps at every background threshold against the masks of a data set.

    The protocol is that of the released scripts: a pixel is of its strongest class where that class's ``high_res`` map
    exceeds the threshold, counts are pooled over images, void pixels are ignored, and the mean IoU is over all classes
    that occur, the background included. Images without labels are background; those without a mask are left out and
    named in the result.

    Args:
        maps: by image id.
        thresholds: ascending; `advcam_attr.metrics.seeds.SEED_THRESHOLDS` has those of the released scripts.
        samples: a shard, for `advcam_attr.metrics.evaluation.merge_seeds`; None takes all.
        device: where pixels are counted.
        allow_missing: leave out images whose maps are missing or damaged, and name them in the result.
    """
    chosen = data.samples if samples is None else tuple(samples)
    missing: dict[str, str] = {}
    unmasked: dict[str, str] = {}
    without = [sample for sample in chosen if sample.labels and sample.id not in maps]
    if not allow_missing and (needed := next((s for s in without if _mask(data, s, unmasked) is not None), None)):
        raise AdvCAMError(
            f"maps of {len(without)} of {len(chosen)} images are missing, e.g. of {needed.id}: "
            "make them, or score the others alone (allow_missing)"
        )
    labels = len(data.classes) + 1
    sweep, images = ThresholdSweep(thresholds, labels, device=device), ImageCounts(len(thresholds), labels)
    ids = []
    for sample in _reported(chosen):
        truth = _mask(data, sample, unmasked)
        if truth is None:
            continue
        try:
            found = _read_maps(maps, sample, truth)
        except AdvCAMError as error:
            if not allow_missing:
                raise
            missing[sample.id] = str(error)
            continue
        try:
            histogram = sweep.histogram(found.high_res.to(device), found.classes, truth.to(device))
        except AdvCAMError as error:
            raise AdvCAMError(f"{sample.id} ({sample.image}): {error}") from error
        sweep.add(histogram, found.classes)
        images.add(histogram, found.classes)
        ids.append(sample.id)
    return SeedEvaluation(_scope(data, ids, missing, unmasked, whole=samples is None), sweep, images)


def evaluate_masks(
    folder: Path,
    data: SegmentationData,
    *,
    samples: Sequence[Sample] | None = None,
    allow_missing: bool = False,
) -> MaskEvaluation:
    """Score label maps ``<id>.png`` of a folder against the masks of a data set.

    Predicted void (255), which training ignores, counts as background, as in the released evaluation. Images without
    a mask are left out and named in the result.

    Args:
        folder: label maps, see `advcam_attr.data.masks.read_labels`.
        samples: a shard; None takes all.
        allow_missing: leave out images whose files are missing or damaged, and name them in the result.
    """
    chosen = data.samples if samples is None else tuple(samples)
    labels = len(data.classes) + 1
    missing: dict[str, str] = {}
    unmasked: dict[str, str] = {}
    matrix, ids, rows = ConfusionMatrix(labels), [], []
    for sample in _reported(chosen):
        truth = _mask(data, sample, unmasked)
        if truth is None:
            continue
        path = folder / f"{sample.id}.png"
        try:
            prediction = read_labels(path, len(data.classes))
        except AdvCAMError as error:
            if not allow_missing:
                raise
            missing[sample.id] = str(error)
            continue
        if prediction.shape != truth.shape:
            raise AdvCAMError(f"{path} is {_size(prediction)} pixels and the mask of {sample.id} {_size(truth)}")
        one = ConfusionMatrix(labels)
        try:
            one.update(void_as_background(prediction), truth)
        except AdvCAMError as error:
            raise AdvCAMError(f"{path}: {error}") from error
        matrix.merge(one)
        rows.append(one.marginals().int())
        ids.append(sample.id)
    images = torch.stack(rows) if rows else torch.zeros(0, 4, labels, dtype=torch.int32)
    return MaskEvaluation(_scope(data, ids, missing, unmasked, whole=samples is None), matrix, images)


def left_out(scope: Scope) -> list[str]:
    """Return sentences on the images that were not scored."""
    count = len(scope.ids) + len(scope.missing) + len(scope.unmasked)
    groups = ((scope.unmasked, "which have no true mask"), (scope.missing, "whose maps are missing or damaged"))
    return [f"left out: {len(some)} of {count} images, {why}: {few(some)}" for some, why in groups if some]


def write_seed_evaluation(evaluation: SeedEvaluation, folder: Path, threshold: float | None = None) -> Path:
    """Write the counts and then the report, with scores at ``threshold`` or at the best one, and return its path."""
    save_counts(evaluation, folder / COUNTS)
    write_json(folder / REPORT, evaluation.describe(threshold))
    return folder / REPORT


def write_mask_evaluation(evaluation: MaskEvaluation, folder: Path) -> Path:
    """Write the report, and return its path."""
    write_json(folder / REPORT, evaluation.describe())
    return folder / REPORT


def save_counts(evaluation: SeedEvaluation, path: Path) -> None:
    """Write the counts of a shard or of all images, for `load_counts`."""
    scope = {**vars(evaluation.scope), "missing": dict(evaluation.scope.missing)}
    scope["unmasked"] = dict(evaluation.scope.unmasked)
    write_bytes(path, dump_tensors(evaluation.state(), {"scope": json.dumps(scope)}))


def load_counts(path: Path) -> SeedEvaluation:
    try:
        state, metadata = read_tensors(path)
        scope = parse_json(metadata["scope"])
        scope |= {"classes": tuple(map(str, scope["classes"])), "ids": tuple(map(str, scope["ids"]))}
        return SeedEvaluation.from_state(Scope(**scope), state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AdvCAMError(
            f"cannot read counts of an evaluation from {path}: missing, damaged or another file"
        ) from error


def _read_maps(maps: MapReader, sample: Sample, truth: Tensor) -> ClassMaps:
    if sample.id not in maps:
        if sample.labels:
            raise AdvCAMError(f"there are no maps of {sample.id}")
        size = truth.shape[0], truth.shape[1]
        return ClassMaps((), size, truth.new_zeros(0, 0, 0).float(), truth.new_zeros(0, *size).float())
    found = maps_of(maps, sample)
    if not bool(found.high_res.isfinite().all()):
        raise AdvCAMError(f"the maps of {sample.id} are not finite: make them again")
    return found


def _mask(data: SegmentationData, sample: Sample, unmasked: dict[str, str]) -> Tensor | None:
    try:
        return data.mask(sample)
    except NoMaskError as error:
        unmasked[sample.id] = str(error)
        return None


def _scope(
    data: SegmentationData, ids: Sequence[str], missing: dict[str, str], unmasked: dict[str, str], *, whole: bool
) -> Scope:
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise AdvCAMError(f"{data.name} {data.split} has several images of one id, e.g. {twice[0]}")
    if whole and not ids:
        reason = next(iter({**missing, **unmasked}.values()), "the list of images is empty")
        raise AdvCAMError(f"no image of {data.name} {data.split} could be scored: {reason}")
    return Scope(f"{data.name} {data.split}", data.classes, tuple(ids), missing, unmasked)


def _reported(samples: Sequence[Sample]) -> Iterator[Sample]:
    with progress_bar(len(samples), "scoring") as bar:
        for sample in samples:
            yield sample
            bar.update()


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
