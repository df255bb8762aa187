"""The training loop: SGD with learning rate schedules, mixed precision and gradient accumulation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from advcam_attr.runs.runtime import Autocast
from advcam_attr.training.distributed import mean_over_ranks
from advcam_attr.training.losses.classification import Loss, LossTerms, SteppedLoss
from advcam_attr.training.optimizer import RELEASED_MOMENTUM
from advcam_attr.types import AdvCAMError

#: The factor of the initial learning rates at a step.
Schedule = Callable[[int], float]


@dataclass
class Training:
    """The state of a training that a checkpoint stores, besides random states.

    Attributes:
        model: on its device, in training mode.
        optimizer: its groups have ``initial_lr``.
        scaler: of float16 losses; disabled otherwise.
        step: the next one, from 0.
        ema: exponential moving average of the weights, if any.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    ema: AveragedModel | None = None


@dataclass(frozen=True)
class StepRecord:
    """The record of one training step: loss and its terms before the update (means over the batch), rates by group."""

    step: int
    loss: float
    lr: tuple[float, ...]
    parts: Mapping[str, float] = field(default_factory=dict)


def fit(
    training: Training,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss | SteppedLoss,
    schedule: Schedule,
    *,
    autocast: Autocast | None = None,
    grad_accum: int = 1,
    replica: nn.Module | None = None,
) -> Iterator[StepRecord]:
    """Train on each batch and yield the record of each step; a checkpoint written in between resumes exactly.

    Args:
        training: changed in place.
        batches: images and labels, from step ``training.step`` on.
        loss: of the net's output (logits, or several of them, float32) and labels; mean over images.
        schedule: factor of the learning rates at a step.
        autocast: precision of the forward pass; None for float32.
        grad_accum: parts in which a batch passes the net; the update is that of the whole batch (to rounding), as no
            norm here uses the batch.
        replica: the model wrapped in `DistributedDataParallel`, if ranks share the batch.

    Raises:
        AdvCAMError: the loss is not finite.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> optimizer = sgd([Group("all", net.parameters(), lr=0.1, weight_decay=0.0)], momentum=0.0)
        >>> training = Training(net, optimizer, loss_scaler())
        >>> batch = torch.ones(2, 1), torch.zeros(2, 1)
        >>> for record in fit(training, [batch, batch], nn.functional.mse_loss, poly(2, power=1.0)):
        ...     print(record.step, round(record.loss, 3), record.lr)
        0 1.0 (0.1,)
        1 0.64 (0.05,)
    """
    model = replica or training.model
    device = next(training.model.parameters()).device
    for images, labels in batches:
        set_rates(training.optimizer, schedule(training.step))
        training.optimizer.zero_grad(set_to_none=True)
        step_loss = loss.at(training.step) if isinstance(loss, SteppedLoss) else loss
        total, terms = torch.zeros((), device=device), dict[str, Tensor]()
        chunks = list(zip(images.chunk(grad_accum), labels.chunk(grad_accum), strict=True))
        for number, (x, target) in enumerate(chunks, start=1):
            with _gradient_sync(model, enabled=number == len(chunks)):
                with _autocast(autocast, device):
                    output = model(x.to(device, non_blocking=True))
                value = step_loss(_float32(output), target.to(device, non_blocking=True))
                found = value if isinstance(value, LossTerms) else LossTerms(value, {})
                share = len(x) / len(images)
                training.scaler.scale(found.total * share).backward()
            total += found.total.detach() * share
            for name, part in found.parts.items():
                terms[name] = terms.get(name, torch.zeros_like(total)) + part.detach() * share
        mean = mean_over_ranks(total)
        if not math.isfinite(mean):
            raise AdvCAMError(
                f"the loss is {mean} at step {training.step}; lower the learning rates, or train in float32"
            )
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.step += 1
        if training.ema is not None:
            training.ema.update_parameters(training.model)
        rates = tuple(group["lr"] for group in training.optimizer.param_groups)
        yield StepRecord(training.step - 1, mean, rates, {name: mean_over_ranks(part) for name, part in terms.items()})


def loss_scaler(autocast: Autocast | None = None, device: str = "cpu") -> torch.amp.GradScaler:
    """Return the gradient scaler of a precision, disabled for all but float16."""
    if autocast == "float16" and device == "cpu":
        raise AdvCAMError("float16 training needs a GPU; on the CPU, set autocast to bfloat16 or null")
    return torch.amp.GradScaler(device, enabled=autocast == "float16")


def _float32(output: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return output.float() if isinstance(output, Tensor) else tuple(part.float() for part in output)


def _autocast(autocast: Autocast | None, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if autocast is None else torch.autocast(device.type, getattr(torch, autocast))


def _gradient_sync(model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    if isinstance(model, DistributedDataParallel) and not enabled:
        unsynchronised: contextlib.AbstractContextManager[Any] = model.no_sync()
        return unsynchronised
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay; frozen ones are left out."""

    name: str
    parameters: Iterable[nn.Parameter]
    lr: float
    weight_decay: float


def sgd(
    groups: Sequence[Group], momentum: float = RELEASED_MOMENTUM, *, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Return an SGD optimizer; groups without trained parameters stay, empty, so that all keep their positions."""
    return torch.optim.SGD(
        [
            {
                "params": [p for p in group.parameters if p.requires_grad],
                "name": group.name,
                "lr": group.lr,
                "initial_lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        lr=0.0,
        momentum=momentum,
        nesterov=nesterov,
    )


def poly(steps: int, power: float = 0.9, update_every: int = 1) -> Schedule:
    """Return the schedule (1 - step / steps) ^ power (IRN's PolyOptimizer).

    The power is 0.9 in IRN, PSA, SEAM and DeepLab; deeplab-pytorch updates every 10 steps.

    Example:
        >>> [poly(4, power=1.0, update_every=2)(step) for step in range(4)]
        [1.0, 1.0, 0.5, 0.5]
    """
    return lambda step: float((1 - step // update_every * update_every / steps) ** power)


def step_decay(per_epoch: int, every: int, factor: float = 0.1) -> Schedule:
    """Return the schedule that multiplies by ``factor`` before each epoch (from 1) whose number ``every`` divides.

    With ``every=15``, epochs 1 to 14 have the first rate, 15 to 29 a tenth, and so on (Choe et al.).
    """
    return lambda step: factor ** ((step // per_epoch + 1) // every)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to ``factor`` times its ``initial_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
