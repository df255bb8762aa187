"""Predicted and true label maps in; a confusion matrix, and the measures read from it, out.

The matrix is the whole state: matrices of single images, of shards or of hosts add up to the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

#: The label of pixels that count for nothing (PASCAL VOC's void).
IGNORE = 255


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
    if prediction.shape != truth.shape:
        raise AdvCAMError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
    valid = truth != ignore
    predicted, true = prediction[valid].long(), truth[valid].long()
    for name, labels in (("prediction", predicted), ("truth", true)):
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            raise AdvCAMError(
                f"{name} holds labels {int(labels.min())} to {int(labels.max())}, but there are {num_classes} classes"
            )
    counts = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


class ConfusionMatrix:
    """Label maps in, one at a time; intersection over union, precision and recall of all of them out.

    Pixels are pooled over images before anything is divided, as PASCAL VOC does. A class that occurs in neither
    the truth nor the predictions has no measure (NaN) and is left out of means.

    Args:
        num_classes: K, the background included.
        ignore: the true label that counts for nothing.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> matrix.iou()
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> matrix.mean_iou()
        0.5
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.ignore = ignore

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add label maps of equal shape; see `confusion`."""
        self.counts += confusion(prediction, truth, len(self.counts), self.ignore).to(self.counts.device)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another matrix, of the same classes, has counted."""
        if other.counts.shape != self.counts.shape:
            raise AdvCAMError(f"cannot merge matrices of {len(self.counts)} and {len(other.counts)} classes")
        self.counts += other.counts.to(self.counts.device)

    def iou(self) -> Tensor:
        """Intersection over union of each class, ``(K,)`` float64."""
        hit, truth, predicted = self._marginals()
        return hit / (truth + predicted - hit)

    def precision(self) -> Tensor:
        """The share of each class's predicted pixels that are right, ``(K,)`` float64."""
        hit, _, predicted = self._marginals()
        return hit / predicted

    def recall(self) -> Tensor:
        """The share of each class's true pixels that are found, ``(K,)`` float64."""
        hit, truth, _ = self._marginals()
        return hit / truth

    def mean_iou(self) -> float:
        """The mean of `iou` over the classes that occur, the background included."""
        return float(self.iou().nanmean())

    def _marginals(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.double()
        return counts.diagonal(), counts.sum(1), counts.sum(0)
