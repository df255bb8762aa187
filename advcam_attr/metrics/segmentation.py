"""Predicted and true label maps in; a confusion matrix, and the measures read from it, out.

The matrix is the whole state: matrices of single images, of shards or of hosts add up to the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advcam_attr.metrics import segmentation as measures
from advcam_attr.types import VOID, AdvCAMError


def tally(index: Tensor, size: int) -> Tensor:
    """How often each of 0 ... ``size - 1`` occurs, ``(size,)`` int64, without waiting for a device.

    Args:
        index: integers in that range, any shape.
        size: how many cells there are.

    Example:
        >>> tally(torch.tensor([2, 0, 2]), 4)
        tensor([1, 0, 2, 0])
    """
    if index.device.type == "cpu":
        return torch.bincount(index.flatten(), minlength=size)
    return tally_by_scatter(index, size)


def tally_by_scatter(index: Tensor, size: int) -> Tensor:
    """`tally` for devices: ``bincount`` would wait for the index, to learn the size of its result."""
    flat = index.flatten().long()
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, flat, torch.ones_like(flat))


def confusion(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = VOID) -> Tensor:
    """Count how often each true class was predicted as each class.

    Args:
        prediction: integer labels, any shape, each in ``[0, num_classes)`` wherever the truth counts.
        truth: integer labels of the same shape; pixels of the label ``ignore`` are left out.
        num_classes: K, the background included.
        ignore: the label that counts for nothing.

    Returns:
        ``(K, K)`` int64 counts, rows for the truth and columns for the prediction.

    Raises:
        AdvCAMError: the shapes differ, or a label lies outside the classes.

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), num_classes=2)
        tensor([[1, 1],
                [0, 1]])
    """
    cells = _cells(prediction, truth, num_classes, ignore)
    if int(cells[-1]):
        raise _outside(prediction, truth, num_classes, ignore)
    return cells[:-1].reshape(num_classes, num_classes)


def void_as_background(prediction: Tensor, void: int = VOID) -> Tensor:
    """Predicted label maps in which what was left undecided is background.

    Pseudo masks mark pixels as void that training shall ignore; a semantic evaluation counts them as background.

    Args:
        prediction: integer labels, any shape.
        void: the label of undecided pixels.

    Returns:
        The labels, of the same shape and type.

    Example:
        >>> void_as_background(torch.tensor([0, 3, 255]))
        tensor([0, 3, 0])
    """
    return prediction.masked_fill(prediction == void, 0)


class ConfusionMatrix:
    """Label maps in, one at a time; intersection over union, precision and recall of all of them out.

    Pixels are pooled over images before anything is divided, as PASCAL VOC does; `advcam_attr.metrics.segmentation`
    says what becomes of classes that do not occur.

    On the CPU a label outside the classes is refused as it comes. On a GPU that would mean waiting for the device at
    every image, so there it is refused when the counts are read.

    Args:
        num_classes: K, the background included.
        ignore: the true label that counts for nothing.
        device: where the counts are kept.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> matrix.iou()
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> matrix.mean_iou()
        0.5
    """

    def __init__(self, num_classes: int, ignore: int = VOID, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self._cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    @classmethod
    def from_counts(cls, counts: Tensor) -> ConfusionMatrix:
        """The matrix that has counted ``(K, K)`` integers, rows for the truth."""
        return cls.from_state({"cells": torch.cat([counts.flatten(), counts.new_zeros(1)])})

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], ignore: int = VOID) -> ConfusionMatrix:
        """The matrix whose `state` this was."""
        cells = state["cells"]
        matrix = cls(round((len(cells) - 1) ** 0.5), ignore, cells.device)
        matrix._cells += cells
        return matrix

    def state(self) -> dict[str, Tensor]:
        """All that it knows: ``cells``, ``(K² + 1,)`` int64, the matrix by rows and the pixels outside the classes."""
        return {"cells": self._cells.clone()}

    @property
    def counts(self) -> Tensor:
        """``(K, K)`` int64, rows for the truth and columns for the prediction.

        Raises:
            AdvCAMError: labels outside the classes were counted on a GPU.
        """
        if outside := int(self._cells[-1]):
            raise AdvCAMError(f"{outside} pixels have labels outside the {self.num_classes} classes")
        return self._cells[:-1].reshape(self.num_classes, self.num_classes)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add label maps of equal shape; see `confusion`."""
        cells = _cells(prediction, truth, self.num_classes, self.ignore)
        if cells.device.type == "cpu" and cells[-1]:
            raise _outside(prediction, truth, self.num_classes, self.ignore)
        self._cells += cells.to(self._cells.device)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another matrix, of the same classes, has counted."""
        if other.num_classes != self.num_classes:
            raise AdvCAMError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self._cells += other._cells.to(self._cells.device)

    def marginals(self) -> Tensor:
        """What the measures are read from, ``(4, K)``; see `advcam_attr.metrics.segmentation.marginals`."""
        return measures.marginals(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union of each class, ``(K,)`` float64."""
        return measures.iou(self.marginals())

    def precision(self) -> Tensor:
        """The share of each class's predicted pixels that are right, ``(K,)`` float64."""
        return measures.precision(self.marginals())

    def recall(self) -> Tensor:
        """The share of each class's true pixels that are found, ``(K,)`` float64."""
        return measures.recall(self.marginals())

    def mean_iou(self) -> float:
        """The mean of `iou` over the classes that occur, the background included."""
        return float(measures.mean_iou(self.marginals()))


