"""A recipe's name and changes to it in; all that varies in AdvCAM, as one frozen object with its sources, out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from advcam_attr.climbing.objective import OBJECTIVES, RectifiedTargetMinusOthers, Target, TargetMinusOthers
from advcam_attr.climbing.regularizers import MASKS, REGULARIZERS, RestrictHighAttributions, ThresholdMask
from advcam_attr.climbing.state import (
    Aggregate,
    Base,
    Clamp,
    MapTransform,
    Mask,
    Objective,
    Plan,
    Regularizer,
    StepRule,
    Stop,
    Views,
)
from advcam_attr.climbing.steps import (
    CLAMPS,
    STEP_RULES,
    STOPS,
    CleanRange,
    ClippedStep,
    CurrentRange,
    MarginGrowth,
    MaxNormStep,
    NoClamp,
    RawStep,
    never,
)
from advcam_attr.climbing.views import (
    AGGREGATES,
    FLIP_PAIR,
    FLIP_PAIR_BY_SHARE,
    SINGLE,
    TRANSFORMS,
    VIEWS,
    add,
    released,
    signed,
)
from advcam_attr.heads import Activations
from advcam_attr.registry import lookup, nearest, require_callable
from advcam_attr.types import AdvCAMError

#: How many steps a scale takes, and the weight of its maps: (steps, scale) to (steps, weight).
Schedule = Callable[[int, float], tuple[int, float]]


def same_at_all_scales(steps: int, scale: float) -> tuple[int, float]:
    """Every scale takes all steps with weight 1."""
    return steps, 1.0


def released_schedule(steps: int, scale: float) -> tuple[int, float]:
    """The released code's count of maps a scale, and its factor, which it computes at scale 0.5 and keeps for the rest.

    With T = steps + 1 maps: T // 2 maps at scale 0.5 if T > 10 (factor 2), 5 if 6 <= T <= 10 (factor 1), T below
    (factor 1). The factor is the same for all scales of a run, so the maps at 0.5 end with about half the weight.
    """
    count = steps + 1
    factor = 2.0 if count > 10 else 1.0
    if scale != 0.5:
        return steps, factor
    return (count // 2 if count > 10 else 5 if count >= 6 else count) - 1, factor


SCHEDULES: dict[str, Schedule] = {"same": same_at_all_scales, "released": released_schedule}


@dataclass(frozen=True)
class Recipe:
    """All that varies in AdvCAM but the base attribution. Every part takes an object or the name of a known one.

    Attributes:
        name: of the recipe.
        source: where its numbers come from.
        steps: how many steps are taken; the maps of ``steps + 1`` images are aggregated.
        objective: what is climbed; a name of `OBJECTIVES`.
        regularizers: what is subtracted from it; names of `REGULARIZERS`, or a number: λ of the restricting term.
        mask: where maps may not change; a name of `MASKS`, or a number: τ.
        step_rule: from gradient to step; a name of `STEP_RULES`, or a number: ξ of the largest change.
        clamp: the range of the climbed images; a name of `CLAMPS`.
        flip: whether image and mirror image are climbed as one row; a bool or a name of `VIEWS`. With zero steps
            ``True`` has no effect: nothing is climbed, and the map is the base attribution itself.
        scales: sizes at which the image is climbed, as factors; the maps are summed.
        aggregate: how the maps of the steps become one; ``"sum"`` or ``"last"``.
        transform: what is done to a base's maps first; a name of `TRANSFORMS`.
        stop: when a row stops before its last step; a name of `STOPS`, or a number: the growth of the margin.
        backoff: the factor by which a row's steps shrink after one that lowered its target's logit; 1 keeps them.
        schedule: steps and weight of each scale; a name of `SCHEDULES`.
    """

    name: str = "custom"
    source: str = ""
    steps: int = 10
    objective: Objective = Target()
    regularizers: tuple[Regularizer, ...] = ()
    mask: Mask = ThresholdMask()
    step_rule: StepRule = MaxNormStep()
    clamp: Clamp = CleanRange()
    flip: Views = SINGLE
    scales: tuple[float, ...] = (1.0,)
    aggregate: Aggregate = add
    transform: MapTransform = signed
    stop: Stop = never
    backoff: float = 1.0
    schedule: Schedule = same_at_all_scales

    def __post_init__(self) -> None:
        """Coerce names and numbers; the one place where that happens.

        Raises:
            TypeError: a part that is neither a name nor a callable.
            AdvCAMError: an unknown name, or a number out of range.
        """
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given |= {"flip": {False: "none", True: "pair"}.get(given["flip"], given["flip"])}
        for name, table, number in _PARTS:
            object.__setattr__(self, name, _part(given[name], table, name, number))
        terms = given["regularizers"] if isinstance(given["regularizers"], (tuple, list)) else (given["regularizers"],)
        regularizers = (
            _part(term, REGULARIZERS, "regularizer", _restrict) for term in terms if term not in (0, "none")
        )
        object.__setattr__(self, "regularizers", tuple(regularizers))
        object.__setattr__(self, "steps", check_steps(given["steps"]))
        object.__setattr__(self, "scales", _check_scales(given["scales"]))
        if isinstance(self.backoff, bool) or not isinstance(self.backoff, (int, float)) or not 0 < self.backoff <= 1:
            raise AdvCAMError(f"backoff must be a factor above 0 and at most 1, got {self.backoff!r}")
        if not isinstance(self.flip, Views):
            raise TypeError(f"flip must be a bool, a name or Views, got {type(self.flip).__name__} {self.flip!r}")

    def with_(self, **changes: Any) -> Recipe:
        """The recipe with other parts.

        Raises:
            AdvCAMError: a part that does not exist; the nearest are told.
        """
        known = [field.name for field in dataclasses.fields(self) if field.name not in ("name", "source")]
        for name in changes:
            if name not in known:
                raise AdvCAMError(f"unknown option {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, **changes) if changes else self

    def plan(self, base: Base = Activations.class_map, steps: int | None = None) -> Plan:
        """What `advcam_attr.climbing.climb` needs of this recipe.

        Args:
            base: the base attribution; if it has a method ``accumulated``, that gives the maps that are summed.
            steps: in place of the recipe's.
        """
        unclimbed = (self.steps if steps is None else steps) == 0 and self.flip is FLIP_PAIR
        return Plan(
            base=base,
            transform=self.transform,
            objective=self.objective,
            regularizers=self.regularizers,
            mask=self.mask,
            step_rule=self.step_rule,
            clamp=self.clamp,
            views=SINGLE if unclimbed else self.flip,
            stop=self.stop,
            backoff=self.backoff,
            accumulated=getattr(base, "accumulated", None),
        )


def _restrict(weight: float) -> RestrictHighAttributions:
    return RestrictHighAttributions(weight, reduce="mean")


def _part(value: Any, table: Mapping[str, Any], what: str, number: Callable[[float], Any] | None = None) -> Any:
    if number is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(float(value))
    found = lookup(value, table, what)
    return found if isinstance(found, Views) else require_callable(found, what)


#: The parts that a name stands for, the table of their names, and what a number makes of them.
_PARTS: tuple[tuple[str, Mapping[str, Any], Callable[[float], Any] | None], ...] = (
    ("objective", OBJECTIVES, None),
    ("mask", MASKS, ThresholdMask),
    ("step_rule", STEP_RULES, MaxNormStep),
    ("clamp", CLAMPS, None),
    ("flip", VIEWS, None),
    ("aggregate", AGGREGATES, None),
    ("transform", TRANSFORMS, None),
    ("stop", STOPS, MarginGrowth),
    ("schedule", SCHEDULES, None),
)


def _check_scales(scales: Any) -> tuple[float, ...]:
    factors = (scales,) if isinstance(scales, (int, float)) else tuple(scales)
    if not factors or any(isinstance(s, (bool, str)) or not 0 < s < float("inf") for s in factors):
        raise AdvCAMError(f"scales must be positive factors, e.g. (0.5, 1.0), got {scales!r}")
    return tuple(float(s) for s in factors)


def check_steps(steps: Any) -> int:
    """``steps`` if it is a whole number that is not negative.

    Raises:
        TypeError: not an int.
        AdvCAMError: negative.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {type(steps).__name__} {steps!r}")
    if steps < 0:
        raise AdvCAMError(f"steps must not be negative, got {steps}")
    return steps


