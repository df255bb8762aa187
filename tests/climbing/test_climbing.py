"""Climbing: steps worked out by hand, a slow loop as an oracle, and properties."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM, AdvCAMError, heads
from advcam_attr.climbing import ClimbState, RestrictHighAttributions, TargetMinusOthers, ThresholdMask, climb, recipes
from advcam_attr.climbing.loop import to_cells, to_grid
from advcam_attr.climbing.views import VIEWS

#: No flips, no stop: every step can be worked out by hand.
PLAIN = recipes.Recipe(objective="minus_top5", regularizers=2.0, steps=10)


def test_golden_steps(tiny):
    """y_0 = 2 mean(red) + 0.5: its gradient is 2/4 on red, so the largest-change step adds xi to red alone."""
    x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])[None]
    recipe = recipes.get(PLAIN, objective="target", regularizers=0, step_rule=0.25, clamp="none")
    steps = list(climb(heads.view(tiny), x, torch.tensor([0]), recipe.plan(), steps=2))
    assert [s.index for s in steps] == [0, 1, 2]
    assert steps[0].maps.tolist() == [[[0.0, 2.0], [4.0, 6.0]]]
    assert steps[1].maps.tolist() == [[[0.5, 2.5], [4.5, 6.5]]]
    assert steps[2].maps.tolist() == [[[1.0, 3.0], [5.0, 7.0]]]
    assert [float(s.objective) for s in steps] == [3.5, 4.0, 4.5]
    assert torch.equal(steps[2].x[0, 0, 1:], x[0, 1:])
    summed = AdvCAM(tiny, recipe=recipe, steps=2).attribute(x, target=0, output="native")
    assert summed.tolist() == [[[[1.5, 7.5], [13.5, 19.5]]]]
    last = AdvCAM(tiny, recipe=recipe, steps=2, aggregate="last").attribute(x, target=0, output="native")
    assert last.tolist() == [[[[1.0, 3.0], [5.0, 7.0]]]]


class RedAndGreen:
    """On the net `tiny`: climbs and restricts its class map, and accumulates the sum of both its channels."""

    taps = ("0",)

    def __call__(self, acts: heads.Activations, target: Tensor) -> Tensor:
        return CAM.maps(acts, target)

    def accumulated(self, acts: heads.Activations, target: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return acts.taps["0"].sum(1)


def test_golden_steps_of_accumulated_maps(tiny):
    """As above, red + green summed: lambda holds the two cells whose *class map* is lit, 2 * 0.1 of the gradient 0.5.

    By the accumulated map, three cells would be lit and would have changed by half as much.
    """
    x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])[None]
    restrict = RestrictHighAttributions(0.1, reduce="sum")
    recipe = recipes.get(PLAIN, objective="target", regularizers=restrict, step_rule=0.25, clamp="none")
    steps = list(climb(heads.view(tiny, taps=["0"]), x, torch.tensor([0]), recipe.plan(RedAndGreen()), steps=2))
    expected = [[1.0, 2.0, 3.0, 4.0], [1.25, 2.25, 3.25, 4.25], [1.5, 2.5, 3.4, 4.4]]
    for step, maps, objective in zip(steps, expected, [3.5, 4.0 - 0.1, 4.4 - 0.16], strict=True):
        assert step.maps.flatten().tolist() == pytest.approx(maps)
        assert float(step.objective) == pytest.approx(objective)
    summed = AdvCAM(tiny, base=RedAndGreen(), recipe=recipe, steps=2).attribute(x, target=0, output="native")
    assert summed.flatten().tolist() == pytest.approx([3.75, 6.75, 9.65, 12.65])
    unclimbed = AdvCAM(tiny, base=RedAndGreen(), recipe=recipe, steps=0).attribute(x, target=0, output="native")
    assert unclimbed.flatten().tolist() == expected[0]


@pytest.mark.parametrize("flip", list(VIEWS))
def test_accumulated_maps_take_no_part_in_the_climb(small_net, images, flip):
    class Accumulates:
        taps = ("3",)

        def __call__(self, acts: heads.Activations, target: Tensor) -> Tensor:
            return CAM.maps(acts, target)

        def accumulated(self, acts: heads.Activations, target: Tensor) -> Tensor:
            return acts.taps["3"].flatten(2).norm(dim=1).unflatten(1, acts.head.grid) * target[:, None, None]

    forwards = []
    handle = small_net[0].register_forward_hook(lambda *_: forwards.append(1))
    classes = [[0, 2], [3, 1], [4, 2]]
    shown, plain = ([], [])
    options = {"recipe": PLAIN, "flip": flip, "steps": 3}
    found = AdvCAM(small_net, base=Accumulates(), **options).attribute_classes(
        images, classes, output="native", on_step=shown.append
    )
    count = len(forwards)
    AdvCAM(small_net, **options).attribute_classes(images, classes, on_step=plain.append)
    handle.remove()
    assert len(forwards) == 2 * count
    for one, other in zip(shown, plain, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.objective, other.objective)
        taps = small_net[:4](one.x.flatten(0, 1)).norm(dim=1).unflatten(0, one.x.shape[:2])
        pair = torch.stack([taps[:, 0], taps[:, -1].flip(-1)])
        merged = taps[:, 0] if flip == "none" else 2 * pair.amin(0) if flip == "pair_agreement" else pair.sum(0)
        target = torch.tensor([c for one_image in classes for c in one_image])
        assert torch.allclose(one.maps, merged * target[:, None, None], rtol=1e-5)
    for i, wanted in enumerate(classes):
        for j, c in enumerate(wanted):
            alone = AdvCAM(small_net, base=Accumulates(), **options).attribute(images[i : i + 1], c, output="native")
            assert torch.allclose(found[i][j : j + 1], alone, rtol=1e-4, atol=1e-5)


def test_maps_and_scales_that_do_not_fit_raise(small_net, images):
    class Wrong(RedAndGreen):
        def accumulated(self, acts: heads.Activations, target: Tensor) -> Tensor:
            return acts.taps["0"]

    with pytest.raises(AdvCAMError, match=r"accumulated map .* shape \(3, 8, 8\), got \(3, 8, 16, 16\)"):
        AdvCAM(small_net, base=Wrong(), recipe=PLAIN).attribute(images, target=1)
    small_net.pretrained_cfg = {"fixed_input_size": True}
    with pytest.raises(ValueError, match="dynamic_img_size"):
        AdvCAM(small_net, recipe=PLAIN, scales=(0.5, 1.0), steps=1).attribute(images, target=1)


def test_golden_backoff(tiny):
    """Every step lowers the target, so each is half as long as the one before; the other row's steps stay."""

    def downhill(state: ClimbState) -> Tensor:
        return state.logits[:, 0, 0] * torch.tensor([-1.0, 1.0])

    recipe = recipes.get(PLAIN, objective=downhill, regularizers=0, step_rule=0.25, clamp="none", backoff=0.5)
    steps = list(climb(heads.view(tiny), torch.zeros(2, 3, 2, 2), torch.tensor([0, 0]), recipe.plan(), steps=4))
    red = torch.stack([s.x[:, 0, 0, 0, 0] for s in steps])
    assert red[:, 0].diff().tolist() == [-0.25, -0.125, -0.0625, -0.03125]
    assert red[:, 1].diff().tolist() == [0.25] * 4
    with pytest.raises(AdvCAMError, match="backoff must be a factor above 0 and at most 1, got 0"):
        recipes.get("auto", backoff=0)


