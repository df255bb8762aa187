"""Analyses of what climbing does to images: one figure and its numbers each."""

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
    require_tsne,
    trajectories,
)
from advcam_attr.pipelines.analyze.inputs import AnalysisInputs
from advcam_attr.types import AdvCAMError, ClimbStep

#: Images per figure of image rows.
SHOWN = 4

#: The climb down the class score.
ATTACK = "attack"

#: Figure titles of the plan's variants.
_TITLES = {NONE: "without regularization", BOTH: "with regularization"}


@dataclass(frozen=True)
class ImageOptions:
    """Options of the image analyses.

    Attributes:
        at: steps to show; None takes five, from the clean image to the last.
        perplexity: of t-SNE; None takes 30, or a third of the points if that is less.
        reach: half-width of a loss landscape, in units of the net's input.
        points: grid points of a landscape per axis.
        seed: of t-SNE and random directions.
    """

    at: tuple[int, ...] | None = None
    perplexity: float | None = None
    reach: float = 0.1
    points: int = 11
    seed: int = 0

    def shown(self, steps: int) -> tuple[int, ...]:
        chosen = self.at or tuple(sorted({round(i * steps / 4) for i in range(5)}))
        if min(chosen) < 0 or max(chosen) > steps:
            raise AdvCAMError(f"a climb of {steps} steps has no step {max(chosen, key=abs)}: look at 0 to {steps}")
        return tuple(sorted(set(chosen)))

    def checked_perplexity(self, images: int, steps: int) -> float:
        points = images * (steps + 1)
        return require_perplexity(min(30.0, points / 3) if self.perplexity is None else self.perplexity, images, steps)


@dataclass(frozen=True)
class Result:
    """A figure, its numbers as JSON, and lines to log."""

    figure: Any
    numbers: dict[str, Any]
    lines: tuple[str, ...] = ()