AUTO = Recipe(
    name="auto",
    source="scale-free; found on one half of CUB boxes and COCO masks, reported on the other: docs/results.md",
    steps=8,
    objective=TargetMinusOthers("mean", strongest=5, guarded=True),
    regularizers=(RestrictHighAttributions(2.0, reduce="mean"),),
    mask=ThresholdMask(0.5),
    step_rule=ClippedStep(0.02, width=3.0),
    flip=FLIP_PAIR,
    stop=MarginGrowth(0.5),
    backoff=0.5,
)

ONE_STEP = dataclasses.replace(
    AUTO,
    name="one_step",
    source=(
        "one long step against the strongest other classes; chosen on one half of the photographs in VOC's layout, "
        "where it gained, and reported on the other, where it did not: docs/results.md"
    ),
    steps=1,
    objective=TargetMinusOthers("mean", strongest=5, weight=2.0, guarded=True),
    step_rule=ClippedStep(0.06, width=1.0),
    stop=never,
)

OFFICIAL = Recipe(
    name="official",
    source="the released code: adv_iter = 27 maps (26 steps are used), xi = 0.08, lambda = 7, tau = 0.5, four scales",
    steps=26,
    objective=RectifiedTargetMinusOthers(),
    regularizers=(RestrictHighAttributions(7.0, reduce="sum"),),
    mask=ThresholdMask(0.5),
    step_rule=MaxNormStep(0.08),
    clamp=CurrentRange(),
    flip=FLIP_PAIR_BY_SHARE,
    scales=(0.5, 1.0, 1.5, 2.0),
    transform=released,
    schedule=released_schedule,
)