def test_stopped_samples_leave_the_batch(small_net, images):
    """Samples of classes 0, 1 and 3 stop after as many steps; each has two views."""
    advcam = AdvCAM(small_net, recipe=PLAIN, steps=4, flip=True, stop=lambda state: state.index >= state.target)
    sizes = []
    handle = small_net[0].register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    maps = advcam.attribute(images, target=[0, 1, 3])
    handle.remove()
    assert sizes[-4:] == [6, 4, 2, 2]
    for i, c in enumerate([0, 1, 3]):
        assert torch.allclose(maps[i : i + 1], advcam.attribute(images[i : i + 1], target=c), rtol=1e-4, atol=1e-5)


def test_samples_that_stop_do_not_change(small_net, images):
    plan = recipes.get(PLAIN, stop=0.3, flip=False, step_rule=0.02, clamp="none", objective="minus_mean").plan()
    steps = list(climb(heads.view(small_net), images, torch.tensor([1, 2, 3]), plan, steps=40))
    ends = torch.stack([s.climbing for s in steps]).sum(0)
    assert 1 < int(ends.min()) < int(ends.max()) < 41
    assert [s.index for s in steps] == list(range(41))
    for row, end in enumerate(ends.tolist()):
        for step in steps[end:]:
            assert torch.equal(step.x[row], steps[end - 1].x[row])
    options = {"stop": 0.3, "flip": False, "step_rule": 0.02, "clamp": "none", "steps": 40}
    found = AdvCAM(small_net, recipe=PLAIN, objective="minus_mean", **options).attribute(
        images, [1, 2, 3], output="native"
    )[:, 0]
    for row, end in enumerate(ends.tolist()):
        expected = sum(s.maps[row] for s in steps[:end])
        assert torch.allclose(found[row], expected, atol=1e-5 * float(expected.abs().max()))


