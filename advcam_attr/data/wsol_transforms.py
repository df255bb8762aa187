"""Photographs of one class each in; the inputs and labels on which localization classifiers train and are judged, out.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020): images are resized to a
square, whatever their proportions, so that a map's pixels and the image's differ by two factors and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from advcam_attr.data.images import MEAN, STD, read_stored_rgb
from advcam_attr.data.shards import ShardData
from advcam_attr.data.transforms import to_input
from advcam_attr.types import AdvCAMError, Sample


def wsol_train(
    resize: int = 256, crop: int = 224, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """The augmentation of training: resize to a square (bilinear), crop at a random place, mirror half of the time.

    Args:
        resize: side of the square in pixels; 256.
        crop: side of the crop; 224.
        mean, std: of each channel.

    Raises:
        AdvCAMError: the crop is larger than the square, or empty.

    Example:
        >>> wsol_train(64, 56)(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 56, 56])
    """
    if not 1 <= crop <= resize:
        raise AdvCAMError(f"a crop of {crop} pixels cannot be cut from a square of {resize}")
    return v2.Compose(
        [
            v2.Resize((resize, resize)),
            v2.RandomCrop(crop),
            v2.RandomHorizontalFlip(0.5),
            v2.Lambda(partial(to_input, mean=mean, std=std)),
        ]
    )


def wsol_eval(size: int = 224, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """What is judged and mapped: the whole picture, resized to a square (bilinear); no crop.

    Example:
        >>> wsol_eval()(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 224, 224])
    """
    return v2.Compose([v2.Resize((size, size)), v2.Lambda(partial(to_input, mean=mean, std=std))])


class SingleLabelDataset(Dataset[tuple[Tensor, Tensor]]):
    """Photographs, as they are stored, and the one class that each of them shows.

    Args:
        samples: at least one; each has one label.
        num_classes: K.
        transform: a picture in, a net's input out.

    Raises:
        AdvCAMError: there is no sample, or one has not one label of the classes.

    Example:
        >>> dataset = SingleLabelDataset(data.samples, 200, wsol_train())  # doctest: +SKIP
        >>> dataset[0][1]  # doctest: +SKIP
        tensor(0)
    """

    def __init__(self, samples: Sequence[Sample], num_classes: int, transform: Callable[[Image.Image], Tensor]) -> None:
        if not samples:
            raise AdvCAMError("no images to classify: the split is empty")
        for sample in samples:
            if len(sample.labels) != 1 or not 0 <= sample.labels[0] < num_classes:
                raise AdvCAMError(f"{sample.id} has the labels {sample.labels}; it should have one of {num_classes}")
        self.samples, self.transform = tuple(samples), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The input ``(3, H, W)`` float32 of a sample and its label, int64.

        Raises:
            AdvCAMError: the photograph is missing or damaged.
        """
        sample = self.samples[index]
        return self.transform(read_stored_rgb(sample.image)), torch.tensor(sample.labels[0])


class ShardDataset(Dataset[tuple[Tensor, Tensor]]):
    """The same, of photographs in shards.

    Args:
        data: where they are.
        transform: a picture in, a net's input out.
    """

    def __init__(self, data: ShardData, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The input ``(3, H, W)`` float32 of a sample and its label, int64.

        Raises:
            AdvCAMError: the photograph is damaged.
        """
        return self.transform(self.data.read(index)), torch.tensor(int(self.data.labels[index]))


@dataclass(frozen=True)
class CutMix:
    """How batches are mixed.

    Attributes:
        beta: both parameters of the Beta distribution that the share λ of an image in the mixture is drawn from.
        probability: of a batch to be mixed at all.
    """

    beta: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta) and 0 <= self.probability <= 1):
            raise AdvCAMError(
                f"CutMix takes a positive beta and a probability in 0..1, got {self.beta} and {self.probability}"
            )


@dataclass(frozen=True)
class Cut:
    """A patch: rows ``top`` to before ``bottom``, columns ``left`` to before ``right``."""

    top: int
    bottom: int
    left: int
    right: int

    def share(self, height: int, width: int) -> float:
        """What is left of an image beside the patch: λ."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / (height * width)


def draw_cut(cutmix: CutMix, height: int, width: int, rng: np.random.Generator) -> Cut | None:
    """The patch of a batch, or None where it is not mixed.

    With λ ~ Beta(β, β), a patch of ``int(√(1 - λ) · side)`` pixels a side around a random pixel, clipped to the image.

    Example:
        >>> draw_cut(CutMix(probability=0.0), 8, 8, np.random.default_rng(0))
    """
    if rng.random() >= cutmix.probability:
        return None
    ratio = math.sqrt(1 - rng.beta(cutmix.beta, cutmix.beta))
    y, x = (int(rng.integers(side)) for side in (height, width))
    half_y, half_x = (int(side * ratio) // 2 for side in (height, width))
    return Cut(max(y - half_y, 0), min(y + half_y, height), max(x - half_x, 0), min(x + half_x, width))


def mixed(images: Tensor, labels: Tensor, num_classes: int, cut: Cut, order: Tensor) -> tuple[Tensor, Tensor]:
    """Paste the patch of other images, and share the classes by area.

    With these shares as targets, cross-entropy is ``λ CE(y_a) + (1 - λ) CE(y_b)``.

    Args:
        images: ``(N, 3, H, W)``; left as they are.
        labels: ``(N,)``.
        num_classes: K.
        cut: the patch.
        order: which image's patch each image gets, ``(N,)``.

    Returns:
        Images ``(N, 3, H, W)`` and targets ``(N, K)`` float32.

    Example:
        >>> images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
        >>> x, y = mixed(images, torch.tensor([0, 1]), 2, Cut(0, 1, 0, 2), torch.tensor([1, 0]))
        >>> x[0, 0].tolist(), y.tolist()
        ([[1.0, 1.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]])
    """
    x = images.clone()
    rows, columns = slice(cut.top, cut.bottom), slice(cut.left, cut.right)
    x[:, :, rows, columns] = images[order][:, :, rows, columns]
    own = F.one_hot(labels, num_classes).float()
    share = cut.share(*images.shape[2:])
    return x, share * own + (1 - share) * own[order]


def mixed_batches(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, cutmix: CutMix | None, seeds: Iterable[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with targets ``(N, K)``, mixed where CutMix says so.

    Args:
        batches: images ``(N, 3, H, W)`` and labels ``(N,)``.
        num_classes: K.
        cutmix: how; None mixes nothing.
        seeds: two of each batch, of its patch and of its order; batches that ranks share have the first in common.
    """
    for (images, labels), (patch, order) in zip(batches, seeds, strict=False):
        height, width = images.shape[2:]
        cut = None if cutmix is None else draw_cut(cutmix, height, width, np.random.default_rng(patch))
        if cut is None:
            yield images, F.one_hot(labels, num_classes).float()
        else:
            places = torch.from_numpy(np.random.default_rng(order).permutation(len(images)))
            yield mixed(images, labels, num_classes, cut, places)
