"""What was counted of seeds or masks of a data set in; scores by class and object size, and comparisons, out.

Seeds are maps that are yet to be cut: `SeedEvaluation` holds the counts of all background thresholds. Cut at one of
them, they are masks: `MaskEvaluation` holds the counts of ready label maps.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advcam_attr.metrics import segmentation as measures
from advcam_attr.metrics.bootstrap import Interval, paired_bootstrap
from advcam_attr.metrics.seeds import ImageCounts, ThresholdSweep
from advcam_attr.metrics.segmentation import ConfusionMatrix, Scores, object_sizes, smallest_and_largest
from advcam_attr.types import AdvCAMError

#: The groups of classes of Table XIII.
SIZES = ("all", "small", "large")


@dataclass(frozen=True)
class Scope:
    """Which images were scored.

    Attributes:
        data: the data set's name and split, e.g. ``"voc train"``.
        classes: the names of the foreground classes; class k is label k + 1.
        ids: the images that were counted, in the order of the counts.
        missing: those that have a mask and were not counted because what was to be scored is missing or damaged, with
            the reason.
        unmasked: those that have no mask, with the reason.
    """

    data: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unmasked: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
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
        scope: which images.
        matrix: the pooled confusion matrix, K classes with the background.
        images: the counts of single images, ``(N, 4, K)``, see `advcam_attr.metrics.segmentation.marginals`.
    """

    scope: Scope
    matrix: ConfusionMatrix
    images: Tensor

    def scores(self) -> Scores:
        """Means over all classes that occur, the background included."""
        return measures.scores(self.matrix.marginals())

    def by_size(self, count: int = 10) -> dict[str, Scores]:
        """Means over all classes and over those of the smallest and the largest objects (Table XIII).

        Args:
            count: how many classes are small, and how many large; see `smallest_and_largest`.

        Returns:
            Scores of the groups `SIZES`; NaN in a group without classes.
        """
        counts, small, large = self.matrix.marginals(), *self._groups(count)
        return {
            "all": measures.scores(counts),
            "small": measures.scores(counts, small),
            "large": measures.scores(counts, large),
        }

    def describe(self) -> dict[str, Any]:
        """All measures as JSON has them: shares of 1, null where there is none."""
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
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        small, large = self._groups(10)
        return {
            **self.scope.describe(),
            "scores": _plain(dataclasses.asdict(self.scores())),
            "per_class": [
                {"name": name} | _plain(dict(zip(columns, row, strict=True)))
                for name, row in zip(names, rows, strict=True)
            ],
            "by_object_size": {
                size: {"classes": [names[label] for label in labels]} | _plain(dataclasses.asdict(scores))
                for (size, scores), labels in zip(
                    self.by_size().items(), (range(len(names)), small, large), strict=True
                )
            },
        }

    def _groups(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return smallest_and_largest(object_sizes(self.images[:, measures.TRUTH]), count)


@dataclass(frozen=True)
class SeedEvaluation:
    """Localization maps of a data set, counted against its masks at every background threshold.

    Attributes:
        scope: which images.
        sweep: the pooled counts.
        images: the counts of single images.
    """

    scope: Scope
    sweep: ThresholdSweep
    images: ImageCounts

    def at(self, threshold: float | None = None) -> MaskEvaluation:
        """The masks that a threshold cuts.

        Args:
            threshold: one of the sweep's; by default the best one *on these very masks*, as in the paper, which makes
                the score an upper bound. A threshold that was chosen on other images does not.
        """
        chosen = self.sweep.best_threshold() if threshold is None else threshold
        return MaskEvaluation(self.scope, self.sweep.matrix(chosen), self.images.marginals(self.sweep.place(chosen)))

    def describe(self, threshold: float | None = None) -> dict[str, Any]:
        """The curve over thresholds and all measures at one of them, as JSON has them."""
        chosen = self.sweep.best_threshold() if threshold is None else threshold
        curve = [None if math.isnan(value) else value for value in self.sweep.mean_iou().tolist()]
        return {
            **self.scope.describe(),
            "threshold": chosen,
            "threshold_chosen": "given" if threshold is not None else "the best on these masks",
            "curve": {"thresholds": list(self.sweep.thresholds), "mean_iou": curve},
            **self.at(chosen).describe(),
        }

    def state(self) -> dict[str, Tensor]:
        """All counts, for `from_state`; the scope is kept beside them."""
        return {
            **{f"sweep.{name}": tensor.cpu() for name, tensor in self.sweep.state().items()},
            **{f"images.{name}": tensor for name, tensor in self.images.state().items()},
        }

    @classmethod
    def from_state(cls, scope: Scope, state: Mapping[str, Tensor]) -> SeedEvaluation:
        """The evaluation whose scope and `state` these were."""
        sweep, images = (
            {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
            for part in ("sweep.", "images.")
        )
        return cls(scope, ThresholdSweep.from_state(sweep), ImageCounts.from_state(images))


def merge_seeds(parts: Sequence[SeedEvaluation]) -> SeedEvaluation:
    """The evaluation of all images from those of shards; nothing is changed.

    Raises:
        AdvCAMError: there is none, they are of different data, classes or thresholds, or share an image.
    """
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
    """How much higher the mean IoU of a is than that of b, with its bootstrap interval over images.

    Args:
        a: masks, or seeds cut at a threshold, `SeedEvaluation.at`: the threshold stays what it is in every draw.
        b: others, of the same images in any order.
        **options: ``samples``, ``level`` and ``seed`` of `advcam_attr.metrics.bootstrap.paired_bootstrap`.

    Returns:
        The difference a − b as a share of 1.

    Raises:
        AdvCAMError: they are not of the same images.
    """
    order = _order(a.scope, b.scope)
    return paired_bootstrap(a.images, b.images[order], measures.mean_iou, **options)


def compare_best(a: SeedEvaluation, b: SeedEvaluation, **options: Any) -> Interval:
    """`compare` of the best mean IoUs, the best threshold being chosen anew in every draw, for a and b apart.

    So the interval holds what the choice of the threshold adds to chance. It takes 32 bytes per image, threshold and
    class: VOC's 1464 images take 20 MB; for COCO, compare at fixed thresholds.

    Args:
        a: seeds.
        b: others, of the same images in any order.
        **options: see `compare`.
    """
    order = _order(a.scope, b.scope)
    return paired_bootstrap(_all_thresholds(a), _all_thresholds(b)[order], _best_mean_iou, **options)


def _all_thresholds(seeds: SeedEvaluation) -> Tensor:
    """``(N, T, 4, K)``."""
    return torch.stack([seeds.images.marginals(place) for place in range(len(seeds.sweep.thresholds))], 1)


def _best_mean_iou(counts: Tensor) -> Tensor:
    return measures.mean_iou(counts).nan_to_num(0).amax(-1)


def _order(a: Scope, b: Scope) -> list[int]:
    """Where the images of a are in b."""
    places = {id: place for place, id in enumerate(b.ids)}
    if differing := set(a.ids) ^ set(b.ids):
        raise AdvCAMError(
            f"only evaluations of the same images can be compared: {len(differing)} are in one alone, "
            f"e.g. {min(differing)}"
        )
    return [places[id] for id in a.ids]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