def slow_climb(net: nn.Module, image: Tensor, c: int, steps: int, lam: float, xi: float, tau: float) -> list[Tensor]:
    """The climb of one image, written out plainly on a net of the fixture's shape."""
    x, maps, first = image[None].clone(), [], None
    low, high = image.amin((1, 2))[None, :, None, None], image.amax((1, 2))[None, :, None, None]
    for _ in range(steps + 1):
        x = x.detach().requires_grad_()
        f = net[:5](x)
        cam = (net[7].weight[c][None, :, None, None] * f).sum(1)
        y = net[7](f.mean((2, 3)))[0]
        first = cam.detach() if first is None else first
        maps.append(cam.detach()[0])
        others = torch.stack([y[k] for k in range(len(y)) if k != c]).sort(descending=True).values[:2].mean()
        mask = (cam > tau * cam.max()).double()
        loss = y[c] - others - lam * (mask * (cam - first).abs()).mean()
        loss.backward()
        x = (x.detach() + xi * x.grad / x.grad.abs().max()).clamp(low, high)
    return maps


def test_the_loop_equals_a_slow_one(small_net, images):
    net, x = small_net.double(), images.double()
    recipe = recipes.get(
        PLAIN, objective=TargetMinusOthers("mean", top_k=2), regularizers=3.0, mask=0.4, step_rule=0.1, clamp="clean"
    )
    found = [s.maps for s in climb(heads.view(net), x, torch.tensor([4, 0, 2]), recipe.plan(), steps=6)]
    for i, c in enumerate([4, 0, 2]):
        expected = slow_climb(net, x[i], c, 6, 3.0, 0.1, 0.4)
        for step, maps in enumerate(expected):
            assert torch.allclose(found[step][i], maps, atol=1e-10), (i, step)


def test_the_target_rises_and_steps_stay_below_their_size(small_net, images):
    recipe = recipes.get(PLAIN, objective="target", regularizers=0, clamp="none", step_rule=0.02)
    steps = list(climb(heads.view(small_net), images, torch.tensor([1, 2, 3]), recipe.plan(), steps=10))
    scores = torch.stack([s.objective for s in steps])
    assert bool((scores[1:] > scores[:-1]).all())
    for before, after in itertools.pairwise(steps):
        assert float((after.x - before.x).abs().max()) <= 0.02 + 1e-6


def test_the_restricting_term_is_zero_at_the_clean_image(small_net, images):
    plain = recipes.get(PLAIN, regularizers=0, clamp="none")
    held = recipes.get(PLAIN, regularizers=1000.0, clamp="none")
    one, other = (
        list(climb(heads.view(small_net), images, torch.tensor([1, 2, 3]), r.plan(), steps=1)) for r in (plain, held)
    )
    assert torch.equal(one[0].objective, other[0].objective)
    assert torch.equal(one[1].x, other[1].x)


def test_the_restricting_term_keeps_activated_cells(small_net, images):
    def growth(weight: float) -> Tensor:
        recipe = recipes.get(PLAIN, objective="target", regularizers=weight, step_rule=0.02)
        steps = list(climb(heads.view(small_net), images, torch.tensor([1, 2, 3]), recipe.plan(), steps=8))
        activated = ThresholdMask(0.5)(steps[0].maps)
        return ((steps[-1].maps - steps[0].maps).abs() * activated).sum((1, 2))

    assert bool((growth(20.0) < growth(0.0)).all())


