"""A net, batches, a loss and a schedule in; one record after the other of the steps that train it, out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel

from advcam_attr.training.distributed import mean_over_ranks
from advcam_attr.training.losses.classification import Loss, LossTerms, SteppedLoss
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
        >>> from advcam_attr.training.fit import Group, sgd
        >>> from advcam_attr.training.fit import poly
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


#: The momentum that the released optimisers of IRN and AdvCAM have: they pass the weight decay, 1e-4, in the place of
#: the momentum. Their learning rates fit it: with a momentum of 0.9 the steps would be ten times as long.
RELEASED_MOMENTUM = 1e-4


@dataclass(frozen=True)
class Group:
    """Weights that are trained alike.

    Attributes:
        name: e.g. ``"backbone"``.
        parameters: of them, those that take no gradient are left out.
        lr: the learning rate that the schedule starts from.
        weight_decay: the factor of the weights in the gradient.
    """

    name: str
    parameters: Iterable[nn.Parameter]
    lr: float
    weight_decay: float


def sgd(groups: Sequence[Group], momentum: float = RELEASED_MOMENTUM, *, nesterov: bool = False) -> SGD:
    """An SGD optimiser; a group without trained weights is kept, empty, so that groups keep their places.

    Args:
        groups: in the order in which the optimiser has them.
        momentum: without dampening.
        nesterov: whether it is Nesterov's.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimiser = sgd([Group("classifier", layer.parameters(), lr=1.0, weight_decay=1e-4)])
        >>> optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["momentum"]
        (1.0, 0.0001)
    """
    return SGD(
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


Schedule = Callable[[int], float]


def poly(steps: int, power: float = 0.9, refresh: int = 1) -> Schedule:
    """The factor (1 - step / steps) ^ power, set before the update of each step (IRN's PolyOptimizer).

    Args:
        steps: of the whole training; the first is step 0.
        power: of the decay; 0.9 in IRN, PSA, SEAM and DeepLab.
        refresh: every how many steps the factor is computed anew; 10 in deeplab-pytorch, 1 elsewhere.

    Example:
        >>> schedule = poly(4, power=1.0)
        >>> [schedule(step) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [poly(4, power=1.0, refresh=2)(step) for step in range(4)]
        [1.0, 1.0, 0.5, 0.5]
    """
    return lambda step: float((1 - step // refresh * refresh / steps) ** power)


def step_decay(per_epoch: int, every: int, factor: float = 0.1) -> Schedule:
    """The factor by which the rates are lowered every so many epochs, before the epoch whose number they divide.

    With ``every=15``, epochs 1 to 14 have the first rate, 15 to 29 a tenth, and so on (Choe et al.).

    Args:
        per_epoch: steps of an epoch.
        every: epochs.
        factor: of each time.

    Example:
        >>> schedule = step_decay(per_epoch=1, every=2)
        >>> [round(schedule(step), 4) for step in range(5)]
        [1.0, 0.1, 0.1, 0.01, 0.01]
    """
    return lambda step: factor ** ((step // per_epoch + 1) // every)


def set_rates(optimiser: Optimizer, factor: float) -> None:
    """Give each group its own initial learning rate (``initial_lr``) times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
