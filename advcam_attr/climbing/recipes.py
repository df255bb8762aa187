"""Recipes: every part of AdvCAM that varies, as one frozen object with the source of its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    Schedule,
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
    LinfStep,
    MapDrift,
    MarginGrowth,
    NoClamp,
    RawStep,
)
from advcam_attr.climbing.views import (
    AGGREGATES,
    FLIP_PAIR,
    FLIP_PAIR_AGREEMENT,
    FLIP_PAIR_BY_SHARE,
    SINGLE,
    TRANSFORMS,
    VIEWS,
    rectified,
    signed,
)
from advcam_attr.heads import Activations
from advcam_attr.registry import lookup, nearest, require_callable
from advcam_attr.types import AdvCAMError


def same_at_all_scales(steps: int, scale: float) -> tuple[int, float]:
    """Take all steps at every scale, with weight 1."""
    return steps, 1.0


def released_schedule(steps: int, scale: float) -> tuple[int, float]:
    """Follow the released code, which computes its factor at scale 0.5 and applies it to the other scales.

    With T = steps + 1 maps: T // 2 maps at scale 0.5 if T > 10 (factor 2), 5 if 6 <= T <= 10 (factor 1), T below
    (factor 1). So the maps at 0.5 end with about half the weight.
    """
    count = steps + 1
    factor = 2.0 if count > 10 else 1.0
    if scale != 0.5:
        return steps, factor
    return (count // 2 if count > 10 else 5 if count >= 6 else count) - 1, factor


SCHEDULES: dict[str, Schedule] = {"same": same_at_all_scales, "released": released_schedule}


@dataclass(frozen=True, repr=False)
class Recipe:
    """All that varies in AdvCAM but the base attribution; each part is an object or the name of a registered one.

    Attributes:
        name: of the recipe.
        source: of its numbers.
        steps: gradient steps; the maps of ``steps + 1`` images are aggregated.
        objective: the score that is raised; a name of `OBJECTIVES`.
        regularizers: subtracted from it; names of `REGULARIZERS`, or a number: λ of the restricting term.
        mask: cells that should not change; a name of `MASKS`, or a number: τ.
        step_rule: from gradient to step; a name of `STEP_RULES`, or a number: ξ of `LinfStep`.
        clamp: the range of the perturbed images; a name of `CLAMPS`.
        flip: whether image and mirror image are one sample; a bool or a name of `VIEWS`.
        scales: factors of the image's size; the maps are summed.
        aggregate: of the steps' maps; ``"sum"`` or ``"last"``.
        transform: of the base's maps; a name of `TRANSFORMS`.
        stop: ends a sample before its last step; a name of `STOPS`, a number: the growth of the margin, or None.
        backoff: the factor by which a sample's steps shrink after each that lowered its target's logit.
        schedule: steps and weight of each scale; a name of `SCHEDULES`.

    Example:
        >>> from advcam_attr import Recipe
        >>> recipe = Recipe(mask=0.4, flip=True, step_rule="sign")
        >>> recipe.mask, recipe.plan().step_rule
        (ThresholdMask(threshold=0.4), SignStep(size=0.008))
    """

    name: str = "custom"
    source: str = ""
    steps: int = 10
    objective: Objective | str = Target()
    regularizers: Sequence[Regularizer | str | float] | Regularizer | str | float = ()
    mask: Mask | str | float = ThresholdMask()
    step_rule: StepRule | str | float = LinfStep()
    clamp: Clamp | str = CleanRange()
    flip: Views | str | bool = False
    scales: Iterable[float] | float = (1.0,)
    aggregate: Aggregate | str = "sum"
    transform: MapTransform | str = "signed"
    stop: Stop | str | float | None = None
    backoff: float = 1.0
    schedule: Schedule | str = "same"

    def __post_init__(self) -> None:
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given |= {"flip": {False: "none", True: "pair"}.get(given["flip"], given["flip"])}
        for name, (table, number) in _PARTS.items():
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

    def __repr__(self) -> str:
        def shown(value: Any) -> str:
            if isinstance(value, list):
                return f"[{', '.join(map(shown, value))}]"
            return repr(value) if isinstance(value, str) and value.isidentifier() else str(value)

        return f"Recipe({', '.join(f'{name}={shown(value)}' for name, value in config_dict(self).items())})"

    def with_(self, **changes: Any) -> Recipe:
        """Return the recipe with other parts."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("name", "source")]
        for name in changes:
            if name not in names:
                raise AdvCAMError(f"unknown option {name!r}{nearest(name, names)}")
        return dataclasses.replace(self, **changes) if changes else self

    def unclimbed(self) -> Recipe:
        """Return the recipe of the base attribution itself: no steps, hence no mirror image and no rectification."""
        flip = SINGLE if self.flip in (FLIP_PAIR, FLIP_PAIR_AGREEMENT) else self.flip
        return self.with_(steps=0, flip=flip, transform=signed if self.transform is rectified else self.transform)

    def plan(self, base: Base = Activations.class_map) -> Plan:
        """Return the parts as objects, with the base attribution, as `advcam_attr.climbing.climb` needs them."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del parts["name"], parts["source"]
        return Plan(base=base, accumulated=getattr(base, "accumulated", None), views=parts.pop("flip"), **parts)


def _restrict(weight: float) -> RestrictHighAttributions:
    return RestrictHighAttributions(weight, reduce="mean")


def _part(value: Any, table: Mapping[str, Any], what: str, number: Callable[[float], Any] | None) -> Any:
    if number is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(float(value))
    found = lookup(value, table, what)
    optional = found is None and None in table.values()
    return found if optional or isinstance(found, Views) else require_callable(found, what)


#: The parts that a name stands for: the table of their names, and what a number makes of them.
_PARTS: dict[str, tuple[Mapping[str, Any], Callable[[float], Any] | None]] = {
    "objective": (OBJECTIVES, None),
    "mask": (MASKS, ThresholdMask),
    "step_rule": (STEP_RULES, LinfStep),
    "clamp": (CLAMPS, None),
    "flip": (VIEWS, None),
    "aggregate": (AGGREGATES, None),
    "transform": (TRANSFORMS, None),
    "stop": (STOPS, MarginGrowth),
    "schedule": (SCHEDULES, None),
}


def _check_scales(scales: Any) -> tuple[float, ...]:
    factors = (scales,) if isinstance(scales, (int, float)) else tuple(scales)
    if not factors or any(isinstance(s, (bool, str)) or not 0 < s < float("inf") for s in factors):
        raise AdvCAMError(f"scales must be positive factors, e.g. (0.5, 1.0), got {scales!r}")
    return tuple(float(s) for s in factors)


def check_steps(steps: Any) -> int:
    """Return ``steps`` if it is an int of at least 0."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {type(steps).__name__} {steps!r}")
    if steps < 0:
        raise AdvCAMError(f"steps must not be negative, got {steps}")
    return steps


