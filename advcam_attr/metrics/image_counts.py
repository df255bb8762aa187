"""Histograms of single images in; each image's pixel counts at every threshold, kept small, out.

What measures need of an image is its `marginals`: per class, pixels found, true, predicted, and predicted on the
background. Only the image's own classes are ever predicted, so three counts per threshold are kept of each of them, and
one true count of every class; the background's follow from these. The 82 783 images of COCO at 41 thresholds take about
150 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from advcam_attr.metrics.thresholds import exceeding
from advcam_attr.types import AdvCAMError


class ImageCounts:
    """Counts of N images, in the order in which they were added.

    Args:
        thresholds: T, how many.
        num_classes: K, the background included.

    Example:
        >>> from advcam_attr.metrics.thresholds import ThresholdSweep
        >>> sweep, images = ThresholdSweep([0.5], num_classes=2), ImageCounts(1, num_classes=2)
        >>> histogram = sweep.histogram(torch.tensor([[[0.2, 0.9]]]), [0], torch.tensor([[1, 1]], dtype=torch.uint8))
        >>> images.add(histogram, [0])
        >>> images.marginals(0).tolist()
        [[[0, 1], [0, 2], [1, 1], [0, 0]]]
    """

    def __init__(self, thresholds: int, num_classes: int) -> None:
        self.thresholds = thresholds
        self.num_classes = num_classes
        self._truth = [torch.zeros(0, num_classes, dtype=torch.int32)]
        self._labels = [torch.zeros(0, 2, dtype=torch.int64)]
        self._counts = [torch.zeros(0, 3, thresholds, dtype=torch.int32)]
        self._images = 0

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ImageCounts:
        """The counts whose `state` this was."""
        images = cls(state["counts"].shape[2], state["truth"].shape[1])
        images._truth, images._labels, images._counts = [state["truth"]], [state["labels"]], [state["counts"]]
        images._images = len(state["truth"])
        return images

    def state(self) -> dict[str, Tensor]:
        """All that they know, M classes of images together.

        Returns:
            ``truth`` ``(N, K)`` int32; ``labels`` ``(M, 2)`` int64, an image's place and its class's label; ``counts``
            ``(M, 3, T)`` int32, pixels found, predicted, and predicted on background.
        """
        for rows in (self._truth, self._labels, self._counts):
            rows[:] = [torch.cat([row.cpu() for row in rows])]
        return {"truth": self._truth[0], "labels": self._labels[0], "counts": self._counts[0]}

    def __len__(self) -> int:
        return self._images

    def add(self, histogram: Tensor, classes: Sequence[int]) -> None:
        """Add an image of 0-based classes by its `advcam_attr.metrics.thresholds.seed_histogram`."""
        histogram = histogram[:-1]
        self._truth.append(histogram.sum((1, 2), dtype=torch.int32)[None])
        if classes:
            above = exceeding(histogram)
            own = torch.arange(len(classes), device=above.device)
            labels = torch.tensor([(self._images, k + 1) for k in classes])
            hits = above[labels[:, 1].to(above.device), own]
            self._labels.append(labels)
            self._counts.append(torch.stack([hits, above.sum(0), above[0]], 1).int())
        self._images += 1

    def merge(self, other: ImageCounts) -> None:
        """Add the images that another one has counted, after one's own."""
        if (other.thresholds, other.num_classes) != (self.thresholds, self.num_classes):
            raise AdvCAMError(
                f"cannot merge counts of {self.thresholds} thresholds and {self.num_classes} classes "
                f"with {other.thresholds} and {other.num_classes}"
            )
        state = other.state()
        self._truth.append(state["truth"])
        self._labels.append(state["labels"] + torch.tensor([self._images, 0]))
        self._counts.append(state["counts"])
        self._images += len(other)

    def truth(self) -> Tensor:
        """The true pixels of each class in each image, ``(N, K)`` int32."""
        return self.state()["truth"]

    def marginals(self, place: int) -> Tensor:
        """Each image's counts at one threshold.

        Args:
            place: of the threshold, from 0.

        Returns:
            ``(N, 4, K)`` int64, as `advcam_attr.metrics.measures.marginals` has them.
        """
        state = self.state()
        truth, (image, label) = state["truth"].long(), state["labels"].unbind(1)
        hits, predicted, on_background = state["counts"][:, :, place].long().unbind(1)
        counts = truth.new_zeros(4, self._images, self.num_classes)
        counts[0, image, label], counts[2, image, label], counts[3, image, label] = hits, predicted, on_background
        counts[1] = truth
        counts[0, :, 0] = truth[:, 0] - counts[3].sum(-1)
        counts[2, :, 0] = truth.sum(-1) - counts[2].sum(-1)
        return counts.transpose(0, 1).contiguous()
