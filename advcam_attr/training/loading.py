"""Data loading: batches that depend on seed and step alone, so that training resumes at any step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.types import AdvCAMError

Item = tuple[int, int]  # epoch, index


class Items(Protocol):
    """A data set of images and targets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class EpochItems(Protocol):
    """A data set whose items differ from epoch to epoch by more than their augmentation."""

    def of_epoch(self, epoch: int) -> Items:
        """Return the items of an epoch, from 0."""


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the random order of an epoch."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


class TrainingBatches(Sampler[list[Item]]):
    """Epoch and index of the items of each step's batch; the rest of an epoch that fills no batch is dropped.

    Args:
        count: length of the data set.
        batch: items of a batch, of all ranks together.
        seed: of the order.
        steps: first step and end.
        shard: whose part of each batch.
    """

    def __init__(self, count: int, batch: int, *, seed: int, steps: tuple[int, int], shard: Shard = ALONE) -> None:
        self.count, self.batch, self.seed, self.steps, self.shard = count, batch, seed, steps, shard

    def __len__(self) -> int:
        return self.steps[1] - self.steps[0]

    def __iter__(self) -> Iterator[list[Item]]:
        per_epoch = self.count // self.batch
        order: list[int] = []
        for step in range(*self.steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not order:
                order = epoch_order(self.count, self.seed, epoch)
            mine = self.shard.take(order[place * self.batch : (place + 1) * self.batch])
            yield [(epoch, index) for index in mine]


class SeededItems(Dataset[Any]):
    """A data set whose augmentation depends on seed, epoch and index alone, in whichever process an item is read.

    Random states (torch, NumPy, Python) are seeded and restored; an unreadable item is returned as its error.
    """

    def __init__(self, items: Items, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor] | AdvCAMError:
        epoch, index = item
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            with torch.random.fork_rng(devices=[]):
                number = mixed_seed(self.seed, epoch, index)
                torch.manual_seed(number)
                random.seed(number)
                np.random.seed(number % 2**32)  # noqa: NPY002
                items = self.items.of_epoch(epoch) if isinstance(self.items, EpochItems) else self.items
                return items[index]
        except AdvCAMError as error:
            return error
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def load_batches(
    items: Items, batches: Sampler[list[Item]] | Sequence[list[Item]], *, seed: int, workers: int = 0, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images and targets, given epoch and index of their items; ``workers`` do not change them."""
    loader: DataLoader[Any] = DataLoader(
        SeededItems(items, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_one_thread,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # without one, loaders draw from the global random state
    )
    for batch in loader:
        if isinstance(batch, AdvCAMError):
            raise batch
        yield batch[0], batch[1]


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, AdvCAMError)), None) or default_collate(items)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def mixed_seed(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
