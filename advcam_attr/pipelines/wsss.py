"""A configuration in; the stages of weakly supervised segmentation over one run folder, from classifier to masks, out.

Every stage reads what the one before it has written, tells what it reads and writes, and does nothing again that is
there. The folder of a run:

- ``classifier/``: the trained net, its log and its measures (`advcam_attr.pipelines.classifier`);
- ``seeds/cam/``, ``seeds/advcam/``: localization maps (`advcam_attr.pipelines.seeds`), and their ``evaluation.json``;
- ``refined/cam/``, ``refined/advcam/``: pseudo ground truth, a folder a step (`advcam_attr.pipelines.refine`);
- ``tables.md``: the paper's tables with this run's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advcam_attr.attr.advcam import as_base
from advcam_attr.attr.generators import base_of
from advcam_attr.data.coco import read_coco
from advcam_attr.data.known_classes import read_known_classes
from advcam_attr.data.saliency import SaliencyFolder
from advcam_attr.data.segmentation import SegmentationData, without_missing
from advcam_attr.data.voc import read_voc
from advcam_attr.engine.official import export_maps, import_maps
from advcam_attr.engine.sharding import shard_of
from advcam_attr.engine.store import MapStore
from advcam_attr.files import write_text
from advcam_attr.heads import view
from advcam_attr.metrics.evaluation import SeedEvaluation, compare_best
from advcam_attr.metrics.thresholds import THRESHOLDS
from advcam_attr.networks.cam_file import load_cam_net
from advcam_attr.networks.generators import load_generator
from advcam_attr.networks.resnet_cam import CAMNet, cam_net
from advcam_attr.pipelines.classifier import ClassifierResult, train_classifier
from advcam_attr.pipelines.evaluation import evaluate_masks, evaluate_seeds, write_seed_evaluation
from advcam_attr.pipelines.refine import RefineSummary, refine
from advcam_attr.pipelines.run_folder import same_settings
from advcam_attr.pipelines.seeds import SeedSettings, SeedSummary, make_seeds, seed_store
from advcam_attr.pipelines.wsss_config import DataConfig, NetConfig, WSSSConfig, folder_of, path_of, save_config
from advcam_attr.report.tables import Table, table_i, table_ii, table_ix, table_xi, table_xiii
from advcam_attr.types import AdvCAMError

#: Is told what a stage does, line by line.
Tell = Callable[[str], None]


def train(config: WSSSConfig, tell: Tell = print) -> ClassifierResult:
    """The stage ``classifier``.

    Raises:
        AdvCAMError: the net is a published generator; or as `advcam_attr.pipelines.classifier.train_classifier`.
    """
    if config.net.generator is not None:
        raise AdvCAMError(f"the net is {config.net.generator}'s, which comes trained: go on with the seeds")
    data = read_split(config.data, config.data.train)
    val = None if config.data.val is None else read_split(config.data, config.data.val)
    tell(f"reading {data.root}: {_told(data)}" + ("" if val is None else f" to train on, {_told(val)} to validate on"))
    net = config.net
    known = None if net.known is None else read_known_classes(path_of(net.known), data.classes, net.known_offset)
    model = cam_net(
        net.backbone, len(data.classes), model_args=net.model_args,
        checkpoint=None if net.checkpoint is None else path_of(net.checkpoint), random_weights=net.random_weights,
        stride=net.stride, lowered_by=net.lowered_by, train_from=net.train_from, mean=net.mean, std=net.std,
        seed=net.seed, known=known,
    )  # fmt: skip
    save_config(config)
    return train_classifier(config.classifier, model, data, val, folder_of(config, "classifier"), tell)


def seeds(
    config: WSSSConfig, tell: Tell = print, *, overwrite: bool = False, show_progress: bool = False
) -> list[SeedSummary]:
    """The stage ``seeds``: the maps of every method.

    Raises:
        AdvCAMError: there is no classifier yet; or as `advcam_attr.pipelines.seeds.make_seeds`.
    """
    data = read_split(config.data, config.data.seeds or config.data.train)
    data, missing = without_missing(data)
    tell(f"reading {data.root}: {_told(data)}" + _named_missing(len(missing), missing[0].image if missing else None))
    net, mean, std = seed_net(config, data, tell)
    c = config.seeds
    settings = SeedSettings(
        recipe=c.recipe, overrides=c.overrides, base=base_of(net) if config.net.generator else c.base, scales=c.scales,
        mean=mean, std=std, batch_rows=c.batch_rows, workers=c.workers, device=c.device,
        autocast=None if c.autocast is None else getattr(torch, c.autocast), channels_last=c.channels_last,
        overwrite=overwrite,
    )  # fmt: skip
    save_config(config)
    methods = {method: replace(settings, method=method) for method in c.methods}
    for chosen in methods.values():
        chosen.whole_recipe()
    as_base(settings.base, view(net))
    detector = None if c.saliency is None else SaliencyFolder(path_of(c.saliency))
    summaries = []
    for method, chosen in methods.items():
        chosen = replace(chosen, saliency=detector if method == "advcam" else None)
        out = folder_of(config, "seeds", method)
        tell(f"making {method} seeds in {out}")
        summaries.append(make_seeds(net, data, out, chosen, tell=tell, show_progress=show_progress))
    return summaries


def seed_net(config: WSSSConfig, data: SegmentationData, tell: Tell) -> tuple[nn.Module, Any, Any]:
    """The net that seeds are made with, and its normalisation.

    Raises:
        AdvCAMError: it is not trained yet, or of other classes than the data's.
    """
    if config.net.generator is not None:
        if config.net.checkpoint is None:
            raise AdvCAMError(f"net.generator {config.net.generator!r} needs its authors' file: give net.checkpoint")
        path = path_of(config.net.checkpoint)
        generator = load_generator(config.net.generator, path, tell)
        tell(f"reading {config.net.generator}'s net from {path}")
        return _laid_out(generator, config), generator.mean, generator.std
    path = folder_of(config, "classifier") / "classifier.safetensors"
    if not path.is_file():
        raise AdvCAMError(f"there is no classifier {path}: train it first (advcam wsss classifier)")
    net, classes = load_cam_net(path)
    if classes != data.classes:
        raise AdvCAMError(f"{path} is of {len(classes)} other classes than {data.name}'s {len(data.classes)}")
    tell(f"reading {path}")
    return _laid_out(net, config), net.mean, net.std


def _laid_out(net: CAMNet | nn.Module, config: WSSSConfig) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if config.seeds.channels_last else net


def refine_seeds(config: WSSSConfig, tell: Tell = print) -> dict[str, RefineSummary]:
    """The stage ``refine``: pseudo ground truth of every method's seeds.

    Raises:
        AdvCAMError: no seeds; or as `advcam_attr.pipelines.refine.refine`.
    """
    data, _ = without_missing(read_split(config.data, config.data.seeds or config.data.train))
    settings = replace(
        config.refine,
        irn=replace(config.refine.irn, **_paths(config.refine.irn, "checkpoint", "trained")),
        psa=replace(config.refine.psa, **_paths(config.refine.psa, "checkpoint", "trained")),
        **_paths(config.refine, "saliency"),
    )
    stores = {method: seed_store(folder_of(config, "seeds", method)) for method in config.seeds.methods}
    save_config(config)
    summaries: dict[str, RefineSummary] = {}
    for method, store in stores.items():
        out = folder_of(config, "refined", method)
        tell(f"refining {method} seeds by {settings.method} in {out}")
        summaries[method] = refine(settings, store, data, out, tell)
        tell(str(summaries[method]))
    return summaries


def _paths(settings: Any, *names: str) -> dict[str, Any]:
    """Paths of settings with their variables filled in."""
    given = {name: getattr(settings, name) for name in names}
    return {name: None if value is None else path_of(str(value)) for name, value in given.items()}


def evaluate(config: WSSSConfig, tell: Tell = print) -> dict[str, SeedEvaluation]:
    """The stage ``evaluate``: scores of every method's seeds, and the paper's tables with this run's rows.

    It takes seconds and is done anew each time.

    Returns:
        The evaluation of each method whose seeds are there.

    Raises:
        AdvCAMError: no seeds, or as `advcam_attr.pipelines.evaluation.evaluate_seeds`.
    """
    data = read_split(config.data, config.data.score)
    if config.score.thresholds not in THRESHOLDS:
        raise AdvCAMError(f"score.thresholds is one of {', '.join(THRESHOLDS)}, got {config.score.thresholds!r}")
    found: dict[str, SeedEvaluation] = {}
    for method in config.seeds.methods:
        folder = folder_of(config, "seeds", method)
        tell(f"scoring {folder} on the masks of {_told(data)}")
        found[method] = evaluate_seeds(
            seed_store(folder), data, THRESHOLDS[config.score.thresholds], device=config.score.device,
            allow_missing=config.score.allow_missing,
        )  # fmt: skip
        for id, reason in list(found[method].scope.unmasked.items())[:5]:
            tell(f"left out: {id}, {reason}")
        tell(f"wrote {write_seed_evaluation(found[method], folder)}")
    tables = seed_tables(found, config, {method: refined_iou(config, method, data, tell) for method in found})
    lines = [summary(found)]
    if shard_of().rank == 0:
        path = folder_of(config, "tables.md")
        write_text(path, "\n\n".join([*lines, *(table.markdown() for table in tables)]) + "\n")
        tell(f"wrote {path}")
    for part in (*(table.text() for table in tables), *lines):
        tell("\n" + part)
    return found


def summary(found: Mapping[str, SeedEvaluation]) -> str:
    """Each method's best mean IoU and its threshold, and AdvCAM's gain with a bootstrap interval over images."""
    lines = []
    for method, one in found.items():
        best = one.sweep.best_threshold()
        lines.append(
            f"{_names(found)[method]}: mIoU {100 * one.at(best).scores().mean_iou:.1f} at threshold {best:.2f}"
        )
    if {"cam", "advcam"} <= found.keys():
        gain, low, high = (100 * value for value in compare_best(found["advcam"], found["cam"]))
        lines.append(f"AdvCAM - CAM: {gain:+.1f} (90 % interval over images {low:+.1f} to {high:+.1f})")
    scope = next(iter(found.values())).scope
    return "\n".join([f"Seeds of {scope.data}, {len(scope.ids)} images", *lines])


def refined_iou(
    config: WSSSConfig, method: str, data: SegmentationData, tell: Tell
) -> tuple[float | None, float | None]:
    """The mean IoU of a method's seeds after the CRF and of its pseudo masks, None where there are none."""
    found: list[float | None] = []
    for step in ("seeds_crf", "masks"):
        folder = folder_of(config, "refined", method, step)
        if folder.is_dir():
            tell(f"scoring {folder}")
            evaluation = evaluate_masks(folder, data, allow_missing=config.score.allow_missing)
            found.append(evaluation.scores().mean_iou)
        else:
            found.append(None)
    return found[0], found[1]


