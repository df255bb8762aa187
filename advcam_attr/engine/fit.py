"""A net, batches, a loss and a schedule in; one record after the other of the steps that train it, out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from advcam_attr.engine.distributed import mean_over_ranks
from advcam_attr.engine.losses import Loss, LossTerms, SteppedLoss
from advcam_attr.engine.schedules import Schedule, set_rates
from advcam_attr.types import AdvCAMError

Precision = Literal["float32", "float16", "bfloat16"]

#: The loss of one step.
LossNow = Callable[[Any, Tensor], Tensor | LossTerms]


@dataclass
class Training:
    """The state of a training: all that a checkpoint holds, besides random states.

    Attributes:
        model: in training mode where it is to be; on its device.
        optimiser: whose groups have ``initial_lr``.
        scaler: of float16 losses; disabled otherwise.
        step: the next one, from 0.
        average: a running mean of the weights, which each step updates; None where there is none.
    """

    model: nn.Module
    optimiser: Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    average: AveragedModel | None = None


@dataclass(frozen=True)
class StepRecord:
    """What one step saw.

    Attributes:
        step: from 0.
        loss: before the update; the mean over the whole batch, of all ranks.
        lr: of each group, in this step.
        parts: of the loss by name, where it tells them; means as the loss.
    """

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
    precision: Precision = "float32",
    accumulate: int = 1,
    replica: nn.Module | None = None,
) -> Iterator[StepRecord]:
    """Train: a forward, a backward and an update a batch.

    Between two records the state is whole: a checkpoint that is written there continues with the next batch.

    Args:
        training: changed in place.
        batches: images and labels, the next step's first; the loop ends with them.
        loss: of what the net gives (logits, or several of them) in float32 and labels, a mean over images; or one that
            differs from step to step.
        schedule: the factor of the learning rates at a step.
        precision: of the forward: ``float32``, or autocast to ``bfloat16``, or to ``float16`` with a scaled loss.
        accumulate: in how many parts a batch goes through the net; the update is that of the whole batch (to rounding),
            as no norm here sees the batch.
        replica: the model inside `DistributedDataParallel`, where ranks share the batch.

    Raises:
        AdvCAMError: the loss is not finite.

    Example:
        >>> from advcam_attr.engine.optimiser import Group, sgd
        >>> from advcam_attr.engine.schedules import poly
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> optimiser = sgd([Group("all", net.parameters(), lr=0.1, weight_decay=0.0)], momentum=0.0)
        >>> training = Training(net, optimiser, loss_scaler("float32"))
        >>> batch = torch.ones(2, 1), torch.zeros(2, 1)
        >>> for record in fit(training, [batch, batch], nn.functional.mse_loss, poly(2, power=1.0)):
        ...     print(record.step, round(record.loss, 3), record.lr)
        0 1.0 (0.1,)
        1 0.64 (0.05,)
    """
    model = replica or training.model
    device = next(training.model.parameters()).device
    for images, labels in batches:
        set_rates(training.optimiser, schedule(training.step))
        training.optimiser.zero_grad(set_to_none=True)
        loss_now: LossNow = loss.at(training.step) if isinstance(loss, SteppedLoss) else loss
        total, told = torch.zeros((), device=device), dict[str, Tensor]()
        parts = list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
        for number, (x, target) in enumerate(parts, start=1):
            with _gathering(model, last=number == len(parts)):
                with _autocast(precision, device):
                    output = model(x.to(device, non_blocking=True))
                found = loss_now(_float32(output), target.to(device, non_blocking=True))
                terms = found if isinstance(found, LossTerms) else LossTerms(found, {})
                share = len(x) / len(images)
                training.scaler.scale(terms.total * share).backward()
            total += terms.total.detach() * share
            for name, part in terms.parts.items():
                told[name] = told.get(name, torch.zeros_like(total)) + part.detach() * share
        value = mean_over_ranks(total)
        if not torch.isfinite(torch.tensor(value)):
            raise AdvCAMError(
                f"the loss is {value} at step {training.step}; lower the learning rates, or train in float32"
            )
        training.scaler.step(training.optimiser)
        training.scaler.update()
        training.step += 1
        if training.average is not None:
            training.average.update_parameters(training.model)
        rates = tuple(group["lr"] for group in training.optimiser.param_groups)
        yield StepRecord(training.step - 1, value, rates, {name: mean_over_ranks(part) for name, part in told.items()})


def loss_scaler(precision: Precision, device: str = "cpu") -> torch.amp.GradScaler:
    """The scaler that a precision needs; disabled for all but float16.

    Raises:
        AdvCAMError: no such precision, or float16 on a device other than a GPU.
    """
    if precision not in get_args(Precision):
        raise AdvCAMError(f"unknown precision {precision!r}; there are {', '.join(get_args(Precision))}")
    if precision == "float16" and device == "cpu":
        raise AdvCAMError("float16 training needs a GPU; on the CPU, give precision bfloat16 or float32")
    return torch.amp.GradScaler(device, enabled=precision == "float16")


def _float32(output: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return output.float() if isinstance(output, Tensor) else tuple(part.float() for part in output)


def _autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def _gathering(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """Ranks exchange their gradients once a step, after its last part."""
    if isinstance(model, DistributedDataParallel) and not last:
        synchronised: contextlib.AbstractContextManager[object] = model.no_sync()
        return synchronised
    return contextlib.nullcontext()