@dataclass
class Climbs:
    """Climbs of a batch, each computed on first use and cached."""

    inputs: AnalysisInputs
    steps: int
    _done: dict[str, tuple[ClimbStep, ...]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[ClimbStep, ...]:
        """Return the steps under a variant of the recipe's plan, or of an attack with the same step rule."""
        if name not in self._done:
            advcam = self.inputs.advcam
            plan = effects.variant(advcam.recipe.plan(advcam.base), NONE if name == ATTACK else name)
            if name == ATTACK:
                plan = replace(plan, objective=Attack(), backoff=1.0)
            self._done[name] = tuple(self.inputs.climb(plan, self.steps))
        return self._done[name]


@dataclass(frozen=True)
class _Analysis:
    """One analysis: ``measure`` a batch, ``finish`` the merged measures; ``limit`` pairs at most, None for all."""

    measure: Callable[[Climbs, ImageOptions], Any]
    finish: Callable[[Any, AnalysisInputs, ImageOptions], Result]
    limit: int | None = None


def check_options(names: Sequence[str], images: int, steps: int, options: ImageOptions) -> None:
    """Raise for options that do not fit so many images and steps, and for packages that are missing."""
    options.shown(steps)
    if "trajectories" in names:
        options.checked_perplexity(images, steps)
        require_tsne()


def analyze_images(names: Sequence[str], inputs: AnalysisInputs, options: ImageOptions) -> Iterator[tuple[str, Result]]:
    """Run some of `IMAGE_ANALYSES`, which share climbs; yield name and result of each after all climbs."""
    if not len(inputs):
        raise AdvCAMError("there is nothing to analyze: no image has a class to climb")
    steps = inputs.advcam.recipe.steps
    check_options(names, len(set(inputs.names)), steps, options)
    if "trajectories" in names:
        best = inputs.best_per_image()
        require_all(best.target, inputs.wanted, [inputs.classes.name(k) for k in inputs.wanted])
    limits = {name: IMAGE_ANALYSES[name].limit or len(inputs) for name in names}
    parts: dict[str, list[Any]] = {name: [] for name in names}
    done = 0
    for batch in inputs.first(max(limits.values())).batches():
        climbs = Climbs(batch, steps)
        for name, limit in limits.items():
            if done < limit:
                parts[name].append(IMAGE_ANALYSES[name].measure(climbs, options))
        done += len(batch)
    for name, limit in limits.items():
        yield name, IMAGE_ANALYSES[name].finish(_merged(parts[name]), inputs.first(limit), options)


def _merged(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {variant: concatenate([part[variant] for part in parts]) for variant in parts[0]}
    return concatenate(parts)


def _no_lines(found: Any) -> tuple[str, ...]:
    return ()


def _per_variant(
    plot: Callable[[Any], Any], lines: Callable[[Any], tuple[str, ...]] = _no_lines
) -> Callable[[Mapping[str, Any], AnalysisInputs, ImageOptions], Result]:
    def finish(found: Mapping[str, Any], inputs: AnalysisInputs, options: ImageOptions) -> Result:
        return Result(plot(found), {variant: one.describe() for variant, one in found.items()}, lines(found))

    return finish


def _amplification(climbs: Climbs, options: ImageOptions) -> dict[str, Amplification]:
    return {title: amplification(climbs.of(name)) for name, title in _TITLES.items()}


def _amplification_lines(found: Mapping[str, Amplification]) -> tuple[str, ...]:
    return tuple(f"{title}: other regions grow by {float(one.growth()[-1]):.2f}" for title, one in found.items())


def _landscape(climbs: Climbs, options: ImageOptions) -> dict[str, Landscape]:
    inputs = climbs.inputs
    ends = {
        "clean image": climbs.of(BOTH)[0].x[:, 0],
        "climbed image": climbs.of(BOTH)[-1].x[:, 0],
        "attacked image": climbs.of(ATTACK)[-1].x[:, 0],
    }
    shape: dict[str, Any] = {"reach": options.reach, "points": options.points, "seed": options.seed}
    return {
        title: landscape(inputs.advcam.view, images, inputs.target, loss=inputs.probability, **shape)
        for title, images in ends.items()
    }


def _saliency(climbs: Climbs, options: ImageOptions) -> InputSaliency:
    shown = options.shown(climbs.steps)
    return input_saliency(climbs.inputs.advcam.view, climbs.of(BOTH), climbs.inputs.target, shown)


def _saliency_result(found: InputSaliency, inputs: AnalysisInputs, options: ImageOptions) -> Result:
    found, classes = found.first(len(inputs)), inputs.class_names()
    about = {"images": list(inputs.names), "classes": classes}
    return Result(plot_input_saliency(found, list(inputs.images), classes), about | found.describe())


def _saliency_share(climbs: Climbs, options: ImageOptions) -> dict[str, SaliencyShares]:
    view, target = climbs.inputs.advcam.view, climbs.inputs.target
    return {title: input_saliency(view, climbs.of(name), target).shares() for name, title in _TITLES.items()}


def _saliency_share_lines(found: Mapping[str, SaliencyShares]) -> tuple[str, ...]:
    return tuple(
        f"{title}: mean share of salient pixels from {100 * float(one.share[:, 0].nanmean()):.1f} % to "
        f"{100 * float(one.share[:, -1].nanmean()):.1f} %"
        for title, one in found.items()
    )


def _regularizers(climbs: Climbs, options: ImageOptions) -> RegularizerEffects:
    return effects.regularizer_effects(
        {variant: climbs.of(variant) for variant in VARIANTS},
        int(climbs.inputs.target[0]),
        options.shown(climbs.steps),
        aggregate=climbs.inputs.advcam.recipe.plan().aggregate,
    )


def _regularizers_result(found: RegularizerEffects, inputs: AnalysisInputs, options: ImageOptions) -> Result:
    name = inputs.class_names()[0]
    figure = plot_regularizer_effects(found, inputs.images[0], name)
    return Result(figure, {"image": inputs.names[0], "class": name} | found.describe())


def _score_curves(climbs: Climbs, options: ImageOptions) -> ScoreCurves:
    height, width = climbs.inputs.x.shape[2:]
    return score_curves(climbs.of(BOTH), (height, width), climbs.inputs.advcam.recipe.plan().aggregate)


def _score_curves_result(found: ScoreCurves, inputs: AnalysisInputs, options: ImageOptions) -> Result:
    return Result(plot_score_curves(found), found.describe())


def _trajectories(climbs: Climbs, options: ImageOptions) -> Trajectories:
    return trajectories(climbs.inputs.advcam.view, climbs.of(BOTH), climbs.inputs.target)


def _trajectories_result(found: Trajectories, inputs: AnalysisInputs, options: ImageOptions) -> Result:
    best = inputs.best_per_image()
    pairs = set(zip(best.names, best.target.tolist(), strict=True))
    chosen = [i for i, pair in enumerate(zip(inputs.names, inputs.target.tolist(), strict=True)) if pair in pairs]
    perplexity = options.checked_perplexity(len(chosen), found.features.shape[1] - 1)
    points = Trajectories(found.features[chosen], found.target[chosen])
    embedding = embed(points, perplexity=perplexity, seed=options.seed)
    names = {int(k): name for k, name in zip(best.target, best.class_names(), strict=True)}
    numbers = {"images": list(best.names), "classes": names} | embedding.describe()
    return Result(plot_trajectories(embedding, names), numbers)


#: The image analyses by name.
IMAGE_ANALYSES: Mapping[str, _Analysis] = MappingProxyType(
    {
        "amplification": _Analysis(_amplification, _per_variant(plot_amplification, _amplification_lines)),
        "landscape": _Analysis(_landscape, _per_variant(plot_landscape)),
        "saliency": _Analysis(_saliency, _saliency_result, SHOWN),
        "saliency_share": _Analysis(_saliency_share, _per_variant(plot_saliency_shares, _saliency_share_lines)),
        "regularizers": _Analysis(_regularizers, _regularizers_result, 1),
        "score_curves": _Analysis(_score_curves, _score_curves_result),
        "trajectories": _Analysis(_trajectories, _trajectories_result),
    }
)
