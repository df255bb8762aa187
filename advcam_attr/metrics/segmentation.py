"""Segmentation measures (IoU, precision, recall, F1, noise) read from pooled confusion matrices.

Pixels are pooled over images before anything is divided, as PASCAL VOC does, so matrices of images, shards or hosts
add up. A class that occurs in neither the truth nor the prediction has no measure (NaN) and is left out of means; a
class that occurs on one side only has 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.types import VOID, AdvCAMError

#: The rows of `marginals`.
HITS, TRUTH, PREDICTED, ON_BACKGROUND = range(4)


@dataclass(frozen=True)
class Scores:
    """Means over classes, as shares of 1; NaN where there is nothing to average.

    Attributes:
        f1_of_means: the harmonic mean of mean precision and mean recall, as in Table XI (VOC).
        mean_f1: the mean of the classes' F1, as in Table XIII (COCO).
        noise: the share of the pixels predicted as foreground that are truly background, as in Fig. 11b.
    """

    mean_iou: float
    precision: float
    recall: float
    f1_of_means: float
    mean_f1: float
    noise: float


class ConfusionMatrix:
    """Accumulate label maps of K classes into a confusion matrix, void pixels of the truth ignored.

    Labels outside the classes raise at once on the CPU; on a GPU, where the check would wait for the device at every
    image, when the counts are read.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> matrix.iou(), matrix.mean_iou()
        (tensor([0.5000, 0.5000], dtype=torch.float64), 0.5)
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self._cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    @classmethod
    def from_counts(cls, counts: Tensor) -> ConfusionMatrix:
        """Return the matrix of ``(K, K)`` counts, rows for the truth."""
        return cls.from_state({"cells": torch.cat([counts.flatten(), counts.new_zeros(1)])})

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ConfusionMatrix:
        cells = state["cells"]
        matrix = cls(round((len(cells) - 1) ** 0.5), cells.device)
        matrix._cells += cells
        return matrix

    def state(self) -> dict[str, Tensor]:
        """Return ``cells``, ``(K² + 1,)`` int64: the matrix by rows, then the pixels outside the classes."""
        return {"cells": self._cells.clone()}

    @property
    def counts(self) -> Tensor:
        """``(K, K)`` int64, rows for the truth and columns for the prediction."""
        if outside := int(self._cells[-1]):
            raise AdvCAMError(f"{outside} pixels have labels outside the {self.num_classes} classes")
        return self._cells[:-1].reshape(self.num_classes, self.num_classes)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add integer label maps of one shape."""
        if prediction.shape != truth.shape:
            raise AdvCAMError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
        classes = self.num_classes
        predicted, true = prediction.long(), truth.long()
        inside = (predicted >= 0) & (predicted < classes) & (true >= 0) & (true < classes)
        cells = torch.where(inside, true * classes + predicted, classes**2)
        cells = torch.where(true == VOID, classes**2 + 1, cells)
        found = tally(cells, classes**2 + 2)[:-1]
        if found.device.type == "cpu" and found[-1]:
            raise _outside(prediction, truth, classes)
        self._cells += found.to(self._cells.device)

    def merge(self, other: ConfusionMatrix) -> None:
        if other.num_classes != self.num_classes:
            raise AdvCAMError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self._cells += other._cells.to(self._cells.device)

    def marginals(self) -> Tensor:
        return marginals(self.counts)

    def iou(self) -> Tensor:
        return iou(self.marginals())

    def precision(self) -> Tensor:
        return precision(self.marginals())

    def recall(self) -> Tensor:
        return recall(self.marginals())

    def mean_iou(self) -> float:
        return float(mean_iou(self.marginals()))


def _outside(prediction: Tensor, truth: Tensor, num_classes: int) -> AdvCAMError:
    valid = truth != VOID
    ranges = {name: labels[valid].aminmax() for name, labels in (("prediction", prediction), ("truth", truth))}
    name = next(name for name, (low, high) in ranges.items() if low < 0 or high >= num_classes)
    low, high = map(int, ranges[name])
    return AdvCAMError(f"{name} holds labels {low} to {high}, but there are {num_classes} classes")


def tally(index: Tensor, size: int) -> Tensor:
    """Count how often each of 0 ... ``size - 1`` occurs, ``(size,)`` int64, without waiting for a device."""
    if index.device.type == "cpu":
        return torch.bincount(index.flatten(), minlength=size)
    return tally_by_scatter(index, size)


def tally_by_scatter(index: Tensor, size: int) -> Tensor:
    """Like `tally`, for devices: ``bincount`` would wait for the index to learn the size of its result."""
    flat = index.flatten().long()
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, flat, torch.ones_like(flat))


def void_as_background(prediction: Tensor) -> Tensor:
    """Return label maps with void as background: training ignores it in pseudo masks, evaluation does not."""
    return prediction.masked_fill(prediction == VOID, 0)


def marginals(counts: Tensor) -> Tensor:
    """Return the counts that all measures are read from, ``(..., 4, K)`` of confusion matrices ``(..., K, K)``.

    They are each class's correct pixels (`HITS`), true pixels (`TRUTH`), predicted pixels (`PREDICTED`), and predicted
    pixels that are truly background (`ON_BACKGROUND`; 0 for the background itself). Rows are for the truth.
    """
    on_background = counts[..., 0, :].clone()
    on_background[..., 0] = 0
    return torch.stack([counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2), on_background], dim=-2)


def iou(counts: Tensor) -> Tensor:
    """Return the intersection over union of each class, ``(..., K)`` float64, from `marginals`."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return hits / (truth + predicted - hits)


