"""Predicted and true label maps in; a confusion matrix, and the measures read from it, out.

The matrix is the whole state: matrices of single images, of shards or of hosts add up to the same one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advcam_attr.metrics import measures
from advcam_attr.types import AdvCAMError

#: The label of pixels that count for nothing (PASCAL VOC's void).
IGNORE = 255


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


def confusion(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = IGNORE) -> Tensor:
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


def void_as_background(prediction: Tensor, void: int = IGNORE) -> Tensor:
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

    Pixels are pooled over images before anything is divided, as PASCAL VOC does; `advcam_attr.metrics.measures` says
    what becomes of classes that do not occur.

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

    def __init__(self, num_classes: int, ignore: int = IGNORE, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self._cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    @classmethod
    def from_counts(cls, counts: Tensor) -> ConfusionMatrix:
        """The matrix that has counted ``(K, K)`` integers, rows for the truth."""
        return cls.from_state({"cells": torch.cat([counts.flatten(), counts.new_zeros(1)])})

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], ignore: int = IGNORE) -> ConfusionMatrix:
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
        """What the measures are read from, ``(4, K)``; see `advcam_attr.metrics.measures.marginals`."""
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
