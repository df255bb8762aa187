"""The training loop: steps worked out by hand, accumulation, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advcam_attr.training.fit import Group, Training, fit, loss_scaler, poly, sgd
from advcam_attr.training.losses.classification import LOSSES, LossTerms, SteppedLoss
from advcam_attr.training.optimizer import RELEASED_MOMENTUM, Optimizer
from advcam_attr.types import AdvCAMError


def one_weight(momentum: float = 0.5, decay: float = 0.5) -> Training:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    return Training(net, sgd([Group("all", net.parameters(), 0.1, decay)], momentum), loss_scaler())


def mean_logit(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean()


def test_golden_steps():
    """x = 2 so dL/dw = 2. g0 = 2 + 0.5 · 1 = 2.5, w1 = 1 - 0.1 · 2.5; g1 = 2 + 0.5 · 0.75, with momentum 3.625."""
    training = one_weight()
    batch = torch.full((2, 1), 2.0), torch.zeros(2, 1)
    found = [(record, training.model.weight.item()) for record in
             fit(training, [batch] * 2, mean_logit, poly(2, power=1.0))]  # fmt: skip
    assert [weight for _, weight in found] == pytest.approx([0.75, 0.75 - 0.05 * 3.625])
    assert [(r.step, r.lr) for r, _ in found] == [(0, (0.1,)), (1, (0.05,))]
    assert [r.loss for r, _ in found] == pytest.approx([2.0, 1.5])


def test_golden_poly():
    assert [poly(10)(step) for step in (0, 3, 9)] == pytest.approx([1.0, 0.7254177, 0.1258925])


def test_golden_loss():
    """log(1 + e^-1) for a hit of logit 1, log(1 + e^2) for a false alarm of logit 2, halved: the mean over classes."""
    loss = LOSSES["multilabel_soft_margin"](torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((0.3132617 + 2.1269280) / 2)


def test_the_released_momentum_is_the_weight_decay():
    assert RELEASED_MOMENTUM == 1e-4
    assert sgd([Group("all", nn.Linear(1, 1).parameters(), 0.1, 1e-4)]).param_groups[0]["momentum"] == 1e-4


def test_frozen_weights_are_in_no_group():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    groups = sgd([Group("all", net.parameters(), 0.1, 0.0), Group("none", [], 1.0, 0.0)]).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]
    assert [group["name"] for group in groups] == ["all", "none"]


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_make_the_same_step(parts):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, generator=generator), torch.randint(0, 2, (8, 2), generator=generator).float())]
    results = []
    for accumulate in (1, parts):
        torch.manual_seed(1)
        net = nn.Linear(3, 2).double()
        training = Training(net, sgd([Group("all", net.parameters(), 0.5, 0.1)]), loss_scaler())
        (record,) = fit(training, [(batches[0][0].double(), batches[0][1])], LOSSES["multilabel_soft_margin"], poly(1),
                        grad_accum=accumulate)  # fmt: skip
        results.append((record.loss, net.weight.detach().clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-6)


def test_bfloat16_steps_are_near_those_of_float32():
    batch = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1)
    ends = []
    for autocast in (None, "bfloat16"):
        training = one_weight()
        list(fit(training, [batch] * 3, LOSSES["multilabel_soft_margin"], poly(3), autocast=autocast))
        assert training.model.weight.dtype == torch.float32
        ends.append(training.model.weight.item())
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)
    with pytest.raises(AdvCAMError, match="float16 training needs a GPU"):
        loss_scaler("float16", "cpu")


def test_a_loss_that_is_not_finite_is_an_error():
    training = one_weight()
    batches = [(torch.ones(1, 1), torch.ones(1, 1)), (torch.full((1, 1), torch.nan), torch.ones(1, 1))]
    with pytest.raises(AdvCAMError, match="loss is nan at step 1; lower the learning rates"):
        list(fit(training, batches, mean_logit, poly(2)))
    assert training.model.weight.isfinite().all()


def test_new_layers_learn_ten_times_as_fast_by_default():
    assert Optimizer(lr=0.1).head_rate == 1.0
    assert Optimizer(lr=0.1, head_lr=0.3).head_rate == 0.3


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lr": -1.0}, "lr"),
        ({"momentum": float("nan")}, "momentum"),
        ({"nesterov": True, "momentum": 1.0}, "momentum"),
        ({"lr_update_every": 0}, "lr_update_every"),
    ],
)
def test_settings_of_the_optimizer_are_checked(changes, name):
    with pytest.raises(AdvCAMError, match=rf"optimizer\.{name}"):
        Optimizer(**{"lr": 0.1, **changes})


class Rising:
    """A loss that is weighted by its step."""

    def at(self, step: int):
        def loss(out: Tensor, target: Tensor) -> LossTerms:
            error = ((out - target) ** 2).mean()
            return LossTerms(step * error, {"error": error})

        return loss


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_a_stepped_loss_gets_its_step_and_its_terms_are_logged(grad_accum):
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    training = Training(net, sgd([Group("all", net.parameters(), 0.1, 0.0)], 0.0), loss_scaler(), step=1)
    batch = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    assert isinstance(Rising(), SteppedLoss)
    records = list(fit(training, [batch, batch], Rising(), lambda step: 1.0, grad_accum=grad_accum))
    # w = 1: error (1 + 4) / 2; at step 1 its gradient is 5 w; w = 0.5: 0.625, at step 2 twice that
    assert [r.step for r in records] == [1, 2]
    assert [r.loss for r in records] == pytest.approx([2.5, 1.25])
    assert [r.parts["error"] for r in records] == pytest.approx([2.5, 0.625])
    assert net.weight.item() == pytest.approx(0.5 - 0.1 * 2 * 5 * 0.5)