def precision(counts: Tensor) -> Tensor:
    """Return the share of each class's predicted pixels that are correct, ``(..., K)`` float64."""
    return _share(counts, PREDICTED)


def recall(counts: Tensor) -> Tensor:
    """Return the share of each class's true pixels that are found, ``(..., K)`` float64."""
    return _share(counts, TRUTH)


def f1(counts: Tensor) -> Tensor:
    """Return the harmonic mean of each class's precision and recall, ``(..., K)`` float64."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return 2 * hits / (truth + predicted)


def noise(counts: Tensor) -> Tensor:
    """Return the share of each foreground class's predicted pixels that are truly background, ``(..., K)``, or NaN."""
    shares = counts[..., ON_BACKGROUND, :].double() / counts[..., PREDICTED, :].double()
    shares[..., 0] = float("nan")
    return shares


def mean_iou(counts: Tensor) -> Tensor:
    """Return the mean of `iou` over the classes that occur, ``(...)`` float64."""
    return iou(counts).nanmean(-1)


def scores(counts: Tensor, classes: Sequence[int] | None = None) -> Scores:
    """Return all means of `marginals` ``(4, K)`` over the given labels, 0 for the background among them, or over all.

    The noise is pooled over the foreground classes among them.
    """
    labels = list(range(counts.shape[-1])) if classes is None else list(classes)
    chosen = counts[:, labels]
    foreground = counts[:, [label for label in labels if label != 0]].double().sum(-1)
    p, r = precision(chosen).nanmean(), recall(chosen).nanmean()
    return Scores(
        mean_iou=float(mean_iou(chosen)),
        precision=float(p),
        recall=float(r),
        f1_of_means=float(torch.where(p + r == 0, 0.0, 2 * p * r / (p + r))),
        mean_f1=float(f1(chosen).nanmean()),
        noise=float(foreground[ON_BACKGROUND] / foreground[PREDICTED]),
    )


def _share(counts: Tensor, of: int) -> Tensor:
    counts = counts.double()
    occurs = counts[..., TRUTH, :] + counts[..., PREDICTED, :] > 0
    shares = counts[..., HITS, :] / counts[..., of, :].clamp(min=1)
    return torch.where(occurs, shares, float("nan"))


def object_sizes(truth: Tensor) -> Tensor:
    """Return the mean number of pixels of a class in the images in which it occurs, ``(K,)`` from pixels ``(N, K)``.

    The paper orders COCO's classes by the mean size of their objects (Fig. 14, Table XIII) without a definition. Label
    maps do not separate objects, so here it is the class's pixels per image, of images of about one size.
    """
    return truth.sum(0, dtype=torch.float64) / (truth > 0).sum(0)


def smallest_and_largest(sizes: Tensor, count: int = 10) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the foreground labels with the smallest and with the largest objects (Table XIII: ten of each).

    At most half of the classes that occur are in each group, the extremes first; of equals, the lower label is smaller.
    """
    occurring = [label for label in range(1, len(sizes)) if not torch.isnan(sizes[label])]
    count = min(count, len(occurring) // 2)
    ascending = sorted(occurring, key=lambda label: float(sizes[label]))
    return tuple(ascending[:count]), tuple(ascending[::-1][:count])
