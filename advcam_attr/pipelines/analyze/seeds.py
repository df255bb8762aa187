"""Analyses of seeds on a data set with masks: quality by setting, class and image.

Seeds are cached in ``OUT/maps/VARIANT``, one store per number of steps, and shared by all analyses of a folder. All
numbers of steps come from one climb; another λ, τ, ξ or aggregate takes another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from advcam_attr.analysis.class_gains import class_gains, plot_class_gains
from advcam_attr.analysis.failures import Shown, image_gains, plot_failures
from advcam_attr.analysis.regularizer_effects import without_others
from advcam_attr.analysis.seed_curves import SeedCurve, plot_final_map, plot_seed_curves, seed_curve
from advcam_attr.attr.advcam import BASES
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.climbing.regularizers import RestrictHighAttributions, ThresholdMask
from advcam_attr.data.images import read_rgb
from advcam_attr.data.samples import SegmentationData
from advcam_attr.metrics.evaluation import SeedEvaluation
from advcam_attr.pipelines.analyze.images import Result
from advcam_attr.pipelines.evaluate import evaluate_seeds
from advcam_attr.pipelines.maps import MapSettings, seed_store, sweep_seeds
from advcam_attr.refine.seeds import threshold_maps
from advcam_attr.registry import lookup
from advcam_attr.runs.map_store import MapStore
from advcam_attr.tables.segmentation import table_xi, table_xiii
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: Names of the climbs and of their folders.
WITH, WITHOUT, SALIENCY, LAST = "with", "without", "saliency", "last"


@dataclass(frozen=True)
class SeedOptions:
    """Options of the seed analyses.

    Attributes:
        steps: values of T besides 0 and the recipe's; None takes ten or fewer.
        weights: values of λ, the weight of the restricting term.
        thresholds: values of τ, the share of the peak above which maps are restricted.
        sizes: values of ξ, the step size.
        cuts: background thresholds; wider than the released sweeps, so that the best one is not at an end.
        shown: images in the failure gallery.
    """

    steps: tuple[int, ...] | None = None
    weights: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    cuts: tuple[float, ...] = tuple(k / 100 for k in range(5, 96))
    shown: int = 6


class SeedRuns:
    """Evaluations of AdvCAM's seeds under any setting, each computed once; no sample stops early."""

    def __init__(
        self, net: nn.Module, data: SegmentationData, settings: MapSettings, options: SeedOptions, out: Path
    ) -> None:
        self.net, self.data, self.options, self.out = net, data, options, out
        self.detector = settings.saliency
        overrides = {**settings.overrides, "stop": None}
        self.settings = replace(settings, method="advcam", saliency=None, overrides=overrides)
        self.recipe = self.settings.whole_recipe()
        top = self.recipe.steps
        spaced = {round(i * top / min(9, max(top, 1))) for i in range(min(9, max(top, 1)) + 1)}
        self.steps = tuple(sorted({0, top, *(spaced if options.steps is None else options.steps)}))
        self._climbed: set[str] = set()
        self._found: dict[tuple[str, int], SeedEvaluation] = {}

    def evaluation(self, name: str, steps: int | None = None, **changes: Any) -> SeedEvaluation:
        """Return the scores of a climb's seeds after some steps (default: the recipe's), with changes of the recipe."""
        if self.recipe.with_(**changes) == self.recipe and name != SALIENCY:
            name = WITH
        key = name, self.recipe.steps if steps is None else steps
        if key not in self._found:
            if name not in self._climbed:
                self._climb(name, changes)
            self._climbed.add(name)
            self._found[key] = evaluate_seeds(self.store(name, key[1]), self.data, self.options.cuts)
        return self._found[key]

    def store(self, name: str, steps: int) -> MapStore:
        return seed_store(self.out / "maps" / name, steps)

    def both(self) -> tuple[SeedEvaluation, SeedEvaluation]:
        """Return the scores of CAM (AdvCAM of no step) and of AdvCAM."""
        return self.evaluation(WITH, 0), self.evaluation(WITH)

    def source(self) -> str:
        """Return the source column of this run's table rows."""
        scope = self.evaluation(WITH).scope
        return f"here, {len(scope.ids)} images of {scope.data}"

    def _climb(self, name: str, changes: Mapping[str, Any]) -> None:
        settings = replace(
            self.settings,
            overrides={**self.settings.overrides, **changes},
            saliency=self.detector if name == SALIENCY else None,
        )
        steps = self.steps if name in (WITH, WITHOUT, SALIENCY) else (self.recipe.steps,)
        folder = self.out / "maps" / name
        logger.info(f"climbing {len(self.data.samples)} images ({name}) in {folder}")
        summary = sweep_seeds(self.net, self.data, folder, steps, settings)
        if summary.failed:
            id, reason = summary.failed[0]
            raise AdvCAMError(f"{len(summary.failed)} of {summary.images} images have no seeds; {id}: {reason}")


def check_sweeps(names: Sequence[str], settings: MapSettings, options: SeedOptions) -> None:
    """Raise for a base, recipe, device or sweep that cannot be used, before any climb."""
    lookup(settings.base, BASES, "base")
    settings.runtime.torch_device()
    recipe = settings.whole_recipe()
    for values, part in _swept(recipe, options).values() if "seeds" in names else ():
        for value in values:
            try:
                recipe.with_(**part(value))
            except (TypeError, ValueError) as error:
                raise AdvCAMError(str(error)) from error


