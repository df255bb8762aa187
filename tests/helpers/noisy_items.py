"""A data set whose items hold random numbers of torch, NumPy and Python."""

import random

import numpy as np
import torch

from advcam_attr.types import AdvCAMError


class Noisy:
    """Items of an index and three random numbers."""

    def __init__(self, count: int = 10, broken: int | None = None) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == self.broken:
            raise AdvCAMError(f"cannot read image {index}")
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
        return torch.tensor([float(index), *drawn]), torch.zeros(1)
