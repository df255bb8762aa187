"""Map-style datasets of images and class labels, on which classifiers train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from advcam_attr.data.images import read_rgb, read_stored_rgb
from advcam_attr.data.shards import ShardData
from advcam_attr.types import AdvCAMError, Sample


class ClassificationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and multi-hot labels; the transform makes network inputs of RGB images."""

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
        """Return the input ``(3, H, W)`` float32 of a sample and its labels ``(K,)`` float32."""
        return self.transform(read_rgb(self.samples[index].image)), self.labels(index)

    def labels(self, index: int) -> Tensor:
        """Return the multi-hot labels ``(K,)`` float32 of a sample without reading its image."""
        labels = torch.zeros(self.num_classes)
        labels[list(self.samples[index].labels)] = 1
        return labels


class SingleLabelDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images as stored (their EXIF orientation is not applied) and their one label each, as `ClassificationDataset`."""

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
        """Return the input ``(3, H, W)`` float32 of a sample and its label, int64."""
        sample = self.samples[index]
        return self.transform(read_stored_rgb(sample.image)), torch.tensor(sample.labels[0])


class ShardDataset(Dataset[tuple[Tensor, Tensor]]):
    """As `SingleLabelDataset`, with the images in WebDataset shards."""

    def __init__(self, data: ShardData, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.data.read(index)), torch.tensor(int(self.data.labels[index]))