def test_saliency_joins_the_mask_resized_and_flipped(small_net, images):
    """Seen by a regularizer: with a background on the left half, the mask holds there and nowhere else."""
    seen = []

    def spy(state: ClimbState) -> Tensor:
        seen.append(state.mask)
        return state.maps.sum((1, 2)) * 0

    saliency = torch.ones(32, 32)
    saliency[:, :16] = 0
    for flip in (False, True):
        seen.clear()
        AdvCAM(small_net, recipe=PLAIN, mask="none", regularizers=(spy,), steps=2, flip=flip).attribute(
            images, target=1, saliency=saliency
        )
        assert len(seen) == 3
        for mask in seen:
            assert bool(mask[:, :, :4].all())
            assert not bool(mask[:, :, 4:].any())


def test_the_restricting_term_keeps_the_background(small_net, images):
    saliency = torch.zeros(32, 32)
    saliency[8:24, 8:24] = 1
    outside = to_grid(saliency[None] <= 0.5, (8, 8))[0]
    options = {"objective": "target", "regularizers": 50.0, "mask": "none", "steps": 8, "step_rule": 0.02}
    start = CAM(small_net).attribute(images, target=1, output="native")[:, 0]

    def change(saliency: Tensor | None) -> Tensor:
        last = AdvCAM(small_net, recipe=PLAIN, aggregate="last", **options)
        maps = last.attribute(images, target=1, output="native", saliency=saliency)[:, 0]
        return ((maps - start).abs() * outside).sum((1, 2))

    assert bool((change(saliency) < 0.7 * change(None)).all())


def test_a_flip_pair_is_equivariant(small_net, images):
    attribution = AdvCAM(small_net, recipe=PLAIN, flip=True, steps=4)
    maps = attribution.attribute(images, target=1, output="native")
    mirrored = attribution.attribute(images.flip(-1), target=1, output="native")
    assert torch.allclose(maps, mirrored.flip(-1), atol=1e-4 * float(maps.abs().max()))
    first = next(climb(heads.view(small_net), images, torch.tensor([1, 1, 1]), attribution.recipe.plan(), steps=1))
    cam = CAM(small_net)
    mirror = cam.attribute(images.flip(-1), target=1, output="native").flip(-1)
    assert torch.allclose(first.maps[:, None], cam.attribute(images, target=1, output="native") + mirror, atol=1e-5)


