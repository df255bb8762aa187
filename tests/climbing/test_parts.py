"""Parts of a climb: golden values, and properties of every registered one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_attr import CAM, AdvCAM, AdvCAMError, CaptumBase
from advcam_attr.climbing import (
    CLAMPS,
    OBJECTIVES,
    STEP_RULES,
    STOPS,
    ClimbState,
    ClippedStep,
    LinfStep,
    MapDrift,
    MarginGrowth,
    RestrictHighAttributions,
    TargetMinusOthers,
    ThresholdMask,
    recipes,
)
from advcam_attr.climbing.views import AGGREGATES, VIEWS

#: No flips, no stop: every step can be worked out by hand.
PLAIN = recipes.Recipe(objective="minus_top5", regularizers=2.0, steps=10)


def test_golden_objectives():
    logits = torch.tensor([[[1.0, 5.0, 2.0, -4.0]], [[0.0, 1.0, 3.0, 2.0]]])
    target = torch.tensor([1, 0])
    assert TargetMinusOthers("sum").of(logits, target).tolist() == [6.0, -6.0]
    assert TargetMinusOthers("mean").of(logits, target).tolist() == pytest.approx([5 + 1 / 3, -2.0])
    assert TargetMinusOthers("mean", top_k=2).of(logits, target).tolist() == [3.5, -2.5]
    assert TargetMinusOthers("mean", top_k=9).of(logits, target).tolist() == pytest.approx([5 + 1 / 3, -2.0])
    assert TargetMinusOthers("sum", classes=(1, 3)).of(logits, target).tolist() == [9.0, -3.0]
    assert TargetMinusOthers("sum", weight=0.5).of(logits, target).tolist() == [5.5, -3.0]
    for bad in ({"reduce": "max"}, {"top_k": 0}):
        with pytest.raises(ValueError, match="must be"):
            TargetMinusOthers(**bad)


def test_golden_mask_and_regularizer():
    maps = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[-1.0, -2.0], [-3.0, -1.0]]])
    mask = ThresholdMask(0.5)(maps)
    assert mask.tolist() == [[[False, False], [True, False]], [[False, False], [False, False]]]
    start = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    state = ClimbState(1, maps, maps, maps, maps, torch.zeros(2), maps, start, mask, None)  # type: ignore[arg-type]
    assert RestrictHighAttributions(2.0, reduce="sum")(state).tolist() == [6.0, 0.0]
    assert RestrictHighAttributions(2.0, reduce="mean")(state).tolist() == [1.5, 0.0]


def test_golden_steps_and_clamps():
    gradient = torch.tensor([1.0, -2.0, 0.0, 4.0]).reshape(1, 1, 1, 2, 2)
    assert STEP_RULES["raw"](gradient, gradient).flatten().tolist() == pytest.approx([0.008, -0.016, 0, 0.032])
    assert LinfStep(0.08)(gradient, gradient).flatten().tolist() == pytest.approx([0.02, -0.04, 0, 0.08])
    assert STEP_RULES["sign"](gradient, gradient).flatten().tolist() == pytest.approx([0.008, -0.008, 0, 0.008])
    assert STEP_RULES["rms"](gradient, gradient).square().mean().sqrt().item() == pytest.approx(0.01)
    assert LinfStep()(torch.zeros_like(gradient), gradient).abs().max() == 0
    clean = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    wide = ClippedStep(0.1, width=0.5)(gradient, 10 * clean[:, :, :1])  # rms 2.29, range 30: full steps from 1.15 on
    assert wide.flatten().tolist() == pytest.approx([3 / 1.14564, -3, 0, 3], rel=1e-4)
    assert ClippedStep()(torch.zeros_like(gradient), clean).abs().max() == 0
    stepped = clean * 3 - 5
    assert CLAMPS["none"](stepped, clean, clean) is stepped
    assert CLAMPS["current"](stepped, clean + 1, clean).flatten().tolist() == [1, 1, 1, 4, 7, 8, 8, 8]
    assert CLAMPS["clean"](stepped, clean + 1, clean).flatten().tolist() == [0, 0, 1, 3, 7, 7, 7, 7]


def test_golden_stop():
    """Margins over the two strongest others: 2 -> 4, 2 -> 2.9, 2 -> 4 with a fallen target, and one from zero."""
    start = torch.tensor([[5.0, 3, 3, 0], [5, 3, 3, 0], [5, 3, 3, 0], [1, 1, 1, -7]])[:, None]
    now = torch.tensor([[6.0, 2, 2, 0], [6, 3.1, 3.1, 0], [4.5, 0, 1, 0], [1.2, 1, 1, -7]])[:, None]
    state = ClimbState(1, now, now, now, now, torch.zeros(4, dtype=torch.long), start, now, now, None)  # type: ignore[arg-type]
    assert MarginGrowth(0.5, top_k=2)(state).tolist() == [True, False, False, True]
    shifted = dataclasses.replace(state, logits=now * 3 + 100, start_logits=start * 3 + 100)
    assert MarginGrowth(0.5, top_k=2)(shifted).tolist() == [True, False, False, True]


def test_golden_stop_by_drift():
    """Cosines 1, 0.8 and 0.6 to the clean map, whatever the maps' scale; an empty map goes on."""
    start = torch.tensor([[[2.0, 0.0]], [[2, 0]], [[2, 0]], [[0, 0]]])
    now = torch.tensor([[[5.0, 0.0]], [[8, 6]], [[3, 4]], [[1, 0]]])
    state = ClimbState(1, now, now, now, now, torch.zeros(4), start, start, now, None)  # type: ignore[arg-type]
    assert MapDrift(0.7)(state).tolist() == [False, False, True, False]
    assert MapDrift(0.85)(state).tolist() == [False, True, True, False]
    with pytest.raises(AdvCAMError, match="between 0 and 1"):
        MapDrift(1.0)


