"""The permutohedral filter against sums over all pairs and a lattice in a dict."""

import math

import pytest
import torch

from advcam_attr.refine.permutohedral import build
from advcam_attr.types import AdvCAMError


def points(count: int, dimensions: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * spread


def filter_by_dict(features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Splat, blur and slice as in the paper of 2010: vertices are tuples, one point at a time."""
    dimensions = features.shape[1]
    order = dimensions + 1
    deviation = torch.tensor(math.sqrt(2 / 3) * order, dtype=torch.float32).item()
    simplices = []
    for feature in features.tolist():
        scaled = [
            f * torch.tensor(deviation / math.sqrt((i + 1) * (i + 2)), dtype=torch.float32).item()
            for i, f in enumerate(feature)
        ]
        x = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(order)]
        base = [round(v / order) * order for v in x]
        wrong = sum(base) // order
        by_offset = sorted(range(order), key=lambda i: base[i] - x[i])
        for i in by_offset[order - wrong :] if wrong > 0 else by_offset[:-wrong] if wrong < 0 else []:
            base[i] -= order if wrong > 0 else -order
        offsets = [v - b for v, b in zip(x, base, strict=True)]
        ranked = sorted(range(order), key=lambda i: -offsets[i])
        simplex = []
        for k in range(order):
            vertex = tuple(
                base[i] + k - (order if place > dimensions - k else 0)
                for place, i in sorted(enumerate(ranked), key=lambda pair: pair[1])
            )
            if k == 0:
                weight = 1 + (offsets[ranked[-1]] - offsets[ranked[0]]) / order
            else:
                weight = (offsets[ranked[dimensions - k]] - offsets[ranked[order - k]]) / order
            simplex.append((vertex, weight))
        simplices.append(simplex)
    table = {vertex: torch.zeros_like(values[0]) for simplex in simplices for vertex, _ in simplex}
    for simplex, value in zip(simplices, values, strict=True):
        for vertex, weight in simplex:
            table[vertex] = table[vertex] + weight * value
    for j in range(order):
        up = {vertex: tuple(c + 1 - (order if i == j else 0) for i, c in enumerate(vertex)) for vertex in table}
        down = {vertex: tuple(c - 1 + (order if i == j else 0) for i, c in enumerate(vertex)) for vertex in table}
        zero = torch.zeros_like(values[0])
        table = {v: table[v] + 0.5 * (table.get(up[v], zero) + table.get(down[v], zero)) for v in table}
    rows = [sum(weight * table[vertex] for vertex, weight in simplex) for simplex in simplices]
    return torch.stack(rows) / (1 + 2.0**-dimensions)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_filter_equals_a_lattice_in_a_dict(dimensions):
    features, values = points(60, dimensions), torch.rand(60, 3, dtype=torch.float64)
    torch.testing.assert_close(
        build(features[None]).filter(values), filter_by_dict(features, values), atol=1e-12, rtol=0
    )


def test_one_point_alone_keeps_its_value_after_normalisation():
    lattice = build(torch.tensor([[[0.0, 0.0]]])).normalised()
    assert lattice.filter(torch.tensor([[3.0]])).item() == pytest.approx(3.0, abs=1e-6)


def test_one_dimension_by_hand():
    """A point on every vertex. Both directions of D = 1 are the line itself: [1/2 1 1/2] twice, over 1 + 1/2."""
    step = math.sqrt(3) / 2
    lattice = build(torch.arange(9, dtype=torch.float64)[None, :, None] * step)
    impulse = torch.zeros(9, 1, dtype=torch.float64)
    impulse[4] = 6
    expected = torch.tensor([0, 0, 1, 4, 6, 4, 1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(lattice.filter(impulse).flatten(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dimensions", "error"), [(1, 0.03), (2, 0.04), (3, 0.05), (5, 0.06)])
def test_filter_approximates_the_sum_over_all_pairs(dimensions, error):
    """Many points, so that few vertices are missing: what is left is the blur's shape, but for a gain that
    normalisation takes out."""
    features = points(6000, dimensions, spread=0.7)
    values = torch.rand(6000, 1, dtype=torch.float64)
    exact = torch.exp(-0.5 * torch.cdist(features[:300], features) ** 2) @ values
    filtered = build(features[None]).filter(values)[:300]
    gain = (exact * filtered).sum() / exact.square().sum()
    assert (filtered / gain - exact).norm() / exact.norm() < error


def test_batches_and_the_order_of_points_do_not_matter():
    features, values = torch.stack([points(50, 3), points(50, 3) * 1.5]), torch.rand(100, 2, dtype=torch.float64)
    singles = [build(f[None]).normalised().filter(v) for f, v in zip(features, values.split(50), strict=True)]
    found = build(features).normalised().filter(values)
    torch.testing.assert_close(found, torch.cat(singles), atol=1e-12, rtol=0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = build(features[:1, order]).normalised().filter(values[order])
    torch.testing.assert_close(shuffled, found[order], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("features", "word"),
    [
        (torch.tensor([[[math.nan]]]), "finite"),
        (torch.zeros(1, 0, 2), "not empty"),
        (torch.tensor([[0.0] * 5, [1e6] * 5])[None], "too many standard deviations"),
    ],
)
def test_bad_features_raise(features, word):
    with pytest.raises(AdvCAMError, match=word):
        build(features)
