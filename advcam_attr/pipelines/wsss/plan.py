"""What a run will do, and what it needs for that, before anything is trained or written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advcam_attr.attr.adapters import base_of
from advcam_attr.attr.advcam import BASES
from advcam_attr.pipelines.checks import check_base, check_runtime, check_truth, saliency_folder
from advcam_attr.pipelines.maps import MapSettings
from advcam_attr.pipelines.wsss import classifier, segment
from advcam_attr.pipelines.wsss.affinity import AffinityMethod
from advcam_attr.pipelines.wsss.irn import IRN
from advcam_attr.pipelines.wsss.psa import PSA
from advcam_attr.pipelines.wsss.refine import METHODS
from advcam_attr.pipelines.wsss.run import SECTIONS, Run
from advcam_attr.registry import lookup
from advcam_attr.runs.progress import Progress, maps_progress, masks_progress, training_progress
from advcam_attr.training.train import check_batch
from advcam_attr.types import AdvCAMError


def check_config(run: Run) -> None:
    """Raise for names and parts of recipes that do not exist."""
    config = run.config
    lookup(config.seeds.base, BASES, "base")
    lookup(config.refine.method, METHODS, "refine.method")
    MapSettings(recipe=config.seeds.recipe, overrides=config.seeds.overrides, scales=config.seeds.scales).whole_recipe()


def check_run(run: Run) -> None:
    """Raise for whatever a stage of a whole run could not use: settings, files, data, nets, device and packages."""
    check_config(run)
    check_runtime(run.runtime, run.folder())
    _check_seeds(run)
    _check_refinement(run)
    _check_segmentation(run)
    _check_scores(run)


def progress(run: Run) -> list[Progress]:
    """Return the progress of each stage of a run that has been checked; nothing is written."""
    check_run(run)
    config, data, methods = run.config, run.seeds_data, run.config.seeds.methods
    found: dict[str, list[Progress]] = {stage: [] for stage in SECTIONS}
    if config.net.generator is None:
        steps = len(run.split(config.data.train).samples) // config.classifier.batch * config.classifier.epochs
        found["classifier"].append(training_progress("classifier", run.folder("classifier"), classifier.WEIGHTS, steps))
    for method in methods:
        found["seeds"].append(maps_progress(f"seeds {method}", run.folder("seeds", method, "maps"), data.samples))
    for method in methods:
        folder = run.folder("refined", method, config.refine.final_step)
        found["refine"].append(masks_progress(f"refine {method}", folder, data.samples))
    for method in methods:
        out = run.folder("segmentation", method)
        if config.segmentation.trained is None:
            name, steps = f"segment {method}: training", config.segmentation.steps
            found["segment"].append(training_progress(name, out / segment.FOLDER, segment.WEIGHTS, steps))
        for test in run.predicted_data.values():
            for crf in config.segmentation.crfs:
                folder = segment.predictions_folder(out, test.split, crf)
                found["segment"].append(masks_progress(f"segment {method}: {folder.name}", folder, test.samples))
    return [replace(one, changed=run.changed(stage)) for stage, some in found.items() for one in some]


def _check_seeds(run: Run) -> None:
    config, splits = run.config, run.config.data
    if config.net.generator is None:
        train, val = run.split(splits.train), None if splits.val is None else run.split(splits.val)
        net = classifier.new_net(config.net, train.classes, run.runtime.seed)
        classifier.check_training(config.classifier, net, train, val)
        check_base(config.seeds.base, net)
    else:
        generator = classifier.new_generator(config.net)
        check_base(base_of(generator), generator)
    if not run.seeds_data.samples:
        raise AdvCAMError(f"there is no image of {splits.seeds_split} to make maps of: check data.root and data.seeds")
    if config.seeds.saliency is not None and "advcam" in config.seeds.methods:
        saliency_folder(config.seeds.saliency, run.seeds_data)


def _check_refinement(run: Run) -> None:
    config, data = run.config.refine, run.seeds_data
    methods: tuple[AffinityMethod[Any], ...] = (IRN(config.irn, run.runtime), PSA(config.psa, run.runtime))
    for method in methods:
        if method.name == config.method:
            net = method.make_net()
            if method.config.trained is None:
                method.check(net)
                check_batch(f"refine.{method.name}", len(data.samples), method.config.batch)
    if config.saliency is not None:
        saliency_folder(config.saliency, data)


def _check_segmentation(run: Run) -> None:
    config, data = run.config.segmentation, run.seeds_data
    segment.make_net(config, data.classes, run.runtime.seed)
    if config.trained is None:
        check_batch("segmentation", len(data.samples), config.batch, config.grad_accum)
    if "val" in (tests := run.predicted_data):
        check_truth(tests["val"])


def _check_scores(run: Run) -> None:
    scored = run.split(run.config.data.score)
    check_truth(scored)
    made = {sample.id for sample in run.seeds_data.samples}
    missing = [sample.id for sample in scored.samples if sample.id not in made]
    if missing and not run.config.score.allow_missing:
        raise AdvCAMError(
            f"{len(missing)} of {len(scored.samples)} images of {scored.split} (data.score) are not among those of "
            f"{run.config.data.seeds_split}, of which maps are made, e.g. {missing[0]}; give another data.score, or "
            "--score.allow_missing true"
        )