def test_golden_agreement_of_views():
    """Cells 4 and 1 of the image face 2 and 3 of the mirror image."""
    maps = torch.tensor([[[[4.0, 1.0]], [[3.0, 2.0]]]])
    assert VIEWS["pair_agreement"].merge(maps).tolist() == [[[4.0, 2.0]]]
    assert VIEWS["pair"].merge(maps).tolist() == [[[6.0, 4.0]]]


def test_golden_gate_of_other_classes():
    """The target stands in both views of the first row, has fallen in one view of the second."""
    start = torch.tensor([[[5.0, 3.0], [4.0, 1.0]]]).repeat(2, 1, 1)
    now = torch.tensor([[[5.0, 3.0], [6.0, 1.0]], [[4.0, 3.0], [9.0, 1.0]]])
    state = ClimbState(1, now, now, now, now, torch.zeros(2, dtype=torch.long), start, now, now, None)  # type: ignore[arg-type]
    assert TargetMinusOthers("mean", gate_others=True)(state).tolist() == [7.0, 13.0]
    assert TargetMinusOthers("mean")(state).tolist() == [7.0, 9.0]


@pytest.mark.parametrize("part", ["objective", "step_rule", "clamp", "aggregate", "flip", "mask", "stop"])
def test_every_named_part_runs_and_has_a_repr(small_net, images, part):
    from advcam_attr.climbing import MASKS

    tables = {"objective": OBJECTIVES, "step_rule": STEP_RULES, "clamp": CLAMPS}
    tables |= {"aggregate": AGGREGATES, "flip": VIEWS, "mask": MASKS, "stop": STOPS}
    for name in tables[part]:
        maps = AdvCAM(small_net, recipe=PLAIN, steps=2, **{part: name}).attribute(images, target=1)
        assert maps.isfinite().all()
        alone = AdvCAM(small_net, recipe=PLAIN, steps=2, **{part: name}).attribute(images[1:2], target=1)
        assert torch.allclose(maps[1:2], alone, atol=1e-5 * float(maps.abs().max()))
        assert repr(tables[part][name])