AUTO = Recipe(
    name="auto",
    source="the released step until the map has changed; chosen on tuning halves: docs/choosing.md",
    steps=5,
    objective=TargetMinusOthers("mean", top_k=5, gate_others=True),
    regularizers=(RestrictHighAttributions(0.005, reduce="sum"),),
    mask=ThresholdMask(0.5),
    step_rule=LinfStep(0.08),
    flip=FLIP_PAIR_AGREEMENT,
    transform="relu",
    stop=MapDrift(0.85),
    backoff=0.5,
)

ONE_STEP = Recipe(
    name="one_step",
    source=(
        "one long step against the highest other classes; chosen on one half of the photographs in VOC's layout, "
        "where it gained, and reported on the other, where it did not: docs/results.md"
    ),
    steps=1,
    objective=TargetMinusOthers("mean", top_k=5, weight=2.0, gate_others=True),
    regularizers=(RestrictHighAttributions(2.0, reduce="mean"),),
    mask=ThresholdMask(0.5),
    step_rule=ClippedStep(0.06, width=1.0),
    flip=FLIP_PAIR,
    backoff=0.5,
)

OFFICIAL = Recipe(
    name="official",
    source="the released code: adv_iter = 27 maps (26 steps are used), xi = 0.08, lambda = 7, tau = 0.5, four scales",
    steps=26,
    objective=RectifiedTargetMinusOthers(),
    regularizers=(RestrictHighAttributions(7.0, reduce="sum"),),
    mask=ThresholdMask(0.5),
    step_rule=LinfStep(0.08),
    clamp=CurrentRange(),
    flip=FLIP_PAIR_BY_SHARE,
    scales=(0.5, 1.0, 1.5, 2.0),
    transform="released",
    schedule="released",
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
    step_rule=LinfStep(0.08),
    clamp=CurrentRange(),
    flip=FLIP_PAIR,
)

RECIPES = {recipe.name: recipe for recipe in (AUTO, ONE_STEP, OFFICIAL, OFFICIAL_WRN38, PAPER, WSOL)}


def get(recipe: Recipe | str, **changes: Any) -> Recipe:
    """Return a recipe by name, or the given one, with changes.

    Example:
        >>> from advcam_attr.climbing import recipes
        >>> recipes.get("auto", steps=3, step_rule=0.04).step_rule
        LinfStep(size=0.04)
    """
    found = lookup(recipe, RECIPES, "recipe")
    if not isinstance(found, Recipe):
        raise TypeError(f"recipe must be a name or a Recipe, got {type(found).__name__}")
    return found.with_(**changes)


def list_recipes() -> list[str]:
    """Return the names of the recipes."""
    return list(RECIPES)


def config_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's parts as JSON values: registered functions by name, other parts by their repr."""

    def named(part: str, value: Any) -> Any:
        if isinstance(value, (int, float, str, type(None))):
            return value
        if isinstance(value, tuple):
            return [named(part, item) for item in value]
        if isinstance(value, Views):
            return next((name for name, views in VIEWS.items() if views == value), "custom")
        table = _PARTS[part][0] if part in _PARTS else {}
        by_name = next((name for name, item in table.items() if item is value and hasattr(item, "__name__")), None)
        return by_name or getattr(value, "__name__", repr(value))

    return {f.name: named(f.name, getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name != "source"}
