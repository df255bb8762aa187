"""The process group of a launch."""

from __future__ import annotations

import pytest
import torch

from advcam_attr.runs.sharding import ALONE, Shard
from advcam_attr.training.distributed import attempt, process_group
from advcam_attr.types import AdvCAMError

CPU = torch.device("cpu")


def test_attempts_have_different_keys():
    names = {attempt({"TORCHELASTIC_RUN_ID": run, "TORCHELASTIC_RESTART_COUNT": n}) for run in "ab" for n in "012"}
    assert len(names) == 6


def test_ranks_that_cannot_connect(monkeypatch):
    with process_group(ALONE, CPU, {}):
        pass
    with pytest.raises(AdvCAMError, match="MASTER_ADDR is not set"), process_group(Shard(1, 2, 1), CPU, {}):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cuda, env = torch.device("cuda", 0), {"LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(AdvCAMError, match="2 ranks on this machine need a GPU each, and there are 1"):
        process_group(Shard(1, 2, 1), cuda, env).__enter__()
