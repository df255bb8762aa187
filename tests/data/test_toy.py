"""Toy scenes: reproducible, with masks that fit, and bodies whose hue is no sure sign of their class."""

import numpy as np
import pytest
import torch

from advcam_attr.data.toy import BODY, CLASS_NAMES, HEAD, make_scenes
from advcam_attr.types import AdvCAMError


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(40, size=64, seed=7)


def test_shapes_ranges_and_parts(scenes):
    assert scenes.images.shape == (40, 3, 64, 64)
    assert scenes.images.dtype == torch.float32
    assert 0 <= scenes.images.min() <= scenes.images.max() <= 1
    for mask, labels in zip(scenes.masks, scenes.labels, strict=True):
        assert {int(k) - 1 for k in mask.unique() if k > 0} == set(labels.nonzero()[:, 0].tolist())
    assert scenes.labels.shape == (40, len(CLASS_NAMES))
    assert scenes.labels.any(1).all()
    assert (scenes.labels.sum(1) > 1).any(), "some scenes must hold several classes"
    assert scenes.labels.any(0).all(), "every class must occur"
    assert ((scenes.parts > 0) == (scenes.masks > 0)).all()
    assert 2 * (scenes.parts == HEAD).sum() < (scenes.parts == BODY).sum()


def test_scenes_do_not_depend_on_their_number_or_random_state():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    few, more = make_scenes(2, size=48, seed=5), make_scenes(3, size=48, seed=5)
    torch.testing.assert_close(few.images, more.images[:2], rtol=0, atol=0)
    assert not torch.equal(few.images, make_scenes(2, size=48, seed=6).images)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_bodies_of_a_class_share_a_hue_only_roughly(scenes):
    """The mean colour of a body is nearest to its own class's more often than by chance, and often wrong."""
    colours, classes = [], []
    for image, mask, parts in zip(scenes.images, scenes.masks, scenes.parts, strict=True):
        for label in mask[parts == BODY].unique().tolist():
            colour = image[:, (mask == label) & (parts == BODY)].mean(1)
            colours.append(colour / colour.mean())
            classes.append(label)
    points, owners = torch.stack(colours), torch.tensor(classes)
    means = torch.stack([points[owners == k + 1].mean(0) for k in range(len(CLASS_NAMES))])
    right = (torch.cdist(points, means).argmin(1) + 1 == owners).float().mean()
    assert 1.5 / len(CLASS_NAMES) < right < 0.99


@pytest.mark.parametrize(("count", "size"), [(0, 64), (1, 32)])
def test_bad_sizes(count, size):
    with pytest.raises(AdvCAMError, match=f"count={count} and size={size}"):
        make_scenes(count, size=size)