def _cells(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int) -> Tensor:
    """The confusion matrix by rows, then the pixels that have a label outside the classes: ``(K² + 1,)``."""
    if prediction.shape != truth.shape:
        raise AdvCAMError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
    predicted, true = prediction.long(), truth.long()
    inside = (predicted >= 0) & (predicted < num_classes) & (true >= 0) & (true < num_classes)
    cells = torch.where(inside, true * num_classes + predicted, num_classes**2)
    cells = torch.where(true == ignore, num_classes**2 + 1, cells)
    return tally(cells, num_classes**2 + 2)[:-1]


def _outside(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int) -> AdvCAMError:
    valid = truth != ignore
    ranges = {name: labels[valid].aminmax() for name, labels in (("prediction", prediction), ("truth", truth))}
    name = next(name for name, (low, high) in ranges.items() if low < 0 or high >= num_classes)
    low, high = map(int, ranges[name])
    return AdvCAMError(f"{name} holds labels {low} to {high}, but there are {num_classes} classes")


#: The rows of `marginals`.
HITS, TRUTH, PREDICTED, ON_BACKGROUND = range(4)


@dataclass(frozen=True)
class Scores:
    """Means over classes, as shares of 1; NaN where there is nothing to average.

    Attributes:
        mean_iou: mean intersection over union.
        precision: mean precision.
        recall: mean recall.
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


def marginals(counts: Tensor) -> Tensor:
    """What all measures are read from.

    Args:
        counts: confusion matrices ``(..., K, K)``, rows for the truth, class 0 the background.

    Returns:
        ``(..., 4, K)`` for each class: pixels found (`HITS`), true pixels (`TRUTH`), predicted pixels (`PREDICTED`),
        and predicted pixels that are truly background (`ON_BACKGROUND`; 0 for the background itself).

    Example:
        >>> marginals(torch.tensor([[5, 2], [1, 3]])).tolist()
        [[5, 3], [7, 4], [6, 5], [0, 2]]
    """
    on_background = counts[..., 0, :].clone()
    on_background[..., 0] = 0
    return torch.stack(
        [counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2), on_background],
        dim=-2,
    )


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, ``(..., K)`` float64, from `marginals` ``(..., 4, K)``."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return hits / (truth + predicted - hits)


def precision(counts: Tensor) -> Tensor:
    """The share of each class's predicted pixels that are right, ``(..., K)`` float64."""
    return _share(counts, PREDICTED)


def recall(counts: Tensor) -> Tensor:
    """The share of each class's true pixels that are found, ``(..., K)`` float64."""
    return _share(counts, TRUTH)


def f1(counts: Tensor) -> Tensor:
    """The harmonic mean of each class's precision and recall, ``(..., K)`` float64."""
    hits, truth, predicted, _ = counts.double().unbind(-2)
    return 2 * hits / (truth + predicted)


def mean_iou(counts: Tensor) -> Tensor:
    """The mean of `iou` over the classes that occur, ``(...)`` float64.

    Example:
        >>> mean_iou(marginals(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])))
        tensor(0.5000, dtype=torch.float64)
    """
    return iou(counts).nanmean(-1)


def mean_precision(counts: Tensor) -> Tensor:
    """The mean of `precision` over the classes that occur, ``(...)`` float64."""
    return precision(counts).nanmean(-1)


def mean_recall(counts: Tensor) -> Tensor:
    """The mean of `recall` over the classes that occur, ``(...)`` float64."""
    return recall(counts).nanmean(-1)


def mean_f1(counts: Tensor) -> Tensor:
    """The mean of the classes' F1, ``(...)`` float64: the F1 of the paper's Table XIII (COCO)."""
    return f1(counts).nanmean(-1)


