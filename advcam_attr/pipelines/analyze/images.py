"""Rows of images and classes in; the figures and numbers of what climbs do to them, out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from advcam_attr.analysis import regularizer_effects as effects
from advcam_attr.analysis.amplification import Amplification, amplification, plot_amplification
from advcam_attr.analysis.input_saliency import (
    InputSaliency,
    SaliencyShares,
    input_saliency,
    plot_input_saliency,
    plot_saliency_shares,
)
from advcam_attr.analysis.landscape import Attack, Landscape, landscape, plot_landscape
from advcam_attr.analysis.regularizer_effects import BOTH, NONE, VARIANTS, RegularizerEffects, plot_regularizer_effects
from advcam_attr.analysis.samples import concatenate
from advcam_attr.analysis.score_curves import ScoreCurves, plot_score_curves, score_curves
from advcam_attr.analysis.trajectories import (
    Trajectories,
    embed,
    plot_trajectories,
    require_all,
    require_perplexity,
    trajectories,
)
from advcam_attr.pipelines.analyze.inputs import Subjects, only_of
from advcam_attr.types import AdvCAMError, ClimbStep

#: More images than these are not shown in a picture of rows of images.
SHOWN = 4

#: The climb that goes down.
ATTACK = "attack"

#: How a plan's variant is called in figures.
_TITLES = {NONE: "without regularization", BOTH: "with regularization"}


@dataclass(frozen=True)
class ImageOptions:
    """What the analyses of images leave open.

    Attributes:
        at: the steps whose pictures are shown; None takes five, from the clean image to the last.
        perplexity: of t-SNE; None takes 30, or a third of the points where these are fewer than 90.
        reach: how far a loss landscape goes, in units of the net's input.
        points: how many points it has on each axis.
        seed: of t-SNE and of random directions.
    """

    at: tuple[int, ...] | None = None
    perplexity: float | None = None
    reach: float = 0.1
    points: int = 11
    seed: int = 0

    def shown(self, steps: int) -> tuple[int, ...]:
        """The steps that are shown of a climb.

        Raises:
            AdvCAMError: the climb has no such step.
        """
        chosen = self.at or tuple(sorted({round(i * steps / 4) for i in range(5)}))
        if min(chosen) < 0 or max(chosen) > steps:
            raise AdvCAMError(f"a climb of {steps} steps has no step {max(chosen, key=abs)}: look at 0 to {steps}")
        return tuple(sorted(set(chosen)))


@dataclass(frozen=True)
class Result:
    """A figure and its numbers.

    Attributes:
        drawing: what can be saved as a picture.
        numbers: as JSON has them.
        lines: what there is to tell.
    """

    drawing: Any
    numbers: dict[str, Any]
    lines: tuple[str, ...] = ()


@dataclass
class Climbs:
    """Climbs of some rows, each done when it is first asked for, and then kept.

    Attributes:
        subjects: the rows.
        steps: how many steps.
    """

    subjects: Subjects
    steps: int
    _done: dict[str, tuple[ClimbStep, ...]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[ClimbStep, ...]:
        """The steps under a variant of the recipe's plan, or of an attack by the same step rule."""
        if name not in self._done:
            advcam = self.subjects.advcam
            plan = effects.variant(advcam.recipe.plan(advcam.base), NONE if name == ATTACK else name)
            if name == ATTACK:
                plan = replace(plan, objective=Attack(), backoff=1.0)
            self._done[name] = tuple(self.subjects.walk(plan, self.steps))
        return self._done[name]


@dataclass(frozen=True)
class _Analysis:
    """One analysis.

    Attributes:
        part: of one batch, the first so many rows of which count.
        finish: the result, of all parts put together.
        rows: how many rows it looks at; None takes all.
    """

    part: Callable[[Climbs, ImageOptions, int], Any]
    finish: Callable[[Any, Subjects, ImageOptions], Result]
    rows: int | None = None


def analyze_images(names: Sequence[str], subjects: Subjects, options: ImageOptions) -> Iterator[tuple[str, Result]]:
    """Do analyses of images; those that need the same climb share it.

    Args:
        names: of `IMAGE_ANALYSES`.
        subjects: the rows.
        options: what is left open.

    Yields:
        Name and result, once all climbs are done.

    Raises:
        AdvCAMError: an analysis cannot be made of these rows.
    """
    if not len(subjects):
        raise AdvCAMError("there is nothing to analyze: no image has a class to climb")
    steps = subjects.advcam.recipe.steps
    options.shown(steps)
    if "trajectories" in names:
        _perplexity(options, len(set(subjects.names)), steps)
        chosen = only_of(subjects)
        require_all(chosen.target, subjects.wanted, [subjects.classes.name(k) for k in subjects.wanted])
    limits = [IMAGE_ANALYSES[name].rows or len(subjects) for name in names]
    parts: dict[str, list[Any]] = {name: [] for name in names}
    done = 0
    for batch in subjects.first(max(limits)).batches():
        climbs = Climbs(batch, steps)
        for name, limit in zip(names, limits, strict=True):
            if done < limit:
                parts[name].append(IMAGE_ANALYSES[name].part(climbs, options, min(len(batch), limit - done)))
        done += len(batch)
    for name, limit in zip(names, limits, strict=True):
        yield name, IMAGE_ANALYSES[name].finish(_together(parts[name]), subjects.first(limit), options)


def _together(parts: Sequence[Any]) -> Any:
    """The parts of all batches as one; of several variants, each by itself."""
    if isinstance(parts[0], Mapping):
        return {variant: concatenate([part[variant] for part in parts]) for variant in parts[0]}
    return concatenate(parts)