def analyze_seeds(names: Sequence[str], runs: SeedRuns) -> Iterator[tuple[str, Result]]:
    """Run some of `SEED_ANALYSES`; yield name and result of each."""
    if not any(sample.labels for sample in runs.data.samples):
        raise AdvCAMError(f"no image of {runs.data.name} {runs.data.split} shows a class: there is nothing to climb")
    for name in names:
        yield name, SEED_ANALYSES[name](runs)


def _curves(runs: SeedRuns) -> Result:
    plain = {"regularizers": (), "objective": without_others(runs.recipe.plan().objective)}
    found: dict[str, list[SeedCurve]] = {
        "steps": [
            seed_curve("without regularization", {t: runs.evaluation(WITHOUT, t, **plain) for t in runs.steps}),
            seed_curve("with regularization", {t: runs.evaluation(WITH, t) for t in runs.steps}),
        ]
    }
    if runs.detector is not None:
        by_steps = {t: runs.evaluation(SALIENCY, t) for t in runs.steps}
        found["steps"].append(seed_curve("with regularization and saliency", by_steps))
    for setting, (values, part) in _swept(runs.recipe, runs.options).items():
        if values:
            own = f"with regularization, T = {runs.recipe.steps}"
            evaluations = {v: runs.evaluation(f"{setting}_{v:g}", None, **part(v)) for v in values}
            found[setting] = [seed_curve(own, evaluations)]
    images = len(runs.evaluation(WITH).scope.ids)
    numbers = {setting: [curve.describe() for curve in curves] for setting, curves in found.items()}
    lines = [
        f"{curve.name}: mIoU {100 * curve.mean_iou[0]:.1f} at T = 0, {100 * curve.mean_iou[-1]:.1f} at T = "
        f"{runs.recipe.steps}; noise {100 * curve.noise[0]:.1f} and {100 * curve.noise[-1]:.1f} %"
        for curve in found["steps"]
    ]
    return Result(plot_seed_curves(found, images), {"images": images, **numbers}, tuple(lines))


def _swept(
    recipe: Recipe, options: SeedOptions
) -> dict[str, tuple[tuple[float, ...], Callable[[float], dict[str, Any]]]]:
    def weight(value: float) -> dict[str, Any]:
        terms = recipe.plan().regularizers
        if not any(isinstance(term, RestrictHighAttributions) for term in terms):
            raise AdvCAMError(f"the recipe {recipe.name} has no restricting term, and so no λ; take another recipe")
        changed = (replace(t, weight=value) if isinstance(t, RestrictHighAttributions) else t for t in terms)
        return {"regularizers": tuple(changed)}

    def size(value: float) -> dict[str, Any]:
        rule: Any = recipe.step_rule
        if not hasattr(rule, "size"):
            raise AdvCAMError(f"the step rule {rule!r} has no size, and so no ξ; take another recipe")
        return {"step_rule": replace(rule, size=value)}

    return {
        "lambda": (options.weights, weight),
        "tau": (options.thresholds, lambda value: {"mask": ThresholdMask(value)}),
        "xi": (options.sizes, size),
    }


def _final_map(runs: SeedRuns) -> Result:
    found = {"last map only": runs.evaluation(LAST, None, aggregate="last"), "sum over t": runs.evaluation(WITH)}
    scores = {name: one.at().scores() for name, one in found.items()}
    table = table_xi(scores, runs.source())
    numbers = {name: vars(one) for name, one in scores.items()}
    return Result(plot_final_map(found), numbers, (table.text(),))


def _class_gains(runs: SeedRuns) -> Result:
    cam, advcam = runs.both()
    found = class_gains(cam, advcam)
    name = f"AdvCAM, T={runs.recipe.steps}"
    if isinstance(runs.recipe.mask, ThresholdMask):
        name += f", τ={runs.recipe.mask.threshold:g}"
    table = table_xiii({"CAM": cam.at().by_size(), name: advcam.at().by_size()}, runs.source())
    return Result(plot_class_gains(found), found.describe(), (table.text(),))


def _failures(runs: SeedRuns) -> Result:
    gains, data = image_gains(*runs.both()), runs.data
    samples = {sample.id: sample for sample in data.samples}
    stores = [runs.store(WITH, steps) for steps in (0, runs.recipe.steps)]
    shown = []
    for id, a, b in list(zip(gains.ids, gains.cam, gains.advcam, strict=True))[: runs.options.shown]:
        sample = samples[id]
        maps = [store.read(id) for store in stores]
        seeds = [threshold_maps(m.high_res, m.classes, t).numpy() for m, t in zip(maps, gains.thresholds, strict=True)]
        names = ", ".join(data.classes[k] for k in sample.labels) or "no class"
        caption = f"{id}: {names}; IoU {100 * a:.0f} → {100 * b:.0f}"
        image = np.asarray(read_rgb(sample.image), dtype=np.float64) / 255
        truth = data.mask(sample)
        truth = truth.masked_fill(truth > len(data.classes), 0)  # show void as background
        shown.append(Shown(caption, image, truth.numpy(), maps[0], maps[1], (seeds[0], seeds[1])))
    worse = sum(gain < 0 for gain in gains.gain())
    line = f"{worse} of {len(gains.ids)} images have a worse seed than CAM's, at the best threshold of each"
    return Result(plot_failures(shown), gains.describe(), (line,))


#: The seed analyses by name.
SEED_ANALYSES: Mapping[str, Callable[[SeedRuns], Result]] = MappingProxyType(
    {"seeds": _curves, "final_map": _final_map, "object_size": _class_gains, "failures": _failures}
)
