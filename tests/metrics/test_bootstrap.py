"""Bootstrap intervals against resampling in loops, and against the truth."""

import pytest
import torch

from advcam_attr.metrics.bootstrap import bootstrap, paired_bootstrap
from advcam_attr.metrics.segmentation import marginals, mean_iou
from advcam_attr.types import AdvCAMError


@pytest.fixture
def images():
    """The confusion matrices of two methods on 30 images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 40, (2, 30, 3, 3), generator=generator) + 30 * torch.eye(3).long()


def resampled(matrices, draws):
    """The mean IoU of each draw."""
    values = []
    for draw in draws:
        total = sum(matrices[i].double() for i in draw)
        values.append(sum(total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3)) / 3)
    return torch.tensor(values)


def test_against_loops(images):
    generator = torch.Generator().manual_seed(7)
    draws = torch.randint(30, (50, 30), generator=generator).tolist()
    one, two = (resampled(matrices, draws) for matrices in images)
    ends = torch.tensor([0.1, 0.9], dtype=torch.float64)
    counts = marginals(images)
    found = bootstrap(counts[0], mean_iou, samples=50, level=0.8, seed=7)
    assert found == pytest.approx((float(resampled(images[0], [range(30)])), *one.quantile(ends).tolist()), abs=1e-12)
    difference = paired_bootstrap(counts[0], counts[1], mean_iou, samples=50, level=0.8, seed=7)
    assert difference[1:] == pytest.approx((one - two).quantile(ends).tolist(), abs=1e-12)
    assert paired_bootstrap(counts[0], counts[0], mean_iou, samples=20) == (0, 0, 0)


def test_intervals_cover_the_truth():
    """Of 200 data sets whose images have a known share of hits, about nine in ten intervals hold it."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for seed in range(200):
        hits = torch.distributions.Binomial(20, torch.rand(60, generator=generator)).sample().long()
        counts = torch.stack([hits, torch.full((60,), 20)], 1)
        found = bootstrap(counts, lambda pool: pool[:, 0] / pool[:, 1], samples=200, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 165 <= covered <= 195


def test_the_random_state_is_left_alone(images):
    before = torch.get_rng_state()
    first, second = (bootstrap(marginals(images[0]), mean_iou, samples=20) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first == second
    assert first.low < first.value < first.high


@pytest.mark.parametrize(("count", "options"), [(30, {"samples": 0}), (30, {"level": 1.0}), (0, {})])
def test_bad_input_raises(images, count, options):
    with pytest.raises(AdvCAMError, match="a bootstrap needs"):
        bootstrap(images[0, :count], mean_iou, **options)
    with pytest.raises(AdvCAMError, match="got 30 and 29"):
        paired_bootstrap(images[0], images[1, 1:], mean_iou)
