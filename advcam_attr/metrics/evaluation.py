"""Evaluations of seeds and masks of a data set: scores by class and object size, shards, and comparisons.

`SeedEvaluation` holds the counts of maps at all background thresholds; at one of them, they are masks:
`MaskEvaluation` holds the counts of label maps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advcam_attr.files import to_json
from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.bootstrap import Interval, paired_bootstrap, paired_order
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.metrics.segmentation import ConfusionMatrix, Scores, object_sizes, smallest_and_largest
from advcam_attr.types import AdvCAMError

#: The groups of classes of Table XIII.
SIZE_GROUPS = ("all", "small", "large")


@dataclass(frozen=True)
class Scope:
    """The images that were scored.

    Attributes:
        data: the data set's name and split, e.g. ``"voc train"``.
        classes: the names of the foreground classes; class k is label k + 1.
        ids: the counted images, in the order of the counts.
        missing: images with a mask whose maps or masks to score are missing or damaged, with the reason.
        unmasked: images without a mask, with the reason.
    """

    data: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unmasked: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "images": len(self.ids),
            "missing": dict(self.missing),
            "without_mask": dict(self.unmasked),
        }


@dataclass(frozen=True)
class MaskEvaluation:
    """Label maps of a data set, counted against its masks.

    Attributes:
        scope: the images.
        matrix: the pooled confusion matrix, K classes with the background.
        images: the `advcam_attr.metrics.segmentation.marginals` of single images, ``(N, 4, K)``.
    """

    scope: Scope
    matrix: ConfusionMatrix
    images: Tensor

    def scores(self) -> Scores:
        """Return the means over all classes that occur, the background included."""
        return measures.scores(self.matrix.marginals())

    def by_size(self, count: int = 10) -> dict[str, Scores]:
        """Return the scores of the `SIZE_GROUPS`, ``count`` classes each (Table XIII); NaN in an empty group."""
        counts, (small, large) = self.matrix.marginals(), self._groups(count)
        return {
            "all": measures.scores(counts),
            "small": measures.scores(counts, small),
            "large": measures.scores(counts, large),
        }

    def describe(self) -> dict[str, Any]:
        """Return all measures for JSON: shares of 1, null where there is none."""
        counts = self.matrix.marginals()
        columns = {
            "iou": measures.iou(counts),
            "precision": measures.precision(counts),
            "recall": measures.recall(counts),
            "f1": measures.f1(counts),
            "noise": measures.noise(counts),
            "object_size": object_sizes(self.images[:, measures.TRUTH]),
            "images": (self.images[:, measures.TRUTH] > 0).sum(0),
        }
        names = ("background", *self.scope.classes)
        rows = zip(names, *(column.tolist() for column in columns.values()), strict=True)
        groups = zip(self.by_size().items(), (range(len(names)), *self._groups(10)), strict=True)
        content = {
            **self.scope.describe(),
            "scores": dataclasses.asdict(self.scores()),
            "per_class": [dict(zip(("name", *columns), row, strict=True)) for row in rows],
            "by_object_size": {
                size: {"classes": [names[label] for label in labels]} | dataclasses.asdict(scores)
                for (size, scores), labels in groups
            },
        }
        described: dict[str, Any] = to_json(content)
        return described

    def _groups(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return smallest_and_largest(object_sizes(self.images[:, measures.TRUTH]), count)


@dataclass(frozen=True)
class SeedEvaluation:
    """Localization maps of a data set, counted against its masks at every background threshold.

    Attributes:
        scope: the images.
        sweep: the pooled counts.
        images: the counts of single images.
    """

    scope: Scope
    sweep: ThresholdSweep
    images: ImageCounts

    def at(self, threshold: float | None = None) -> MaskEvaluation:
        """Return the evaluation of the masks at a threshold.

        By default it is the best one *on these very masks*, as in the paper, which makes the score an upper bound.
        """
        chosen = self.sweep.best_threshold() if threshold is None else threshold
        return MaskEvaluation(self.scope, self.sweep.matrix(chosen), self.images.marginals(self.sweep.place(chosen)))

    def describe(self, threshold: float | None = None) -> dict[str, Any]:
        """Return the curve over thresholds and all measures at one of them, for JSON."""
        chosen = self.sweep.best_threshold() if threshold is None else threshold
        return {
            **self.scope.describe(),
            "threshold": chosen,
            "threshold_chosen": "given" if threshold is not None else "the best on these masks",
            "curve": {
                "thresholds": list(self.sweep.thresholds),
                "mean_iou": to_json(self.sweep.mean_iou().tolist()),
            },
            **self.at(chosen).describe(),
        }

    def state(self) -> dict[str, Tensor]:
        """Return all counts, for `from_state`; the scope is stored beside them."""
        return {
            **{f"sweep.{name}": tensor.cpu() for name, tensor in self.sweep.state().items()},
            **{f"images.{name}": tensor for name, tensor in self.images.state().items()},
        }

    @classmethod
    def from_state(cls, scope: Scope, state: Mapping[str, Tensor]) -> SeedEvaluation:
        sweep, images = (
            {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
            for part in ("sweep.", "images.")
        )
        return cls(scope, ThresholdSweep.from_state(sweep), ImageCounts.from_state(images))


def merge_seeds(parts: Sequence[SeedEvaluation]) -> SeedEvaluation:
    """Return the evaluation of all images from those of shards."""
    if not parts:
        raise AdvCAMError("there is no evaluation to merge")
    first = parts[0].scope
    if any((part.scope.data, part.scope.classes) != (first.data, first.classes) for part in parts):
        raise AdvCAMError(f"cannot merge evaluations of {' and '.join(sorted({part.scope.data for part in parts}))}")
    ids = tuple(id for part in parts for id in part.scope.ids)
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise AdvCAMError(f"{len(twice)} images were counted by several shards, e.g. {twice[0]}")
    whole = SeedEvaluation.from_state(first, parts[0].state())
    for part in parts[1:]:
        whole.sweep.merge(part.sweep)
        whole.images.merge(part.images)
    missing = {id: reason for part in parts for id, reason in part.scope.missing.items()}
    unmasked = {id: reason for part in parts for id, reason in part.scope.unmasked.items()}
    return dataclasses.replace(whole, scope=Scope(first.data, first.classes, ids, missing, unmasked))


def compare(a: MaskEvaluation, b: MaskEvaluation, **options: Any) -> Interval:
    """Return how much higher the mean IoU of a is than that of b, with its bootstrap interval over images.

    The images are the same in any order; options are those of `advcam_attr.metrics.bootstrap.paired_bootstrap`. Seeds
    at a threshold (`SeedEvaluation.at`) hold it fixed in every draw.
    """
    order = paired_order(a.scope.ids, b.scope.ids)
    return paired_bootstrap(a.images, b.images[order], measures.mean_iou, **options)


def compare_best(a: SeedEvaluation, b: SeedEvaluation, **options: Any) -> Interval:
    """Like `compare`, for the best mean IoUs: each draw chooses its best thresholds of a and of b.

    It takes 32 bytes per image, threshold and class: 20 MB for VOC's 1464 images; for COCO, compare at fixed
    thresholds.
    """
    order = paired_order(a.scope.ids, b.scope.ids)
    return paired_bootstrap(_all_thresholds(a), _all_thresholds(b)[order], _best_mean_iou, **options)


def _all_thresholds(seeds: SeedEvaluation) -> Tensor:
    return torch.stack([seeds.images.marginals(place) for place in range(len(seeds.sweep.thresholds))], 1)


def _best_mean_iou(counts: Tensor) -> Tensor:
    return measures.mean_iou(counts).nan_to_num(0).amax(-1)