def seed_tables(
    found: Mapping[str, SeedEvaluation],
    config: WSSSConfig,
    refined: Mapping[str, tuple[float | None, float | None]],
) -> list[Table]:
    """The paper's tables that seeds and masks fill: I, IX and XI for VOC, II and XIII for COCO.

    Args:
        found: the seeds of each method.
        config: of the run.
        refined: for each method the mean IoU after the CRF and of the masks.
    """
    names = _names(found) | ({"cam": "IRN"} if config.net.backbone == NetConfig.backbone else {})
    cut = {method: one.at() for method, one in found.items()}
    scores = {names[method]: one.scores() for method, one in cut.items()}
    scope = next(iter(found.values())).scope
    source = f"here, {len(scope.ids)} images"
    if config.data.kind == "coco":
        sized = {_names(found)[method]: one.by_size() for method, one in cut.items()}
        both = {names[method]: (scores[names[method]].mean_iou, refined[method][1]) for method in found}
        return [table_ii(both, source), table_xiii(sized, source)]
    each = {names[method]: one.matrix.iou().tolist() for method, one in cut.items()}
    tables = [table_i({names[method]: (scores[names[method]].mean_iou, *refined[method]) for method in found}, source)]
    tables.append(table_ix(each, scope.classes, source))
    if "AdvCAM" in scores:
        design = "last map only" if config.seeds.overrides.get("aggregate") == "last" else "sum over t"
        tables.append(table_xi({design: scores["AdvCAM"]}, source))
    return tables