OFFICIAL_WRN38 = dataclasses.replace(
    OFFICIAL,
    name="official_wrn38",
    source=(
        "the released loop for the ResNet-38 of SEAM and SC-CAM: T = 8 maps (7 steps are used) and lambda = 2, as the "
        'author remembers (issue 7: "not sure"); the rest as official; then scale 0.5 has 5 maps, at the same weight'
    ),
    steps=7,
    regularizers=(RestrictHighAttributions(2.0, reduce="sum"),),
)

PAPER = Recipe(
    name="paper",
    source="Eqs. 1 to 7 as printed, lambda = 7, tau = 0.5; T = 27 and xi = 0.008 are not legible in every copy",
    steps=27,
    objective=TargetMinusOthers("sum"),
    regularizers=(RestrictHighAttributions(7.0, reduce="sum"),),
    mask=ThresholdMask(0.5),
    step_rule=RawStep(0.008),
    clamp=NoClamp(),
)

WSOL = Recipe(
    name="wsol",
    source=(
        "section 6 (CUB, ImageNet): as for segmentation but for one value, 0.01, whose symbol is not legible and which "
        "is read as lambda; one scale, maps not rectified. Where there are many classes the sum over the others may "
        "drown the target: choose the objective on validation images"
    ),
    steps=26,
    objective=TargetMinusOthers("sum"),
    regularizers=(RestrictHighAttributions(0.01, reduce="sum"),),
    mask=ThresholdMask(0.5),
    step_rule=MaxNormStep(0.08),
    clamp=CurrentRange(),
    flip=FLIP_PAIR,
)

BIRDS = Recipe(
    name="birds",
    source=(
        "for boxes of images that one object fills, where there are many classes: the released step, the five "
        "strongest others in place of the sum, lambda as a mean; chosen by trials that may have seen test images "
        "of CUB: docs/results_localization.md"
    ),
    steps=19,
    objective=TargetMinusOthers("mean", strongest=5),
    regularizers=(RestrictHighAttributions(2.0, reduce="mean"),),
    mask=ThresholdMask(0.5),
    step_rule=MaxNormStep(0.08),
    clamp=CleanRange(),
)

RECIPES = {recipe.name: recipe for recipe in (AUTO, ONE_STEP, OFFICIAL, OFFICIAL_WRN38, PAPER, WSOL, BIRDS)}


def get(recipe: Recipe | str, **changes: Any) -> Recipe:
    """A recipe by name, or itself, with changes.

    Example:
        >>> from advcam_attr.climbing import recipes
        >>> recipes.get("auto", steps=3, step_rule=0.04).step_rule
        MaxNormStep(size=0.04)

    Raises:
        TypeError: neither a name nor a recipe.
        AdvCAMError: an unknown name or part.
    """
    found = lookup(recipe, RECIPES, "recipe")
    if not isinstance(found, Recipe):
        raise TypeError(f"recipe must be a name or a Recipe, got {type(found).__name__}")
    return found.with_(**changes)


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe's parts in words, functions by their names: what a run folder remembers of it.

    Example:
        >>> from advcam_attr.climbing import recipes
        >>> words = recipes.described(recipes.get("auto"))
        >>> words["steps"], words["flip"], words["step_rule"]
        (8, 'pair', 'ClippedStep(size=0.02, width=3.0)')
    """

    def words(value: Any) -> Any:
        if isinstance(value, Views):
            return next((name for name, views in VIEWS.items() if views == value), "custom")
        if isinstance(value, tuple):
            return [words(item) for item in value]
        return value if isinstance(value, int | float | str) else getattr(value, "__name__", repr(value))

    return {f.name: words(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name != "source"}