def test_scales_are_summed_on_the_grid_of_the_image(small_net, images):
    both = AdvCAM(small_net, recipe=PLAIN, scales=(1.0, 0.5), steps=2).attribute(images, target=1, output="native")
    whole = AdvCAM(small_net, recipe=PLAIN, steps=2).attribute(images, target=1, output="native")
    halves = F.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    half = AdvCAM(small_net, recipe=PLAIN, steps=2).attribute(halves, target=1, output="native")
    resized = F.interpolate(half, (8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(both, whole + resized, atol=1e-4)


@pytest.mark.parametrize("classes", [[[1, 2], [3, 4], [0, 1]], [[1, 2, 3], [0], [4, 2]], [[0], [1], [2]]])
@pytest.mark.parametrize(("steps", "flip"), [(3, False), (3, True), (0, False)])
def test_classes_of_an_image_share_one_forward_at_zero_steps(small_net, images, classes, steps, flip):
    count = []
    handle = small_net[0].register_forward_hook(lambda _m, i, _o: count.append(len(i[0])))
    attribution = AdvCAM(small_net, recipe=PLAIN, steps=steps, flip=flip)
    found = attribution.attribute_classes(images, classes)
    handle.remove()
    samples = sum(map(len, classes)) if steps else 3
    assert count[2:] == [samples * (1 + flip)] * (steps + 1)  # the first two are the trace and its check
    for i, wanted in enumerate(classes):
        for j, c in enumerate(wanted):
            single = attribution.attribute(images[i : i + 1], target=c)
            assert torch.allclose(found[i][j : j + 1], single, atol=1e-5 * float(single.abs().max()))


def test_attribute_sums_what_climb_yields(small_net, images):
    recipe = recipes.get(PLAIN, scales=(0.5, 1.0), schedule="released", steps=12, flip=True)
    attribution = AdvCAM(small_net, recipe=recipe)
    seen = [(s.scale, s.index, s.steps, s.weight) for s in attribution.climb(images, [1, 2, 3])]
    assert seen == [(0.5, i, 5, 2.0) for i in range(6)] + [(1.0, i, 12, 2.0) for i in range(13)]
    total = torch.zeros(3, 1, 8, 8)
    for step in attribution.climb(images, [1, 2, 3]):
        total += step.weight * F.interpolate(step.maps[:, None], (8, 8), mode="bilinear", align_corners=False)
        assert torch.equal(step.view_maps[:, 0] + step.view_maps[:, 1].flip(-1), step.maps)
    expected = attribution.attribute(images, [1, 2, 3], output="native")
    assert torch.allclose(total, expected, atol=1e-4 * float(expected.abs().max()))


def test_climb_restores_the_model_between_steps(small_net, images):
    small_net.train()
    with torch.inference_mode():
        for step in AdvCAM(small_net, recipe=PLAIN, steps=2).climb(images, 1):
            assert small_net[0].training
            assert torch.is_inference_mode_enabled()
            assert step.maps.shape == (3, 8, 8)


def test_saliency_and_arguments_follow_their_image(images):
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3, 4, 1), nn.Linear(6, 3)

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return self.fc((self.conv(x) * gain[:, None, None, None]).relu().mean((2, 3)))

    torch.manual_seed(0)
    net, gain = Conditional().eval(), torch.tensor([1.0, -2.0, 0.5])
    saliency = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    attribution = AdvCAM(net, recipe=PLAIN, steps=3, flip=True)
    found = attribution.attribute_classes(images, [[0, 1], [2, 0], [1, 2]], gain, saliency=saliency)
    for i, wanted in enumerate([[0, 1], [2, 0], [1, 2]]):
        for j, c in enumerate(wanted):
            single = attribution.attribute(images[i : i + 1], c, gain[i : i + 1], saliency=saliency[i : i + 1])
            assert torch.allclose(found[i][j : j + 1], single, atol=1e-5 * float(single.abs().max()))


def test_no_graph_reaches_the_consumer(small_net, images):
    for step in AdvCAM(small_net, steps=2, stop=None).climb(images, target=[1, 2, 3]):
        assert step.maps.grad_fn is None
        assert step.x.grad_fn is None
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("image_of", [[0, 1], torch.tensor([0, 5]), torch.tensor([-1, 0]), torch.tensor([[0, 1]])])
def test_samples_of_images_that_do_not_exist_are_rejected(small_net, images, image_of):
    with pytest.raises((TypeError, AdvCAMError), match="image_of"):
        next(AdvCAM(small_net).climb(images, target=[0, 1], image_of=image_of))


def test_background_is_counted_over_each_cell():
    """At 500 pixels, 63 cells of 8 reach to 504: the last has 4 pixels, and the border of two cells is at 8i."""
    left = (torch.arange(500) < 400).expand(1, 500, 500)
    assert to_cells(left, (63, 63))[0, 0].tolist() == [True] * 50 + [False] * 13
    assert int(to_grid(left, (63, 63))[0, 0].sum()) == 50
    last = (torch.arange(500) < 496).expand(1, 500, 500)
    assert to_cells(last, (63, 63))[0, 0].tolist() == [True] * 62 + [False], "stretched, the 62nd would be in doubt"
    for grid in ((50, 50), (49, 50), (222, 222)):  # whole cells, and grids that are stretched
        assert torch.equal(to_cells(left, grid), to_grid(left, grid))
    ragged = torch.rand(2, 37, 53, generator=torch.Generator().manual_seed(0)) < 0.5
    found = to_cells(ragged, (5, 7))
    for row in range(5):
        for column in range(7):
            rows = [min(r, 36) for r in range(8 * row, 8 * row + 8)]
            columns = [min(c, 52) for c in range(8 * column, 8 * column + 8)]
            assert torch.equal(found[:, row, column], ragged[:, rows][:, :, columns].float().mean((1, 2)) > 0.5)
