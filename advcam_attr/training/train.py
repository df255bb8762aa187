"""Training of a net in a folder, resumed exactly after any interruption.

The folder holds ``training.json`` (settings), ``checkpoint.pt``, ``log.jsonl`` (a record a step) and the net's file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from advcam_attr.files import make_folder, remove_leftovers
from advcam_attr.runs.progress_bar import progress_bar
from advcam_attr.runs.provenance import check_settings, read_record
from advcam_attr.runs.run_log import first_rank_logs
from advcam_attr.runs.runtime import Runtime
from advcam_attr.runs.sharding import Shard, shard_of_launch
from advcam_attr.training.checkpoint import own_randomness, read_training, restore, save_checkpoint
from advcam_attr.training.distributed import gather, process_group
from advcam_attr.training.fit import Group, Schedule, StepRecord, Training, fit, loss_scaler, poly, sgd
from advcam_attr.training.loading import Items, TrainingBatches, load_batches, mixed_seed
from advcam_attr.training.log import json_log
from advcam_attr.training.losses.classification import Loss, SteppedLoss
from advcam_attr.training.optimizer import Optimizer
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, and how.

    Attributes:
        name: of the net, in messages.
        net: trained in place.
        items: images and targets.
        loss: of the net's output and the targets.
        groups: parameters with their learning rates.
        optimizer: momentum and schedule; learning rates and weight decay are those of ``groups``.
        batch: images an update, of all ranks together.
        depends_on: all that the result depends on, as JSON.
        save: writes the net to a file.
        file: its name in the output folder.
        runtime: device, workers, precision and seed; whether to replace a training of other settings.
        checkpoint_every: steps between two checkpoints, besides one after each epoch.
        epochs: whole passes over the items; the rest that fills no batch is dropped.
        steps: of the whole training, in place of epochs.
        grad_accum: parts in which a batch passes the net.
        ema_decay: of an exponential moving average of the weights, which is then saved; None for none.
        after_epoch: called on every rank with the epoch, from 1, before its checkpoint; True, on all ranks, ends the
            training. It must leave the net's mode and device as they were.
        schedule: in place of poly's.
        prepare: maps the batches, given them and the number of the first one, e.g. to mix them.
    """

    name: str
    net: nn.Module
    items: Items
    loss: Loss | SteppedLoss
    groups: Sequence[Group]
    optimizer: Optimizer
    batch: int
    depends_on: Mapping[str, Any]
    save: Callable[[Path], None]
    file: str
    runtime: Runtime = Runtime()
    checkpoint_every: int = 200
    epochs: int = 0
    steps: int | None = None
    grad_accum: int = 1
    ema_decay: float | None = None
    after_epoch: Callable[[int], bool] | None = None
    schedule: Schedule | None = None
    prepare: Callable[[Iterator[Batch], int], Iterator[Batch]] | None = None

    @property
    def per_epoch(self) -> int:
        return len(self.items) // self.batch

    @property
    def all_steps(self) -> int:
        return self.per_epoch * self.epochs if self.steps is None else self.steps


def train(task: TrainingTask, out: Path) -> Path:
    """Train a net or resume its training, and return its file; at once if the file exists.

    Under ``torchrun`` or ``srun`` all ranks share each batch; they need a common folder. Interrupted at any moment, a
    training on the CPU ends with the same bits. The net's mode and device are restored.

    Raises:
        AdvCAMError: the folder holds another training, there are fewer images than one batch, an item is unreadable,
            the loss is not finite, or a file cannot be written.
    """
    shard = shard_of_launch()
    device = task.runtime.torch_device(shard)
    check_batch(task.name, len(task.items), task.batch, task.grad_accum)
    with first_rank_logs(shard), own_randomness(device), as_found(task.net), process_group(shard, device):
        make_folder(out)
        return _train(task, out, shard, device)


def check_batch(what: str, images: int, batch: int, grad_accum: int = 1) -> None:
    """Raise if there are fewer images than a batch, or if the ranks cannot share it."""
    world = shard_of_launch().world
    if images < batch:
        raise AdvCAMError(f"{what}: {images} images, fewer than one batch of {batch}; choose a smaller batch")
    if batch % (world * grad_accum):
        parts = f" in {grad_accum} parts each" if grad_accum > 1 else ""
        raise AdvCAMError(f"{what}: a batch of {batch} cannot be shared by {world} ranks{parts}")


