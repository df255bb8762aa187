"""Inputs and outputs of attributions: targets, batches, shapes, dtypes, saliency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advcam_attr import AdvCAM
from attribution_methods import Counting, same


def test_batched_targets_equal_single_calls(method, small_net, images):
    batch = method(small_net).attribute(images, target=[1, 4, 0])
    singles = [method(small_net).attribute(images[i : i + 1], target=t) for i, t in enumerate([1, 4, 0])]
    assert same(batch, torch.cat(singles))


BAD_TARGETS = [
    (True, TypeError), (None, ValueError), (1.0, TypeError), ("1", TypeError), (5, ValueError), (-6, ValueError),
    ([1, 2], ValueError), (torch.tensor([1.0, 2.0, 3.0]), TypeError), (torch.tensor([True, False, True]), TypeError),
    (torch.eye(5, dtype=torch.long)[:3], ValueError), (torch.tensor([1, 2]), ValueError), ([0, 1, 9], ValueError),
    ([(1, 2), (0, 1), (0, 0)], TypeError), ([True, 1, 2], TypeError), (np.array([0.5, 1, 2]), TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("target", "error"), BAD_TARGETS, ids=[repr(t)[:30] for t, _ in BAD_TARGETS])
def test_bad_targets_are_told_before_any_step(method, small_net, images, target, error):
    counted = Counting(small_net)
    with pytest.raises(error, match="target"):
        method(counted).attribute(images, target=target)
    assert counted.count <= 2  # the trace and its check, no step


GOOD_TARGETS = [
    1, -4, np.int64(1), np.array([1, 1, 1]), torch.tensor(1), torch.tensor([1]), torch.tensor([1, 1, 1]), [1, 1, 1],
    (1, 1, 1), [(1,), (1,), (1,)], [torch.tensor(1), np.int32(1), 1], torch.tensor([1, 1, -4], dtype=torch.int32), (1,),
]  # fmt: skip


@pytest.mark.parametrize("target", GOOD_TARGETS, ids=[repr(t)[:30] for t in GOOD_TARGETS])
def test_all_kinds_of_integers_are_taken(method, small_net, images, target):
    assert torch.equal(method(small_net).attribute(images, target=target), method(small_net).attribute(images, 1))


def test_images_do_not_depend_on_their_batch(method, small_net, images):
    others = torch.cat([images[:1], 50 * images[1:]])
    alone = method(small_net).attribute(images[:1], target=3)
    assert same(method(small_net).attribute(others, target=3)[:1], alone)


def test_three_shapes(method, small_net, images):
    attribution = method(small_net)
    native = attribution.attribute(images, target=1, output="native")
    image = attribution.attribute(images, target=1)
    of_input = attribution.attribute(images, target=1, output="input")
    assert (native.shape, image.shape, of_input.shape) == ((3, 1, 8, 8), (3, 1, 32, 32), (3, 3, 32, 32))
    assert torch.allclose(of_input.sum(1, keepdim=True), image, atol=1e-6)
    with pytest.raises(ValueError, match="output"):
        attribution.attribute(images, target=1, output="map")


def test_the_result_is_contiguous(method, small_net, images):
    small_net = small_net.to(memory_format=torch.channels_last)
    for output in ("image", "native", "input"):
        result = method(small_net).attribute(
            images.contiguous(memory_format=torch.channels_last), target=1, output=output
        )
        assert result.stride() == torch.empty(result.shape).stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_iterates_and_results_are_float32(small_net, images, dtype):
    small_net.to(dtype)
    seen = []
    attribution = AdvCAM(small_net, steps=3)
    result = attribution.attribute(images.to(dtype), target=1, on_step=lambda s: seen.append((s.x.dtype, s.maps.dtype)))
    assert result.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32)}
    assert result.isfinite().all()


def test_autocast(small_net, images):
    exact = AdvCAM(small_net, steps=3).attribute(images, target=1)
    result = AdvCAM(small_net, steps=3, autocast=True).attribute(images, target=1)
    assert result.dtype == torch.float32
    assert F.cosine_similarity(exact.flatten(1), result.flatten(1)).min() > 0.99
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = AdvCAM(small_net, steps=3).attribute(images, target=1)
    assert outside.dtype == torch.float32


def test_float32_images_are_cast_for_a_half_model(method, small_net, images):
    small_net.bfloat16()
    assert method(small_net).attribute(images, target=1).dtype == torch.float32


def test_the_callers_gradient_mode_changes_nothing(method, small_net, images):
    expected = method(small_net).attribute(images, target=1)
    with torch.no_grad():
        assert torch.equal(method(small_net).attribute(images, target=1), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        made_inside = images.clone()
        assert torch.equal(method(small_net).attribute(images, target=1), expected)
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(method(small_net).attribute(made_inside, target=1), expected)


BAD_INPUTS = [
    (lambda x: x[0], ValueError, r"inputs\[None\]"),
    (lambda x: x.flatten(1), ValueError, "N, C, H, W"),
    (lambda x: (x * 100).to(torch.uint8), ValueError, "floating"),
    (lambda x: x[:0], ValueError, "empty"),
    (lambda x: x / 0, ValueError, "NaN"),
    (lambda x: list(x), TypeError, "tensor"),
    (lambda x: x.numpy(), TypeError, "tensor"),
    (lambda x: (x, x), ValueError, "additional_forward_args"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_INPUTS)
def test_inputs_that_cannot_be_used(method, small_net, images, make, error, message):
    with pytest.raises(error, match=message) as caught:
        method(small_net).attribute(make(images), target=1)
    assert "\n" not in str(caught.value)


def test_saliency_has_one_map_or_one_an_image(small_net, images):
    attribution = AdvCAM(small_net, steps=4, stop=None)
    one = (torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    shared = attribution.attribute(images, target=1, saliency=one)
    each = attribution.attribute(images, target=1, saliency=one.expand(3, 1, 32, 32))
    assert torch.equal(shared, each)
    assert not torch.equal(shared, attribution.attribute(images, target=1))
    for bad in (one.expand(2, 32, 32), one[:16], one * 255):
        with pytest.raises(ValueError, match="saliency"):
            attribution.attribute(images, target=1, saliency=bad)
    with pytest.raises(TypeError, match="saliency"):
        attribution.attribute(images, target=1, saliency=one.numpy())


def test_internal_batches_change_nothing(method, small_net, images):
    expected = method(small_net).attribute(images, target=[0, 1, 2])
    for size in (1, 2, 5):
        assert same(method(small_net).attribute(images, target=[0, 1, 2], internal_batch_size=size), expected)
    with pytest.raises(ValueError, match="internal_batch_size"):
        method(small_net).attribute(images, target=0, internal_batch_size=0)
