"""Samples in; what classifiers train on, pairs of an input and its multi-hot labels, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from advcam_attr.data.images import read_rgb
from advcam_attr.types import AdvCAMError, Sample


class ClassificationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Photographs and the classes that they show.

    Args:
        samples: at least one.
        num_classes: K.
        transform: a picture in, a net's input out; see `advcam_attr.data.transforms.classifier_train`.

    Raises:
        AdvCAMError: there is no sample, or one has a label outside the classes.

    Example:
        >>> dataset = ClassificationDataset(data.samples, 20, classifier_train())  # doctest: +SKIP
        >>> image, labels = dataset[0]  # doctest: +SKIP
        >>> image.shape, labels.shape  # doctest: +SKIP
        (torch.Size([3, 512, 512]), torch.Size([20]))
    """

    def __init__(self, samples: Sequence[Sample], num_classes: int, transform: Callable[[Image.Image], Tensor]) -> None:
        if not samples:
            raise AdvCAMError("no images to classify: the split is empty")
        for sample in samples:
            if any(not 0 <= k < num_classes for k in sample.labels):
                raise AdvCAMError(f"{sample.id} has the labels {sample.labels}, but there are {num_classes} classes")
        self.samples, self.num_classes, self.transform = tuple(samples), num_classes, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The input ``(3, H, W)`` float32 of a sample and its labels ``(K,)`` float32.

        Raises:
            AdvCAMError: the photograph is missing or damaged.
        """
        return self.transform(read_rgb(self.samples[index].image)), self.labels(index)

    def labels(self, index: int) -> Tensor:
        """1 for each class of a sample and 0 for the others, ``(K,)`` float32; its photograph is not read."""
        labels = torch.zeros(self.num_classes)
        labels[list(self.samples[index].labels)] = 1
        return labels
