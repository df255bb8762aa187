"""Class maps and seeds from maps at several scales: sizes, sums and thresholds by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.refine.seeds import (
    GridMaps,
    cam_map,
    class_maps,
    high_res_map,
    min_max_normalized,
    normalized,
    resized,
    threshold_maps,
    with_mirror,
)
from advcam_attr.types import AdvCAMError, Cells


def test_a_golden_map_of_two_scales():
    # 20 x 32 pixels: 5 x 8 cells of stride 4; 2 x 2 cells of stride 16, resized to 32 x 32 and cropped to 20 rows
    one = torch.tensor([[[1.0, 3.0]]])
    two = torch.tensor([[[4.0], [0.0]]])
    cam = cam_map([one, two], (20, 32))
    assert cam.shape == (1, 5, 8)
    # along 8 columns from two values at 1.75 and 5.75; along 5 rows from two values at 0.75 and 3.25
    columns = torch.tensor([1.0, 1.0, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0])
    rows = torch.tensor([4.0, 3.6, 2.0, 0.4, 0.0])
    torch.testing.assert_close(cam[0], rows[:, None] + columns)
    high = high_res_map([one, two], (20, 32))
    assert high.shape == (1, 20, 32)
    assert high[0, 0, 0] == 5.0
    assert high[0, 0, 31] == 7.0
    # row 19 of 32 is 3.5 of 16 rows below the middle: (24 - 19.5) / 16 of the way back up
    torch.testing.assert_close(high[0, 19, 0], torch.tensor(1.0 + 4.0 * 4.5 / 16))


def test_maps_are_rectified_and_divided_by_their_peak():
    maps = torch.tensor([[[1.0, 2.0]], [[5.0, 10.0]], [[-3.0, -1.0]], [[-1.0, 4.0]]])
    found = normalized(maps)
    wanted = torch.tensor([[[1 / 2.00001, 2 / 2.00001]], [[5 / 10.00001, 10 / 10.00001]], [[0, 0]], [[0, 4 / 4.00001]]])
    torch.testing.assert_close(found, wanted)


def test_class_maps_equal_a_loop_over_classes_and_scales():
    generator = torch.Generator().manual_seed(1)
    size = (45, 70)
    grids = tuple(torch.rand(3, h, w, generator=generator) for h, w in ((3, 5), (2, 3), (5, 7), (6, 9)))
    found = class_maps(GridMaps((0, 4, 9), size, grids))
    for k in range(3):
        small, large = torch.zeros(12, 18), torch.zeros(48, 80)
        for grid in grids:
            small += F.interpolate(grid[k][None, None], (12, 18), mode="bilinear", align_corners=False)[0, 0]
            large += F.interpolate(grid[k][None, None], (48, 80), mode="bilinear", align_corners=False)[0, 0]
        large = large[:45, :70]
        torch.testing.assert_close(found.cam[k], small / (small.max() + 1e-5))
        torch.testing.assert_close(found.high_res[k], large / (large.max() + 1e-5))
    assert found.high_res.is_contiguous()


def test_an_image_without_classes_is_background():
    found = class_maps(GridMaps((), (45, 70), ()))
    assert (found.cam.shape, found.high_res.shape) == ((0, 12, 18), (0, 45, 70))
    assert threshold_maps(found.high_res, (), 0.2).tolist() == [[0] * 70] * 45


def test_threshold_maps_equals_the_released_evaluation():
    maps = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(2))
    keys = np.array([1, 7, 19])
    for threshold in (0.15, 0.5, 0.9):
        padded = np.pad(maps.numpy(), ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
        wanted = np.pad(keys + 1, (1, 0), mode="constant")[np.argmax(padded, axis=0)]
        found = threshold_maps(maps, (1, 7, 19), threshold)
        assert found.dtype == torch.uint8
        assert (found.numpy() == wanted).all()
    tie = torch.tensor([[[0.5, 0.7]], [[0.5, 0.7]]])
    assert threshold_maps(tie, (3, 8), 0.5).tolist() == [[0, 4]], "the background wins, then the first class"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: threshold_maps(torch.rand(2, 3, 3), (1,), 0.2), "one for each"),
        (lambda: threshold_maps(torch.rand(1, 3, 3), (254,), 0.2), "8 bits"),
        (lambda: cam_map([], (3, 3)), "at least one scale"),
    ],
)
def test_bad_input_raises(call, word):
    with pytest.raises(AdvCAMError, match=word):
        call()


def blobs(rows: torch.Tensor, columns: torch.Tensor, seed: int) -> torch.Tensor:
    """Two smooth objects at any places of an image of 375 x 500: ideal maps, wherever they are read."""
    places = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack(
        [
            torch.exp(-(((rows[:, None] - 375 * y) / (24 + 40 * a)) ** 2) - ((columns - 500 * x) / (24 + 40 * b)) ** 2)
            for y, x, a, b in places.tolist()
        ]
    ).float()


def ceiling(side: int, centre: float, cells: tuple[Cells, ...]) -> float:
    """The mean IoU in percent of seeds at 0.3 of ideal maps, read at the centres of cells of 375 x 500 pixels."""
    matrix = ConfusionMatrix(3)
    for seed in range(5):
        truth = threshold_maps(normalized(blobs(torch.arange(375.0), torch.arange(500.0), seed)), (0, 1), 0.3)
        h, w = -(-375 // side), -(-500 // side)
        grid = blobs(centre + side * torch.arange(h), centre + side * torch.arange(w), seed)
        matrix.update(threshold_maps(normalized(high_res_map([grid], (375, 500), cells)), (0, 1), 0.3), truth)
    return 100 * float(matrix.iou().mean())


@pytest.mark.parametrize(
    ("side", "centre", "before", "least"),
    [
        (8, 3.5, (85, 92), 99),
        (8, 0, (75, 86), 99),
        (16, 7.5, (95, 99), 95),
        (16, 0, (75, 86), 95),
        (32, 0, (60, 75), 85),
    ],
)
def test_ideal_maps_lie_where_their_cells_are(side, centre, before, least):
    own = ceiling(side, centre, (Cells((centre, centre), (side, side)),))
    released = ceiling(side, centre, ())
    assert own > least
    assert before[0] < released < before[1]
    assert own > released - 1e-3


def test_blocks_equal_a_resize_to_whole_cells():
    grid = torch.rand(2, 7, 10, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(grid[None], (56, 80), mode="bilinear", align_corners=False)[0]
    blocks = (Cells((3.5, 3.5), (8, 8)),)
    torch.testing.assert_close(high_res_map([grid], (53, 77), blocks), whole[:, :53, :77])
    quarter = whole[:, :56].unflatten(1, (14, 4)).unflatten(3, (20, 4))[:, :, 1:3, :, 1:3].mean((2, 4))
    torch.testing.assert_close(cam_map([grid], (53, 77), blocks), quarter[:, :14], rtol=1e-5, atol=1e-6)


def test_scales_are_summed_over_the_same_pixels():
    """A ramp along the columns has the same values at all scales and in its mirror image."""
    width, wanted = 100, torch.arange(100.0)
    for scale in (0.5, 1.5):
        scaled = round(width * scale)
        cells = Cells((0, 3), (8, 8))
        columns = -(-scaled // 8)
        at = resized(cells, (10, scaled), (10, width))
        centres = at.offset[1] + at.stride[1] * torch.arange(columns)
        torch.testing.assert_close(centres, (3 + 8 * torch.arange(columns) + 0.5) / scale - 0.5)
        inner = (wanted > centres[0]) & (wanted < centres[-1])
        torch.testing.assert_close(high_res_map([centres[None, None]], (1, width), (at,))[0, 0][inner], wanted[inner])
        both = with_mirror(cells, scaled, columns)
        mirrored = scaled - 1 - (3.0 + 8 * torch.arange(columns)).flip(0)
        mean = (3.0 + 8 * torch.arange(columns) + mirrored) / 2
        torch.testing.assert_close(both.offset[1] + both.stride[1] * torch.arange(columns), mean)
        assert (both.offset[0], both.stride) == (0, (8, 8))


def test_min_max_normalisation_equals_the_steps_of_seam():
    maps = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[1] += 5  # nowhere negative: its smallest value ends below 0
    maps[2] = -1  # nowhere positive
    expected = maps.numpy().copy()
    expected[expected < 0] = 0
    high, low = expected.max((1, 2), keepdims=True), expected.min((1, 2), keepdims=True)
    expected[expected < low + 1e-5] = 0
    expected = (expected - low - 1e-5) / (high - low + 1e-5)
    found = min_max_normalized(maps)
    assert np.allclose(found.numpy(), expected.clip(0), atol=1e-12)
    assert found.amax((1, 2)).tolist() == pytest.approx([1, 1, 0], abs=1e-4)
    assert expected[1].min() < -0.3
    for threshold in (0, 0.2):  # labels are those of the values below 0, which SEAM writes
        labels = threshold_maps(torch.from_numpy(expected), (0, 1, 2), threshold)
        assert torch.equal(threshold_maps(found, (0, 1, 2), threshold), labels)
    one = GridMaps((0, 4, 9), (45, 70), tuple(torch.rand(3, 6, 9) + 1 for _ in range(2)), normalization="seam")
    summed = high_res_map(one.grids, one.size)
    assert torch.equal(class_maps(one).high_res, min_max_normalized(summed))
    assert not torch.allclose(class_maps(one).high_res, normalized(summed), atol=0.2)
