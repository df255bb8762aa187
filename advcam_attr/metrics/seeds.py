"""Confusion matrices of seeds at all background thresholds in one pass over the images.

The strongest class of a pixel does not depend on the threshold, so images are counted into a histogram of true label,
strongest class and number of exceeded thresholds; the confusion matrix of every threshold is a cumulative sum of it.

Counts equal those of thresholding one by one, as the released scripts do (a constant map before the maps, ``argmax``):
thresholds and maps are compared as float32, equality is background, and of equal maps the first wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from advcam_attr.metrics.segmentation import ConfusionMatrix, marginals, mean_iou, tally
from advcam_attr.types import VOID, AdvCAMError

#: AdvCAM's released sweep on PASCAL VOC: 0.15 to 0.34.
VOC_THRESHOLDS = tuple(k / 100 for k in range(15, 35))
#: RIB's released sweep on MS COCO: 0.10 to 0.50.
COCO_THRESHOLDS = tuple(k / 100 for k in range(10, 51))
#: SEAM's released sweep: 0.00 to 0.59.
SEAM_THRESHOLDS = tuple(k / 100 for k in range(60))

#: The sweeps of the released scripts, by name.
SEED_THRESHOLDS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"voc": VOC_THRESHOLDS, "coco": COCO_THRESHOLDS, "seam": SEAM_THRESHOLDS}
)


def seed_histogram(
    high_res: Tensor, classes: Sequence[int], truth: Tensor, thresholds: Tensor, num_classes: int
) -> Tensor:
    """Count the pixels of one image by true label, strongest class and number of exceeded thresholds.

    Args:
        high_res: ``(K', H, W)`` float32, the maps of the image's K' classes; K' may be 0.
        classes: their 0-based classes; class k is k + 1 in label maps.
        truth: ``(H, W)`` uint8; void is ignored.
        thresholds: ``(T,)`` float32, ascending, on the maps' device.
        num_classes: K, the background included.

    Returns:
        ``(K + 1, max(K', 1), T + 1)`` int64; the last row holds labels outside the classes.
    """
    _check(high_res, classes, truth, num_classes)
    columns, bins = max(len(classes), 1), len(thresholds) + 1
    cell = truth.int() * (columns * bins)
    if len(classes):
        strength, strongest = high_res.max(0)
        cell += strongest.int() * bins
        cell += torch.bucketize(strength, thresholds, out_int32=True)
    by_label = tally(cell, 256 * columns * bins).reshape(256, columns, bins)
    by_label[VOID] = 0
    return torch.cat([by_label[:num_classes], by_label[num_classes:].sum(0, keepdim=True)])


def _exceeding(histogram: Tensor) -> Tensor:
    """From pixels by number of exceeded thresholds, to pixels that exceed each: ``(..., T + 1)`` to ``(..., T)``."""
    return histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]


class ThresholdSweep:
    """Accumulate maps and true label maps into one confusion matrix per background threshold.

    Args:
        thresholds: T background thresholds, ascending; `SEED_THRESHOLDS` has those of the released scripts.
        num_classes: K, the background included.
        device: where the maps are.

    Example:
        >>> sweep = ThresholdSweep([0.2, 0.5, 0.8], num_classes=2)
        >>> truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
        >>> sweep.update(torch.tensor([[[0.1, 0.4, 0.6, 1.0]]]), [0], truth)
        >>> [round(value, 3) for value in sweep.mean_iou().tolist()]
        [0.583, 1.0, 0.583]
    """

    def __init__(self, thresholds: Sequence[float], num_classes: int, device: torch.device | str = "cpu") -> None:
        boundaries = torch.tensor(list(thresholds), dtype=torch.float32)
        if not len(boundaries) or not boundaries.isfinite().all() or not (boundaries.diff() > 0).all():
            raise AdvCAMError(f"thresholds must be finite and ascend, at least one: got {list(thresholds)}")
        self.thresholds = tuple(float(t) for t in thresholds)
        self.num_classes = num_classes
        self._boundaries = boundaries.to(device)
        # By true label (last row: outside the classes), label of the strongest class, number of exceeded thresholds.
        self._histogram = torch.zeros(
            num_classes + 1, num_classes, len(boundaries) + 1, dtype=torch.int64, device=device
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ThresholdSweep:
        histogram = state["histogram"]
        classes = histogram.shape[1] if histogram.ndim == 3 else 0
        if not classes or tuple(histogram.shape) != (classes + 1, classes, len(state["thresholds"]) + 1):
            raise AdvCAMError(f"counts of shape {tuple(histogram.shape)} are not of thresholds and classes")
        sweep = cls(state["thresholds"].tolist(), histogram.shape[1], histogram.device)
        sweep._histogram += histogram
        return sweep

    def state(self) -> dict[str, Tensor]:
        """Return ``thresholds`` ``(T,)`` float64 and ``histogram`` ``(K + 1, K, T + 1)`` int64."""
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        return {"thresholds": thresholds, "histogram": self._histogram.clone()}

    def update(self, high_res: Tensor, classes: Sequence[int], truth: Tensor) -> None:
        """Add the maps ``(K', H, W)`` of one image and its true label map ``(H, W)``; see `seed_histogram`."""
        self.add(self.histogram(high_res, classes, truth), classes)

    def histogram(self, high_res: Tensor, classes: Sequence[int], truth: Tensor) -> Tensor:
        """Return the `seed_histogram` of one image at the sweep's thresholds, without adding it."""
        found = seed_histogram(high_res, classes, truth, self._boundaries, self.num_classes)
        if found.device.type == "cpu":
            self._check_outside(found)
        return found

    def add(self, histogram: Tensor, classes: Sequence[int]) -> None:
        """Add the `histogram` of an image of these classes."""
        self._histogram[:, [k + 1 for k in classes] or [0]] += histogram

    def merge(self, other: ThresholdSweep) -> None:
        if (other.thresholds, other.num_classes) != (self.thresholds, self.num_classes):
            raise AdvCAMError(f"cannot merge {other!r} into {self!r}")
        self._histogram += other._histogram.to(self._histogram.device)

    def matrices(self) -> Tensor:
        """Return the confusion matrix of each threshold, ``(T, K, K)`` int64, rows for the truth."""
        self._check_outside(self._histogram)
        histogram = self._histogram[:-1]
        counts = _exceeding(histogram).permute(2, 0, 1).contiguous()
        counts[:, :, 0] = histogram.sum((1, 2)) - counts[:, :, 1:].sum(-1)
        return counts

    def matrix(self, threshold: float) -> ConfusionMatrix:
        return ConfusionMatrix.from_counts(self.matrices()[self.place(threshold)])

    def place(self, threshold: float) -> int:
        """Return the index of one of the thresholds, within 1e-6."""
        for place, own in enumerate(self.thresholds):
            if math.isclose(own, threshold, abs_tol=1e-6):
                return place
        low, high = self.thresholds[0], self.thresholds[-1]
        raise AdvCAMError(
            f"threshold {threshold:g} is none of the {len(self.thresholds)} swept from {low:g} to {high:g}"
        )

    def mean_iou(self) -> Tensor:
        """Return the mean IoU at each threshold, ``(T,)`` float64."""
        return mean_iou(marginals(self.matrices()))

    def best_threshold(self) -> float:
        """Return the threshold of the highest mean IoU, the lowest of equals; chosen on the truth: an upper bound."""
        curve = self.mean_iou()
        if curve.isnan().all():
            raise AdvCAMError("no pixel was counted: there is no best threshold")
        return self.thresholds[int(curve.argmax())]

    def __repr__(self) -> str:
        low, high = self.thresholds[0], self.thresholds[-1]
        return f"ThresholdSweep({len(self.thresholds)} thresholds, {low:g} to {high:g}; num_classes={self.num_classes})"

    def _check_outside(self, histogram: Tensor) -> None:
        if outside := int(histogram[-1].sum()):
            raise AdvCAMError(f"truth holds {outside} pixels with labels outside the {self.num_classes} classes")


def _check(high_res: Tensor, classes: Sequence[int], truth: Tensor, num_classes: int) -> None:
    if num_classes > VOID:
        raise AdvCAMError(f"label maps of 8 bits hold at most {VOID} classes, got {num_classes}")
    if high_res.ndim != 3 or len(high_res) != len(classes):
        raise AdvCAMError(f"maps of {len(classes)} classes must be (K, H, W), got {tuple(high_res.shape)}")
    if high_res.dtype != torch.float32 or truth.dtype != torch.uint8:
        raise AdvCAMError(f"maps must be float32 and the truth uint8, got {high_res.dtype} and {truth.dtype}")
    if high_res.shape[1:] != truth.shape:
        raise AdvCAMError(f"maps of {_size(high_res)} pixels and a truth of {_size(truth)} differ in size")
    if len(set(classes)) != len(classes) or not all(0 <= k < num_classes - 1 for k in classes):
        raise AdvCAMError(f"classes {list(classes)} must be distinct, in 0 to {num_classes - 2}")


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"


class ImageCounts:
    """Counts of single images at T thresholds and of K classes, in the order in which they were added."""

    def __init__(self, thresholds: int, num_classes: int) -> None:
        self.thresholds = thresholds
        self.num_classes = num_classes
        self._truth = [torch.zeros(0, num_classes, dtype=torch.int32)]
        self._labels = [torch.zeros(0, 2, dtype=torch.int64)]
        self._counts = [torch.zeros(0, 3, thresholds, dtype=torch.int32)]
        self._images = 0

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ImageCounts:
        truth, labels, counts = (state[name] for name in ("truth", "labels", "counts"))
        pairs, steps = (len(labels), counts.shape[2]) if counts.ndim == 3 else (0, 0)
        if not steps or truth.ndim != 2 or (labels.shape, counts.shape) != ((pairs, 2), (pairs, 3, steps)):
            raise AdvCAMError("counts of images of shapes that do not fit")
        if pairs and (int(labels.min()) < 0 or bool((labels.amax(0) >= torch.tensor(truth.shape)).any())):
            raise AdvCAMError("counts of images or labels that are not there")
        images = cls(steps, truth.shape[1])
        images._truth, images._labels, images._counts = [state["truth"]], [state["labels"]], [state["counts"]]
        images._images = len(state["truth"])
        return images

    def state(self) -> dict[str, Tensor]:
        """Return the counts of N images with M image-class pairs in all.

        ``truth`` is ``(N, K)`` int32; ``labels`` ``(M, 2)`` int64, an image's place and its class's label; ``counts``
        ``(M, 3, T)`` int32: pixels found, predicted, and predicted on background.
        """
        for parts in (self._truth, self._labels, self._counts):
            parts[:] = [torch.cat([part.cpu() for part in parts])]
        return {"truth": self._truth[0], "labels": self._labels[0], "counts": self._counts[0]}

    def __len__(self) -> int:
        return self._images

    def add(self, histogram: Tensor, classes: Sequence[int]) -> None:
        """Add an image of 0-based classes by its `seed_histogram`."""
        histogram = histogram[:-1]
        self._truth.append(histogram.sum((1, 2), dtype=torch.int32)[None])
        if classes:
            above = _exceeding(histogram)
            own = torch.arange(len(classes), device=above.device)
            labels = torch.tensor([(self._images, k + 1) for k in classes])
            hits = above[labels[:, 1].to(above.device), own]
            self._labels.append(labels)
            self._counts.append(torch.stack([hits, above.sum(0), above[0]], 1).int())
        self._images += 1

    def merge(self, other: ImageCounts) -> None:
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
        """Return the true pixels of each class in each image, ``(N, K)`` int32."""
        return self.state()["truth"]

    def marginals(self, place: int) -> Tensor:
        """Return each image's `marginals` at the threshold of this index, ``(N, 4, K)`` int64."""
        state = self.state()
        truth, (image, label) = state["truth"].long(), state["labels"].unbind(1)
        hits, predicted, on_background = state["counts"][:, :, place].long().unbind(1)
        counts = truth.new_zeros(4, self._images, self.num_classes)
        counts[0, image, label], counts[2, image, label], counts[3, image, label] = hits, predicted, on_background
        counts[1] = truth
        counts[0, :, 0] = truth[:, 0] - counts[3].sum(-1)
        counts[2, :, 0] = truth.sum(-1) - counts[2].sum(-1)
        return counts.transpose(0, 1).contiguous()