def f1_of_means(counts: Tensor) -> Tensor:
    """The harmonic mean of mean precision and mean recall, ``(...)`` float64: the F1 of the paper's Table XI (VOC).

    Example:
        >>> counts = marginals(torch.tensor([[2, 2], [0, 4]]))
        >>> round(float(f1_of_means(counts)), 4), round(float(mean_f1(counts)), 4)
        (0.7895, 0.7333)
    """
    p, r = mean_precision(counts), mean_recall(counts)
    return torch.where(p + r == 0, 0.0, 2 * p * r / (p + r))


def noise(counts: Tensor) -> Tensor:
    """The share of each foreground class's predicted pixels that are truly background, ``(..., K)`` float64.

    NaN for the background, and for classes that are nowhere predicted.
    """
    shares = counts[..., ON_BACKGROUND, :].double() / counts[..., PREDICTED, :].double()
    shares[..., 0] = float("nan")
    return shares


def pooled_noise(counts: Tensor) -> Tensor:
    """The share of all pixels predicted as foreground that are truly background, ``(...)`` float64 (Fig. 11b)."""
    return _pooled_noise(counts[..., 1:])


def scores(counts: Tensor, classes: Sequence[int] | None = None) -> Scores:
    """All means of one cut.

    Args:
        counts: `marginals` ``(4, K)``.
        classes: the labels to average over, the background's 0 among them if it should count; all by default.

    Returns:
        The means; the noise is pooled over the foreground classes among ``classes``.

    Example:
        >>> scores(marginals(torch.tensor([[6, 2], [0, 4]])), classes=[1]).precision
        0.6666666666666666
    """
    labels = list(range(counts.shape[-1])) if classes is None else list(classes)
    chosen = counts[:, labels]
    foreground = counts[:, [label for label in labels if label != 0]]
    return Scores(
        mean_iou=float(mean_iou(chosen)),
        precision=float(mean_precision(chosen)),
        recall=float(mean_recall(chosen)),
        f1_of_means=float(f1_of_means(chosen)),
        mean_f1=float(mean_f1(chosen)),
        noise=float(_pooled_noise(foreground)),
    )


def _share(counts: Tensor, of: int) -> Tensor:
    counts = counts.double()
    occurs = counts[..., TRUTH, :] + counts[..., PREDICTED, :] > 0
    shares = counts[..., HITS, :] / counts[..., of, :].clamp(min=1)
    return torch.where(occurs, shares, float("nan"))


def _pooled_noise(foreground: Tensor) -> Tensor:
    totals = foreground.double().sum(-1)
    return totals[..., ON_BACKGROUND] / totals[..., PREDICTED]


def object_sizes(truth: Tensor) -> Tensor:
    """The mean number of pixels that a class has in the images in which it occurs.

    The paper orders COCO's classes by the mean size of their true objects (Fig. 14, Table XIII); how it is measured is
    not known. Label maps do not tell objects of one class apart, so here it is the class's pixels per image, which can
    be had from any label map. Void pixels count for nothing. Whole pixels are counted (not shares of the image), so
    images should be of about one size, as those of VOC and COCO are.

    Args:
        truth: ``(N, K)`` pixels of each class in each image.

    Returns:
        ``(K,)`` float64; NaN for a class that occurs in no image.

    Example:
        >>> object_sizes(torch.tensor([[90, 10, 0], [60, 40, 0], [100, 0, 0]]))
        tensor([83.3333, 25.0000,     nan], dtype=torch.float64)
    """
    return truth.sum(0, dtype=torch.float64) / (truth > 0).sum(0)


def smallest_and_largest(sizes: Tensor, count: int = 10) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The foreground labels of the smallest and of the largest objects (Table XIII: ten of each).

    Args:
        sizes: `object_sizes` ``(K,)``, the background's first.
        count: how many of each; half of the classes that occur where those are fewer than twice as many.

    Returns:
        The labels of the smallest, the smallest first, and of the largest, the largest first; of equals, the lower
        label counts as the smaller. No label is in both.

    Example:
        >>> smallest_and_largest(torch.tensor([1000.0, 50, 20, 70, float("nan")]), count=1)
        ((2,), (3,))
    """
    known = [label for label in range(1, len(sizes)) if not torch.isnan(sizes[label])]
    count = min(count, len(known) // 2)
    ascending = sorted(known, key=lambda label: float(sizes[label]))
    return tuple(ascending[:count]), tuple(ascending[::-1][:count])
