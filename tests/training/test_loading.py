"""Batches depend on seed and step alone."""

from __future__ import annotations

import pytest
import torch

from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.training.checkpoint import random_states
from advcam_attr.training.loading import SeededItems, TrainingBatches, load_batches
from advcam_attr.types import AdvCAMError
from noisy_items import Noisy


def read(steps=(0, 6), workers=0, seed=0, shard=ALONE, items=None, batch=4):
    items = items or Noisy()
    order = TrainingBatches(len(items), batch, seed=seed, steps=steps, shard=shard)
    return [images for images, _ in load_batches(items, order, seed=seed, workers=workers)]


def test_batches_depend_on_the_seed_alone():
    state = random_states(torch.device("cpu"))
    first = read()
    assert all(torch.equal(a, b) for a, b in zip(first, read(workers=2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[3:], read(steps=(3, 6)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, read(seed=1), strict=True))
    after = random_states(torch.device("cpu"))
    assert torch.equal(state["torch"], after["torch"])
    assert torch.equal(state["numpy"][1], after["numpy"][1])
    assert state["python"] == after["python"]


def test_epochs_differ_in_order_and_noise():
    batches = torch.stack(read(steps=(0, 4), batch=5)).reshape(2, 10, 4)
    assert [sorted(epoch[:, 0].tolist()) for epoch in batches] == [list(range(10))] * 2
    assert batches[0, :, 0].tolist() != batches[1, :, 0].tolist()
    noise = [epoch[epoch[:, 0].argsort()][:, 1:] for epoch in batches]
    assert not bool((noise[0] == noise[1]).any())
    assert len(noise[0].unique(dim=0)) == 10


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch(world):
    alone = read()
    shares = [read(shard=Shard(rank, world)) for rank in range(world)]
    for step, batch in enumerate(alone):
        together = torch.cat([share[step] for share in shares])
        assert {len(share[step]) for share in shares} == {4 // world}
        assert torch.equal(together[together[:, 0].argsort()], batch[batch[:, 0].argsort()])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_items_are_errors(workers):
    with pytest.raises(AdvCAMError) as caught:
        read(items=Noisy(broken=3), workers=workers)
    assert str(caught.value) == "cannot read image 3"


class Numbered(list):
    def of_epoch(self, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.tensor(epoch), torch.tensor(index)) for index in range(2)]


def test_items_may_differ_by_epoch():
    assert [int(value) for value in SeededItems(Numbered(), seed=0)[(7, 1)]] == [7, 1]
