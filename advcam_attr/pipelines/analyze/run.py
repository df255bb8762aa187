"""The paper's analyses: a figure and its numbers each, as files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from advcam_attr.climbing import recipes
from advcam_attr.data.samples import SegmentationData, without_missing
from advcam_attr.files import make_folder, replacing, to_json, write_json
from advcam_attr.pipelines.analyze.images import IMAGE_ANALYSES, ImageOptions, Result, analyze_images, check_options
from advcam_attr.pipelines.analyze.inputs import AnalysisInputs, read_inputs, toy_inputs
from advcam_attr.pipelines.analyze.seeds import SEED_ANALYSES, SeedOptions, SeedRuns, analyze_seeds, check_sweeps
from advcam_attr.pipelines.attribute import Settings, advcam_of
from advcam_attr.pipelines.demo import MEAN, STD, toy_data, toy_net
from advcam_attr.pipelines.maps import MapSettings
from advcam_attr.registry import nearest
from advcam_attr.runs.runtime import choose_device
from advcam_attr.types import AdvCAMError

logger = logging.getLogger(__name__)

#: Figure or table of the paper, and contents, by name.
ANALYSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "amplification": ("Fig. 2", "how much brighter discriminative and other regions become, by step"),
        "landscape": ("Fig. 3", "the classification loss around clean, climbed and attacked images"),
        "saliency": ("Fig. 4", "where the class score looks in the image, by step"),
        "saliency_share": ("Fig. 4", "how many of the image's pixels the class score looks at, by step"),
        "regularizers": ("Figs. 5, 6, 12", "what each regularization does to one image"),
        "seeds": ("Fig. 11", "quality and noise of seeds over T, λ, τ and ξ"),
        "final_map": ("Table XI", "the sum of all maps against the last one"),
        "failures": ("Fig. 13", "the images whose seeds lose most against CAM's"),
        "object_size": ("Fig. 14, Table XIII", "the gain of each class, by the size of its objects"),
        "score_curves": ("Fig. 15", "the pixels' scores of CAM and AdvCAM in decreasing order"),
        "trajectories": ("Fig. 16", "the paths of features during climbs, by t-SNE"),
    }
)


def listing() -> str:
    """Return all analyses, one per line."""
    return "\n".join(
        f"{name:<15}{source:<21}{'images' if name in IMAGE_ANALYSES else 'masks':<8}{text}"
        for name, (source, text) in ANALYSES.items()
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names; ``images`` and ``masks`` stand for all that need images or masks."""
    groups = {"images": tuple(IMAGE_ANALYSES), "masks": tuple(SEED_ANALYSES)}
    names = tuple(dict.fromkeys(name for word in text.split(",") for name in groups.get(word, (word,))))
    for name in names:
        if name not in ANALYSES:
            raise AdvCAMError(f"unknown analysis {name!r}{nearest(name, ANALYSES)}")
    if len({name in IMAGE_ANALYSES for name in names}) > 1:
        raise AdvCAMError(f"{text}: some of these look at images, some at data sets with masks; do them one by one")
    return names


def analyze_files(
    names: Sequence[str], images: Sequence[Path], out: Path, settings: Settings, options: ImageOptions
) -> None:
    """Run some of `IMAGE_ANALYSES` on image files, and write ``NAME.png`` and ``NAME.json``.

    Raises:
        AdvCAMError: an image, a setting or an analysis is invalid; nothing is written then.
    """
    _write_images(names, read_inputs(images, settings), settings, out, options)


def analyze_toy_images(names: Sequence[str], count: int, out: Path, settings: Settings, options: ImageOptions) -> None:
    """Run analyses of toy scenes with the demonstration's net; see `analyze_files`."""
    recipe = advcam_of(nn.Identity(), dataclasses.replace(settings, layer=None)).recipe
    choose_device(settings.device)
    check_options(names, count, recipe.steps, options)  # before the demonstration's net is trained
    _write_images(names, toy_inputs(out / "toy", settings, count), settings, out, options)


def analyze_data(
    names: Sequence[str], net: Any, data: SegmentationData, out: Path, settings: MapSettings, options: SeedOptions
) -> None:
    """Run some of `SEED_ANALYSES` on a data set with masks, and write ``NAME.png``, ``NAME.json`` and the seeds' maps.

    The net's classes are the data's; missing images are left out.

    Raises:
        AdvCAMError: seeds cannot be made, no image has a mask, or none has a class.
    """
    check_sweeps(names, settings, options)
    present, _ = without_missing(data)
    runs = SeedRuns(net, present, settings, options, out)
    about = {"data": f"{data.name} {data.split}", "recipe": recipes.config_dict(runs.recipe), "options": vars(options)}
    _write(analyze_seeds(names, runs), about, out)


def analyze_toy_data(names: Sequence[str], count: int, out: Path, settings: MapSettings, options: SeedOptions) -> None:
    """Run analyses of toy scenes and their masks with the demonstration's net; see `analyze_data`."""
    check_sweeps(names, settings, options)  # before the demonstration's net is trained
    data = toy_data(out / "toy" / "scenes", count)
    analyze_data(names, toy_net(out / "toy"), data, out, dataclasses.replace(settings, mean=MEAN, std=STD), options)


def _write_images(
    names: Sequence[str], inputs: AnalysisInputs, settings: Settings, out: Path, options: ImageOptions
) -> None:
    about = {
        "model": settings.model.spec,
        "base": settings.base,
        "recipe": recipes.config_dict(inputs.advcam.recipe),
        "options": vars(options),
        "rows": len(inputs),
    }
    _write(analyze_images(names, inputs, options), about, out)


def _write(results: Iterable[tuple[str, Result]], about: dict[str, Any], out: Path) -> None:
    for name, result in results:
        make_folder(out)
        with replacing(out / f"{name}.png") as file:
            if hasattr(result.figure, "savefig"):
                result.figure.savefig(file, dpi=110)
            else:
                result.figure.save(file)
        content = {"analysis": name, "of": ANALYSES[name][0], **about, "result": result.numbers}
        write_json(out / f"{name}.json", to_json(content))
        for line in result.lines:
            logger.info(line)
        logger.info(f"{name} ({ANALYSES[name][0]}): {out / name}.png and .json")