def _train(task: TrainingTask, out: Path, shard: Shard, device: torch.device) -> Path:
    file, checkpoint, record = out / task.file, out / "checkpoint.pt", out / "training.json"
    if task.runtime.overwrite and shard.rank == 0 and (read_record(record) or {}).get("settings") != task.depends_on:
        for old in (record, file, checkpoint):
            old.unlink(missing_ok=True)
    gather(None)
    config = {"digest": check_settings(record, task.depends_on)}
    stored = read_training(checkpoint) if not file.is_file() and checkpoint.is_file() else None
    if stored is not None and stored["config"] != config:
        raise AdvCAMError(f"{checkpoint} is of another training than {record}; remove it to start over")
    if len(set(gather((file.is_file(), stored["step"] if stored else 0)))) > 1:
        raise AdvCAMError(f"the ranks see different files in {out}; it must be a folder that all of them share")
    if file.is_file():
        logger.info(f"{file} exists: nothing to train")
        return file
    if shard.rank == 0:
        remove_leftovers(out, older_than=0)
    torch.manual_seed(mixed_seed(task.runtime.seed, shard.rank))
    task.net.to(device).train()
    optimizer = sgd(task.groups, task.optimizer.momentum, nesterov=task.optimizer.nesterov)
    training = Training(task.net, optimizer, loss_scaler(task.runtime.autocast, device.type))
    if task.ema_decay is not None:
        training.ema = AveragedModel(task.net, multi_avg_fn=get_ema_multi_avg_fn(task.ema_decay))
    if stored is not None:
        restore(training, stored, shard)
        logger.info(f"resuming at step {training.step} of {checkpoint}")
    _run(task, training, out, shard, lambda: save_checkpoint(checkpoint, training, config, shard))
    if training.ema is not None:
        task.net.load_state_dict(training.ema.module.state_dict())
    if shard.rank == 0:
        task.save(file)
    logger.info(f"wrote {file}")
    gather(None)  # no rank continues before the file exists
    return file


def _run(task: TrainingTask, training: Training, out: Path, shard: Shard, save: Callable[[], None]) -> None:
    steps, start, clock, losses = task.all_steps, training.step, time.monotonic(), list[float]()
    with ExitStack() as stack:
        log = stack.enter_context(json_log(out / "log.jsonl", start, task.runtime.logger)) if shard.rank == 0 else None
        records = _records(task, training, shard)
        bar = stack.enter_context(progress_bar(steps, f"training the {task.name}", "steps", initial=start))
        for record in records:
            if log is not None:
                log.write({"step": record.step, "loss": record.loss, "lr": list(record.lr), **record.parts})
            losses.append(record.loss)
            bar.update(loss=record.loss)
            milestone = _milestone(task, training.step)
            if milestone:
                speed = (training.step - start) * task.batch / max(time.monotonic() - clock, 1e-9)
                logger.info(f"{milestone}: loss {sum(losses) / len(losses):.4f}, {speed:.1f} images/s")
                losses.clear()
                epoch, rest = divmod(training.step, task.per_epoch)
                if rest == 0 and task.after_epoch is not None and task.after_epoch(epoch):
                    return  # without a checkpoint: interrupted from here on, the training ends here again
            if milestone or training.step % task.checkpoint_every == 0:
                save()


def _records(task: TrainingTask, training: Training, shard: Shard) -> Iterator[StepRecord]:
    steps, runtime = task.all_steps, task.runtime
    device = next(task.net.parameters()).device
    length = f"{task.epochs} epochs, " if task.steps is None else ""
    logger.info(
        f"training the {task.name} on {len(task.items)} images: {length}{steps} steps of {task.batch} images, on "
        f"{shard.world} x {device.type}"
    )
    order = TrainingBatches(len(task.items), task.batch, seed=runtime.seed, steps=(training.step, steps), shard=shard)
    batches = load_batches(task.items, order, seed=runtime.seed, workers=runtime.workers, pin=device.type == "cuda")
    if task.prepare is not None:
        batches = task.prepare(batches, training.step)
    return fit(
        training,
        batches,
        task.loss,
        task.schedule or poly(steps, task.optimizer.power, task.optimizer.lr_update_every),
        autocast=runtime.autocast,
        grad_accum=task.grad_accum,
        replica=_replica(task.net, shard, device),
    )


def _milestone(task: TrainingTask, step: int) -> str:
    """Return the epoch or the ``checkpoint_every`` steps that a step completes, if any."""
    if task.steps is None:
        epoch, rest = divmod(step, task.per_epoch)
        return "" if rest else f"epoch {epoch} of {task.epochs}"
    return "" if step % task.checkpoint_every and step != task.steps else f"step {step} of {task.steps}"


def _replica(net: nn.Module, shard: Shard, device: torch.device) -> nn.Module | None:
    if shard.world == 1:
        return None
    return DistributedDataParallel(net, [device] if device.type == "cuda" else None, broadcast_buffers=False)


@contextmanager
def as_found(net: nn.Module) -> Iterator[None]:
    """Restore a net's device, and the mode of each of its modules, after a block."""
    modes, home = [(module, module.training) for module in net.modules()], next(net.parameters()).device
    try:
        yield
    finally:
        net.to(home)
        for module, mode in modes:
            module.training = mode
