"""Photographs of one class each in; the inputs and labels on which localization classifiers train and are judged, out.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020): images are resized to a
square, whatever their proportions, so that a map's pixels and the image's differ by two factors and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from advcam_attr.data.images import read_stored_rgb
from advcam_attr.data.pictures import MEAN, STD
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
