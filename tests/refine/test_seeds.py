"""Class maps and seeds from maps at several scales: sizes, sums and thresholds by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advcam_attr.refine.seeds import (
    GridMaps,
    cam_map,
    class_maps,
    high_res_map,
    normalized,
    threshold_maps,
)
from advcam_attr.types import AdvCAMError


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