def test_users_own_parts_are_callables(small_net, images):
    def entropy(state: ClimbState) -> Tensor:
        return state.logits.softmax(-1).log().mean((1, 2))

    def spread(state: ClimbState) -> Tensor:
        return state.maps.relu().var((1, 2))

    attribution = AdvCAM(
        small_net, recipe=PLAIN, steps=2, objective=entropy, regularizers=(spread, 1.0), mask=lambda maps: maps > 0,
        step_rule=lambda g, clean: 0.01 * g.sign(), clamp=lambda new, old, clean: new.clamp(-3, 3),
        aggregate=lambda total, maps: maps if total is None else torch.maximum(total, maps),
        base=lambda acts, target: acts.features.mean(1),
    )  # fmt: skip
    assert attribution.attribute(images, target=1).isfinite().all()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("objective", lambda state: state.logits.mean(), r"objective .* shape \(3,\), got \(\)"),
        ("objective", lambda state: 3.0, r"objective .* got 3\.0"),
        ("objective", lambda state: state.logits[:, 0, 0].detach(), "no gradient"),
        ("regularizers", lambda state: state.maps, r"regularizer .* shape \(3,\), got \(3, 8, 8\)"),
        ("mask", lambda maps: maps[0] > 0, r"mask .* shape \(3, 8, 8\)"),
        ("base", lambda acts, target: None, r"base .* got None"),
        ("aggregate", lambda total, maps: maps[0], r"aggregate .* shape \(3, 8, 8\)"),
        ("aggregate", lambda total, maps: None, r"aggregate .* got None"),
        ("objective", lambda state: (state.logits[:, 0, 0] - 1e9).log(), "objective .* is NaN or infinite"),
        ("objective", lambda state: state.logits[:, 0, 0] / 0, "objective .* is NaN or infinite"),
        ("scales", (1.0, 100_000.0), r"3200000 x 3200000 pixels is too large: lower scales=\(1.0, 100000.0\)"),
    ],
)
def test_parts_of_the_wrong_shape_are_named(small_net, images, part, value, message):
    with pytest.raises(ValueError, match=message):
        AdvCAM(small_net, recipe=PLAIN, **{part: value}).attribute(images, target=1)


def test_captum_attributions_are_bases(small_net, images):
    from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency

    zero = AdvCAM(small_net, recipe=PLAIN, base=Saliency, steps=0).attribute(images, target=1, output="native")
    expected = Saliency(small_net).attribute(images.clone().requires_grad_(), target=1).abs().sum(1, keepdim=True)
    assert torch.allclose(zero, F.adaptive_avg_pool2d(expected, 8), atol=1e-6)
    for base in (InputXGradient(small_net), CaptumBase(IntegratedGradients(small_net), n_steps=3)):
        assert AdvCAM(small_net, recipe=PLAIN, base=base, steps=2).attribute(images, target=1).isfinite().all()
    layered = AdvCAM(small_net, recipe=PLAIN, layer="4", base=LayerGradCam, steps=0).attribute(
        images, target=1, output="native"
    )
    assert torch.allclose(layered, CAM(small_net).attribute(images, target=1, output="native") / 64, atol=1e-5)
    with pytest.raises(ValueError, match="layer="):
        AdvCAM(small_net, recipe=PLAIN, base=LayerGradCam)


@pytest.mark.parametrize("options", [{"objective": TargetMinusOthers}, {"step_rule": ClippedStep}])
def test_classes_in_place_of_objects_are_rejected(options):
    with pytest.raises(TypeError, match="not the class"):
        recipes.get("auto", **options)


@pytest.mark.parametrize("width", [0.0, -3.0, float("inf")])
def test_widths_of_steps_are_positive(width):
    with pytest.raises(AdvCAMError, match="width"):
        ClippedStep(0.1, width=width)


@pytest.mark.parametrize(
    "options",
    [
        {"step_rule": lambda gradient, clean: gradient[:1]},
        {"step_rule": lambda gradient, clean: None},
        {"clamp": lambda stepped, before, clean: stepped[..., :1]},
        {"stop": lambda state: state.logits > 0},
        {"stop": lambda state: torch.zeros(len(state.target))},
    ],
)
def test_parts_of_other_shapes_are_named(small_net, images, options):
    (name,) = options
    with pytest.raises(AdvCAMError, match=name.replace("_", " ")):
        AdvCAM(small_net, steps=1, **options).attribute(images, target=1)