def _described(found: Mapping[str, Any]) -> dict[str, Any]:
    return {variant: one.describe() for variant, one in found.items()}


def _amplification(climbs: Climbs, options: ImageOptions, rows: int) -> dict[str, Amplification]:
    return {title: amplification(climbs.of(name)) for name, title in _TITLES.items()}


def _amplification_result(found: dict[str, Amplification], subjects: Subjects, options: ImageOptions) -> Result:
    growth = [
        f"{title}: other regions grow {float(one.growth()[-1]):.2f} times as much" for title, one in found.items()
    ]
    return Result(plot_amplification(found), _described(found), tuple(growth))


def _landscape(climbs: Climbs, options: ImageOptions, rows: int) -> dict[str, Landscape]:
    subjects = climbs.subjects
    ends = {
        "clean image": climbs.of(BOTH)[0].x[:, 0],
        "climbed image": climbs.of(BOTH)[-1].x[:, 0],
        "attacked image": climbs.of(ATTACK)[-1].x[:, 0],
    }
    return {
        title: landscape(
            subjects.advcam.view, images, subjects.target, loss=subjects.probability, reach=options.reach,
            points=options.points, seed=options.seed,
        )
        for title, images in ends.items()
    }  # fmt: skip


def _landscape_result(found: dict[str, Landscape], subjects: Subjects, options: ImageOptions) -> Result:
    return Result(plot_landscape(found), _described(found))


def _saliency(climbs: Climbs, options: ImageOptions, rows: int) -> InputSaliency:
    shown = options.shown(climbs.steps)
    return input_saliency(climbs.subjects.advcam.view, climbs.of(BOTH), climbs.subjects.target, shown).first(rows)


def _saliency_result(found: InputSaliency, subjects: Subjects, options: ImageOptions) -> Result:
    rows = {"images": list(subjects.names), "classes": subjects.class_names()}
    drawing = plot_input_saliency(found, list(subjects.pictures), subjects.class_names())
    return Result(drawing, rows | found.describe())


def _saliency_share(climbs: Climbs, options: ImageOptions, rows: int) -> dict[str, SaliencyShares]:
    view, target = climbs.subjects.advcam.view, climbs.subjects.target
    return {title: input_saliency(view, climbs.of(name), target).shares() for name, title in _TITLES.items()}


def _saliency_share_result(found: dict[str, SaliencyShares], subjects: Subjects, options: ImageOptions) -> Result:
    told = [
        f"{title}: the share of pixels goes from {100 * float(one.share[:, 0].nanmean()):.1f} % to "
        f"{100 * float(one.share[:, -1].nanmean()):.1f} % on average"
        for title, one in found.items()
    ]
    return Result(plot_saliency_shares(found), _described(found), tuple(told))


def _regularizers(climbs: Climbs, options: ImageOptions, rows: int) -> RegularizerEffects:
    return effects.regularizer_effects(
        {variant: climbs.of(variant) for variant in VARIANTS},
        int(climbs.subjects.target[0]),
        options.shown(climbs.steps),
        aggregate=climbs.subjects.advcam.recipe.aggregate,
    )


def _regularizers_result(found: RegularizerEffects, subjects: Subjects, options: ImageOptions) -> Result:
    name = subjects.class_names()[0]
    drawing = plot_regularizer_effects(found, subjects.pictures[0], name)
    return Result(drawing, {"image": subjects.names[0], "class": name} | found.describe())


def _score_curves(climbs: Climbs, options: ImageOptions, rows: int) -> ScoreCurves:
    x = climbs.subjects.x
    return score_curves(climbs.of(BOTH), (x.shape[2], x.shape[3]), climbs.subjects.advcam.recipe.aggregate)


def _score_curves_result(found: ScoreCurves, subjects: Subjects, options: ImageOptions) -> Result:
    return Result(plot_score_curves(found), found.describe())


def _trajectories(climbs: Climbs, options: ImageOptions, rows: int) -> Trajectories:
    return trajectories(climbs.subjects.advcam.view, climbs.of(BOTH), climbs.subjects.target)


def _trajectories_result(found: Trajectories, subjects: Subjects, options: ImageOptions) -> Result:
    chosen = only_of(subjects)
    keys = set(chosen.keys())
    rows = [
        n for n, (name, k) in enumerate(zip(subjects.names, subjects.target, strict=True)) if (name, int(k)) in keys
    ]
    perplexity = _perplexity(options, len(rows), found.features.shape[1] - 1)
    embedding = embed(Trajectories(found.features[rows], found.target[rows]), perplexity=perplexity, seed=options.seed)
    names = {int(k): name for k, name in zip(chosen.target, chosen.class_names(), strict=True)}
    numbers = {"images": list(chosen.names), "classes": names} | embedding.describe()
    return Result(plot_trajectories(embedding, names), numbers)


def _perplexity(options: ImageOptions, images: int, steps: int) -> float:
    """The perplexity, refused where there are too few points for it."""
    points = images * (steps + 1)
    return require_perplexity(
        min(30.0, points / 3) if options.perplexity is None else options.perplexity, images, steps
    )


#: The analyses of images, by name.
IMAGE_ANALYSES: Mapping[str, _Analysis] = MappingProxyType(
    {
        "amplification": _Analysis(_amplification, _amplification_result),
        "landscape": _Analysis(_landscape, _landscape_result),
        "saliency": _Analysis(_saliency, _saliency_result, SHOWN),
        "saliency_share": _Analysis(_saliency_share, _saliency_share_result),
        "regularizers": _Analysis(_regularizers, _regularizers_result, 1),
        "score_curves": _Analysis(_score_curves, _score_curves_result),
        "trajectories": _Analysis(_trajectories, _trajectories_result),
    }
)
