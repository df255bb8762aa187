"""The Grad-CAM family: golden maps, slow oracles, and what they become behind a linear head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advcam_attr import CAM, EigenCAM, GradCAM, HiResCAM, XGradCAM
from attribution_methods import same


class Squared(nn.Module):
    """Logit of class c: sum over channels and cells of w_ck f_k²/2, so its derivative to f is w_ck f_kij."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.features, self.weight = nn.Identity(), nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.features(x + 0).square() / 2).sum((2, 3)) @ self.weight.T


@pytest.fixture
def squared() -> Squared:
    return Squared(torch.tensor([[1.0, 0.0, -1.0], [2.0, -1.0, 0.5]])).double()


def native(kind, net: nn.Module, x: Tensor, target: int) -> Tensor:
    return kind(net, layer="features").attribute(x, target, output="native")[:, 0]


def test_golden_maps_of_a_quadratic_net(squared):
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    x[0, 0], x[0, 2] = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    # g f = f_0² - f_2²
    assert native(HiResCAM, squared, x, 0)[0].tolist() == [[1.0, 3.0], [0.0, 0.0]]
    # weights: 5/3 for channel 0, -10/4 for channel 2, none for the channel of zeros
    expected = (5 / 3 * x[0, 0] - 2.5 * x[0, 2]).relu()
    assert native(XGradCAM, squared, x, 0)[0].tolist() == pytest.approx(np.array(expected.tolist()))


@pytest.mark.parametrize("target", [0, 1])
def test_slow_oracles(squared, target):
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hires, xgrad, eigen = (native(kind, squared, x, target) for kind in (HiResCAM, XGradCAM, EigenCAM))
    for n in range(2):
        f, w = x[n].numpy(), squared.weight[target].detach().numpy()
        plain, weighted = np.zeros((5, 4)), np.zeros((5, 4))
        for k in range(3):
            share = sum(w[k] * f[k, i, j] * f[k, i, j] for i in range(5) for j in range(4)) / f[k].sum()
            for i in range(5):
                for j in range(4):
                    plain[i, j] += w[k] * f[k, i, j] ** 2
                    weighted[i, j] += share * f[k, i, j]
        assert np.allclose(hires[n], plain.clip(0), atol=1e-6)
        assert np.allclose(xgrad[n], weighted.clip(0), atol=1e-5)
        cells = f.reshape(3, -1).T
        direction = np.ones(3)
        for _ in range(3000):  # power iteration
            direction = cells.T @ (cells @ direction)
            direction /= np.linalg.norm(direction)
        projected = cells @ direction
        projected = projected if projected.sum() >= 0 else -projected
        assert np.allclose(eigen[n].flatten(), projected.clip(0), atol=1e-5)


def test_behind_a_mean_and_a_linear_layer(small_net, images):
    target = [0, 3, 4]

    def of(kind):
        return kind(small_net).attribute(images, target, output="native")

    assert same(of(HiResCAM) * 64, of(CAM).relu())
    assert same(of(XGradCAM), of(GradCAM), 1e-4)
    assert torch.equal(of(EigenCAM), EigenCAM(small_net).attribute(images, [1, 1, 1], output="native"))
