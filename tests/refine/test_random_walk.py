"""The random walk against a dense matrix and by hand."""

import time

import pytest
import torch
from torch import Tensor

from advcam_attr.refine.pairs import paths
from advcam_attr.refine.random_walk import edge_affinities, edge_walk, random_walk, transition
from advcam_attr.types import AdvCAMError
from dense_walks import dense_edge_walk


def random_edges(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Edges that are mostly weak and now and then strong."""
    generator = torch.Generator().manual_seed(height)
    return torch.rand(height, width, generator=generator, dtype=torch.float64).to(dtype) ** 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-7), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("height", "width"), [(9, 12), (12, 7), (1, 9), (9, 1), (3, 2), (1, 1)])
def test_equals_the_dense_matrix(height, width, dtype, tolerance):
    edge, cam = random_edges(height, width, dtype), torch.rand(3, height, width, dtype=dtype)
    expected = dense_edge_walk(cam.double(), edge.double())
    torch.testing.assert_close(edge_walk(cam, edge).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 64, 256])
def test_the_series_equals_step_by_step(steps):
    cam = torch.rand(2, 20, 24, dtype=torch.float64)
    step = transition(edge_affinities(random_edges(20, 24)))
    rows = cam.flatten(1).T.contiguous()
    for _ in range(steps):
        rows = step(rows)
    torch.testing.assert_close(random_walk(cam, step, steps).flatten(1).T, rows, atol=2e-7, rtol=0)


def test_counts_and_paths():
    """34 and 152 neighbours; a straight path, a diagonal one, and the mirror image of each."""
    assert [len(paths(radius)) for radius in (2, 5, 10)] == [4, 34, 152]
    found = {path[0]: path for path in paths(5)}
    assert found[0, 3] == ((0, 3), (0, 2), (0, 1), (0, 0))
    assert found[1, 1] == ((1, 1), (0, 1), (1, 0), (0, 0))
    assert {(y, -x) for y, x in found[3, 2]} == set(found[3, -2])
    assert all(path[-1] == (0, 0) for path in found.values())


def test_affinities_by_hand():
    """Between two pixels stands the strongest edge of the path, both ends included; none are outside of the grid."""
    edge = torch.tensor([[0.1, 0.5, 0.2, 0.0]])
    affinity = edge_affinities(edge, radius=3)
    ends = [path[0] for path in paths(3)]
    torch.testing.assert_close(affinity[ends.index((0, 1))], torch.tensor([[0.5, 0.5, 0.8, 0.0]]))
    torch.testing.assert_close(affinity[ends.index((0, 2))], torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert int(affinity[2:].count_nonzero()) == 0


def test_two_pixels_by_hand():
    """Affinity a: T = [[1, b], [b, 1]] / (1 + b) with b = a^β, and (1 ± z^t) / 2 with z = (1 - b) / (1 + b)."""
    edge = torch.tensor([[0.0, 0.2]], dtype=torch.float64)
    b = 0.8**3
    z = (1 - b) / (1 + b)
    walked = random_walk(torch.tensor([[[1.0, 0.0]]]).double(), transition(edge_affinities(edge), beta=3), steps=5)
    torch.testing.assert_close(walked.flatten(), torch.tensor([1 + z**5, 1 - z**5]).double() / 2, atol=2e-7, rtol=0)


def test_closed_edges_and_constant_maps():
    edge, cam = torch.zeros(12, 16), torch.zeros(1, 12, 16)
    edge[:, 8] = 1
    cam[:, 3, 3] = 1
    walked = edge_walk(cam, edge)
    assert float(walked[:, :, 8:].abs().max()) == 0
    assert float(walked[:, :, :8].min()) > 0
    ones = torch.ones(1, 20, 30, dtype=torch.float64)
    step = transition(edge_affinities(random_edges(20, 30)))
    torch.testing.assert_close(random_walk(ones, step), ones, atol=2e-7, rtol=0)


def test_classes_walk_alone():
    edge, cam = random_edges(15, 18, torch.float32), torch.rand(4, 15, 18)
    together = edge_walk(cam, edge)
    for k in range(4):
        torch.testing.assert_close(together[k : k + 1], edge_walk(cam[k : k + 1], edge), atol=1e-6, rtol=0)


def test_a_grid_of_128_takes_no_dense_matrix():
    """The bound is loose, for busy machines: the dense computation multiplies a matrix of 16384² eight times."""
    cam, edge = torch.rand(3, 128, 128), random_edges(128, 128, torch.float32)
    start = time.process_time()
    walked = edge_walk(cam, edge)
    assert time.process_time() - start < 3
    step = transition(edge_affinities(edge.double()))
    rows = (cam * (1 - edge)).double().flatten(1).T.contiguous()
    for _ in range(256):
        rows = step(rows)
    torch.testing.assert_close(walked.double().flatten(1).T, rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edge_walk(torch.zeros(2, 4, 5), torch.zeros(5, 4)), "differ in size"),
        (lambda: edge_affinities(torch.full((4, 5), 1.5)), "apply the sigmoid"),
        (lambda: edge_walk(torch.zeros(4, 5), torch.zeros(4, 5)), r"must be \(K, h, w\)"),
        (lambda: edge_affinities(torch.full((4, 5), torch.nan)), "apply the sigmoid"),
        (lambda: transition(torch.zeros(34, 4, 5), radius=4), "radius 4 has 22 neighbours"),
        (lambda: random_walk(torch.zeros(2, 5, 4), transition(torch.zeros(34, 4, 5))), "grid of 4 x 5"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(AdvCAMError, match=message):
        call()