def _names(found: Mapping[str, Any]) -> dict[str, str]:
    return {method: {"cam": "CAM", "advcam": "AdvCAM"}[method] for method in found}


def export_seeds(seeds: Path, out: Path, dictionary: str, tell: Tell = print) -> None:
    """Write the maps of ``run/seeds/METHOD`` as other projects' ``.npy`` dictionaries.

    Raises:
        AdvCAMError: no seeds there, an unknown dictionary, or a file that cannot be written.
    """
    count = export_maps(seed_store(seeds), out, dictionary)
    tell(f"wrote {count} files of {dictionary.upper()}'s format to {out}")


def import_seeds(folder: Path, seeds: Path, tell: Tell = print) -> None:
    """Read other projects' ``.npy`` dictionaries into ``run/seeds/METHOD``, where `evaluate` finds them.

    Raises:
        AdvCAMError: a file that cannot be used, or ``seeds`` holds maps of another origin.
    """
    digest = same_settings(seeds / "seeds.json", {"imported": folder.resolve().as_posix()})
    count = import_maps(folder, MapStore(seeds / "maps", settings=digest))
    tell(f"read {count} files of {folder} into {seeds}")


def read_split(config: DataConfig, split: str) -> SegmentationData:
    """One split of the configured data set.

    Raises:
        AdvCAMError: it cannot be read; see the data set's reader.
    """
    root = path_of(config.root)
    labels = None if config.labels is None else path_of(config.labels)
    chosen: str | Path = path_of(split) if "/" in split or split.endswith(".txt") else split
    if config.kind == "voc":
        return read_voc(root, chosen, labels=labels)
    masks = config.masks if config.masks in ("auto", "draw") else path_of(config.masks)
    return read_coco(root, split, masks=masks, labels=labels)


def _told(data: SegmentationData) -> str:
    return f"{len(data.samples)} images of {data.name} {data.split}"


def _named_missing(count: int, first: Path | None) -> str:
    return "" if not count else f"; {count} of the list are not there and are left out, e.g. {first}"
