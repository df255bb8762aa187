"""Attribution of image files: maps, overlays and scores of AdvCAM, one set of files per image."""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from advcam_attr import __version__
from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.attr.attribution import finish, to_size
from advcam_attr.climbing import recipes
from advcam_attr.climbing.loop import totals
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.images import is_image, read_rgb
from advcam_attr.files import digest, make_folder, remove_leftovers, replacing, write_bytes, write_json
from advcam_attr.heads import Head
from advcam_attr.networks.loaded_model import LoadedModel, seen_part
from advcam_attr.pipelines.model import ModelChoice, head_at
from advcam_attr.pipelines.targets import Classes, TopK, resolve
from advcam_attr.runs.provenance import Job, planned
from advcam_attr.runs.runtime import choose_device
from advcam_attr.tensor_files import dump_tensors
from advcam_attr.types import AdvCAMError
from advcam_attr.viz.overlay import Box, heat_over, overlay, panels, short_name

_BASE_TITLES = {
    "cam": "CAM", "grad_cam": "Grad-CAM", "grad_cam++": "Grad-CAM++", "layer_cam": "LayerCAM", "hires_cam": "HiResCAM",
    "xgrad_cam": "XGrad-CAM", "eigen_cam": "Eigen-CAM",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How images are attributed.

    Attributes:
        model: the classifier.
        targets: ``"top3"``, indices or names; each image is attributed to all of them.
        base, recipe: names.
        overrides: parts of the recipe by name, and AdvCAM's ``autocast`` and ``channels_last``.
        layer: the module whose output is mapped; None finds it.
        probability: the function from logits to probabilities.
        saliency: folder of a detector's images, bright in the foreground, named as the images are.
        device: ``"auto"`` takes a GPU if there is one.
        batch_size: samples (images times targets) climbed at once.
        overwrite: whether to recompute existing results.
    """

    model: ModelChoice
    targets: tuple[str, ...] = ("top1",)
    base: str = "cam"
    recipe: str = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    probability: Literal["softmax", "sigmoid"] = "softmax"
    saliency: Path | None = None
    device: str = "auto"
    batch_size: int = 8
    overwrite: bool = False


@dataclass(frozen=True)
class ScaleScores:
    """Logit and probability at each step of one scale, the clean image first."""

    scale: float
    logit: tuple[float, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class of an image, one entry per scale, and the names of its pictures.

    Attributes:
        overlay: the model's view, its base map and AdvCAM side by side.
        photograph: the whole photograph, at its own size, with AdvCAM over it.
    """

    index: int
    name: str
    overlay: str
    photograph: str
    scores: tuple[ScaleScores, ...]


@dataclass(frozen=True)
class ImageResult:
    """The outcome for one image: written with its classes, kept (up to date already), or failed with an error."""

    image: Path
    status: Literal["written", "kept", "failed"]
    classes: tuple[ClassScores, ...] = ()
    error: str = ""


def attribute_images(images: Sequence[Path], out: Path, settings: Settings) -> Iterator[ImageResult]:
    """Attribute image files; write files of each into a folder.

    They are ``NAME.CLASS.png`` (side by side), ``NAME.CLASS.overlay.jpg`` (AdvCAM over the whole photograph, at its own
    size; beyond the crop that the model saw there is no tint), ``NAME.safetensors`` and ``NAME.json``. NAME is the
    file's stem, after its folder where two images share the stem. The safetensors file holds ``advcam`` and
    ``base`` (step 0 alone), raw and signed, each ``(T, H, W)`` in the frame of the model's input, their classes
    ``targets``, ``(T,)``, and ``steps``, the sums after each of S steps on the map's own grid, ``(T, S + 1, h, w)``, at
    the scale nearest 1. Images that are up to date with these settings are skipped.

    Args:
        images: the files; see `advcam_attr.data.images.expand_images`.
        out: the folder; created with the first result.
        settings: model, targets and recipe.

    Yields:
        One result per image, those that are up to date first. An image that cannot be used does not stop the others.

    Raises:
        AdvCAMError: the settings cannot be used, or the folder holds results of other settings.
    """
    config, jobs, device = prepared(images, out, settings)
    remove_leftovers(out)
    yield from (ImageResult(job.image, "kept") for job in jobs if job.kept)
    if not all(job.kept for job in jobs):
        loaded = settings.model.load()
        loaded.model.to(device)
        advcam = advcam_of(loaded.model, settings)
        yield from _Run(loaded, advcam, settings, config, device, out).results(jobs)


def prepared(images: Sequence[Path], out: Path, settings: Settings) -> tuple[dict[str, Any], list[Job], torch.device]:
    """Check settings and folder before the model is loaded; return what results depend on, the jobs, and the device."""
    if settings.batch_size < 1:
        raise AdvCAMError(f"the batch size must be at least 1, got {settings.batch_size}")
    if settings.saliency is not None and not settings.saliency.is_dir():
        raise AdvCAMError(f"no such folder of saliency maps: {settings.saliency}")
    if out.exists() and not out.is_dir():
        raise AdvCAMError(f"the results need a folder, but {out} is a file; choose another --out")
    device = choose_device(settings.device)
    config = _config(settings, advcam_of(nn.Identity(), dataclasses.replace(settings, layer=None)).recipe)
    return config, planned(images, out, config, overwrite=settings.overwrite), device


def advcam_of(model: nn.Module, settings: Settings) -> AdvCAM:
    execution = {name: settings.overrides.get(name, False) for name in ("autocast", "channels_last")}
    changes = {name: value for name, value in settings.overrides.items() if name not in execution}
    try:
        recipe = recipes.get(settings.recipe, **changes)
        return AdvCAM(model, settings.layer, base=settings.base, recipe=recipe, **execution)
    except (TypeError, ValueError) as error:
        raise AdvCAMError(str(error)) from error


def _config(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    """All but the image that results depend on, as JSON values."""
    model = dataclasses.asdict(settings.model)
    for name in ("checkpoint", "labels"):
        if model[name] is not None and Path(model[name]).is_file():
            model[name] = f"{Path(model[name]).name} ({digest(Path(model[name]))})"
    config = {
        "version": __version__,
        **{f"model.{name}": value for name, value in model.items()},
        "targets": settings.targets,
        "base": settings.base,
        "layer": settings.layer,
        **{f"recipe.{name}": value for name, value in recipes.config_dict(recipe).items()},
        **{name: settings.overrides.get(name, False) for name in ("autocast", "channels_last")},
        "probability": settings.probability,
        "saliency": settings.saliency and settings.saliency.resolve().as_posix(),
    }
    return dict(json.loads(json.dumps(config, default=str)))


@dataclass(frozen=True)
class _Ready:
    """An image ready to climb: ``(3, H, W)``, its classes, and its saliency map ``(H, W)``, if any."""

    job: Job
    photograph: Image.Image
    x: Tensor
    targets: list[int]
    saliency: Tensor | None


@dataclass(frozen=True)
class _Maps:
    """The maps of one image's T classes.

    Attributes:
        advcam, base: ``(T, H, W)``.
        scores: of each class, one entry per scale.
        steps: the sums after each of S steps at the scale nearest 1, ``(T, S + 1, h, w)``.
    """

    advcam: Tensor
    base: Tensor
    scores: list[tuple[ScaleScores, ...]]
    steps: Tensor


@dataclass(frozen=True)
class _Run:
    """One run of a loaded model over a list of images; ``parts`` has what the model sees of images by their size."""

    loaded: LoadedModel
    advcam: AdvCAM
    settings: Settings
    config: Mapping[str, Any]
    device: torch.device
    out: Path
    parts: dict[tuple[int, int], Box | None] = field(default_factory=dict)

    def results(self, jobs: Sequence[Job]) -> Iterator[ImageResult]:
        """Batch all images alike, whichever are kept: a map's last bits depend on its batch."""
        batch: list[_Ready | Job] = []
        total, sides = 0, (0, 0)
        for job in jobs:
            one: _Ready | Job | ImageResult = job if job.kept else self._ready(job)
            if isinstance(one, ImageResult):
                yield one
                continue
            count, *size = job.kept or (len(one.targets), *one.x.shape[1:])  # type: ignore[union-attr]
            if batch and (total + count > self.settings.batch_size or (*size,) != sides):
                yield from self._finish(batch)
                batch, total = [], 0
            batch, total, sides = [*batch, one], total + count, (size[0], size[1])
        if batch:
            yield from self._finish(batch)

    def _ready(self, job: Job) -> _Ready | ImageResult:
        try:
            photograph = read_rgb(job.image)
            x, saliency = self._read(job.image, photograph)
        except AdvCAMError as error:
            return ImageResult(job.image, "failed", error=str(error))
        try:
            classes = self._classes(x)
        except AdvCAMError as error:
            return self._failed(job, error)
        return _Ready(job, photograph, x, self._targets(classes, x), saliency)

    def _failed(self, job: Job, error: AdvCAMError) -> ImageResult:
        """The failure of one image; of all, if the model sees all at one size."""
        if self.loaded.preprocessing.size is not None:
            raise error
        return ImageResult(job.image, "failed", error=f"{job.image}: {error}")

    def _read(self, image: Path, pixels: Image.Image) -> tuple[Tensor, Tensor | None]:
        x = self.loaded.preprocess(pixels)
        if self.settings.saliency is None:
            return x.to(self.device), None
        found = [p for p in sorted(self.settings.saliency.glob(f"{glob.escape(image.stem)}.*")) if is_image(p)]
        if not found:
            raise AdvCAMError(f"no saliency map for {image} in {self.settings.saliency}")
        saliency = read_rgb(found[0]).resize(pixels.size)
        return x.to(self.device), self.loaded.display(self.loaded.preprocess(saliency)).mean(0).to(self.device)

    def _classes(self, x: Tensor) -> Classes:
        return Classes(self._head(x).classes, self.loaded.class_names)

    def _head(self, x: Tensor) -> Head:
        return head_at(self.advcam.view, x, self.loaded.name, class_weights=self.advcam.needs_class_weights)

    def _targets(self, classes: Classes, x: Tensor) -> list[int]:
        targets = [classes.parse(target) for target in self.settings.targets]
        if not any(isinstance(target, TopK) for target in targets):
            return resolve(targets, None)
        with torch.no_grad():
            return resolve(targets, self.advcam.view(x[None]).logits[0])

    def _finish(self, planned: Sequence[_Ready | Job]) -> Iterator[ImageResult]:
        if all(isinstance(one, Job) for one in planned):
            return
        readied = (self._ready(one) if isinstance(one, Job) else one for one in planned)
        batch = [ready for ready in readied if isinstance(ready, _Ready)]
        try:
            found = self._climb(batch)
        except AdvCAMError as error:
            yield from (self._failed(ready.job, error) for ready in batch if not ready.job.kept)
            return
        yield from (self._write(*both) for both in zip(batch, found, strict=True) if not both[0].job.kept)

    def _climb(self, batch: Sequence[_Ready]) -> list[_Maps]:
        x = torch.stack([ready.x for ready in batch])
        detected = [ready.saliency for ready in batch if ready.saliency is not None]
        target = [c for ready in batch for c in ready.targets]
        image_of = torch.tensor([n for n, ready in enumerate(batch) for _ in ready.targets], device=self.device)
        recipe, grid = self.advcam.recipe, self._head(x[0]).grid
        plan = recipe.plan()
        nearest_to_one = min(range(len(plan.scales)), key=lambda i: abs(plan.scales[i] - 1))
        base = torch.cat(self.advcam.attribute_classes(x, [ready.targets for ready in batch], steps=0))[:, 0].cpu()
        advcam = torch.zeros(())
        sums: list[Tensor] = []
        track: list[Tensor] = []
        scores: list[list[ScaleScores]] = [[] for _ in target]
        climbed = self.advcam.climb(x, target, saliency=torch.stack(detected) if detected else None, image_of=image_of)
        for step, total in totals(climbed, plan.aggregate):
            logits = step.logits[:, 0].cpu()  # the mirror image comes second
            likely = logits.softmax(1) if self.settings.probability == "softmax" else logits.sigmoid()
            track.append(torch.stack([v[range(len(target)), target] for v in (logits, likely)], 1))
            if len(scores[0]) == nearest_to_one:
                sums.append(total.cpu())
            if step.index == step.steps:
                advcam = advcam + step.weight * to_size(total, grid).cpu()
                for each, values in zip(scores, torch.stack(track, 2).tolist(), strict=True):
                    each.append(ScaleScores(step.scale, *(tuple(round(v, 6) for v in some) for some in values)))
                track = []
        counts = [len(ready.targets) for ready in batch]
        full = finish(advcam, x, "image", False)[:, 0].split(counts), base.split(counts)
        each_scores = iter(tuple(one) for one in scores)
        return [
            _Maps(a, b, list(islice(each_scores, len(a))), steps)
            for a, b, steps in zip(*full, torch.stack(sums, 1).split(counts), strict=True)
        ]

    def _write(self, ready: _Ready, maps: _Maps) -> ImageResult:
        """Write the files of one image, the JSON last."""
        classes = self._classes(ready.x)
        names = _overlay_names(ready.job.name, ready.targets, classes)
        large = [f"{name.removesuffix('.png')}.overlay.jpg" for name in names]
        found = tuple(
            ClassScores(target, classes.name(target), name, photograph, scores)
            for target, name, photograph, scores in zip(ready.targets, names, large, maps.scores, strict=True)
        )
        record = self.out / f"{ready.job.name}.json"
        pixels = self.loaded.display(ready.x).permute(1, 2, 0).cpu().numpy()
        drawings = [self._side_by_side(pixels, one, maps, t) for t, one in enumerate(found)]
        drawings += [self._over_photograph(ready, pixels, map) for map in maps.advcam]
        make_folder(self.out)
        record.unlink(missing_ok=True)
        for name, drawing in zip([*names, *large], drawings, strict=True):
            with replacing(self.out / name) as file:
                drawing.save(file, quality=92)
        tensors = {
            "advcam": maps.advcam,
            "base": maps.base,
            "steps": maps.steps,
            "targets": torch.tensor(ready.targets),
        }
        write_bytes(record.with_suffix(".safetensors"), dump_tensors(tensors, {}))
        files = [*names, *large, record.with_suffix(".safetensors").name]
        content = {
            **ready.job.identity(self.config),
            "head": {
                name: getattr(self._head(ready.x), name) for name in ("kind", "exactness", "layer", "grid", "stride")
            },
            "input_size": list(ready.x.shape[1:]),
            "preprocessing": " ".join(str(self.loaded.preprocessing.transform).split()),
            "targets": [dataclasses.asdict(one) for one in found],
            "files": files,
        }
        write_json(record, content)
        for old in ready.job.stale:
            if old.name not in files:
                old.unlink(missing_ok=True)
        return ImageResult(ready.job.image, "written", found)

    def _over_photograph(self, ready: _Ready, pixels: np.ndarray, map: Tensor) -> Image.Image:
        """AdvCAM over the whole photograph, or over the model's view if its transform is no resized crop."""
        photograph = ready.photograph
        size = photograph.height, photograph.width
        if size not in self.parts:
            self.parts[size] = seen_part(self.loaded.preprocessing.transform, size)
        part = self.parts[size]
        if bool(map.amax() == map.amin()):  # a grid of one cell points nowhere
            map = torch.zeros_like(map)
        return overlay(pixels, map) if part is None else overlay(photograph, map, box=part)

    def _side_by_side(self, pixels: np.ndarray, one: ClassScores, maps: _Maps, t: int) -> Image.Image:
        steps = sum(len(scores.logit) - 1 for scores in one.scores)
        title = _BASE_TITLES.get(self.settings.base, self.settings.base)
        at = min(one.scores, key=lambda scores: abs(scores.scale - 1))
        return panels(
            [[pixels, heat_over(pixels, maps.base[t].numpy()), heat_over(pixels, maps.advcam[t].numpy())]],
            ["image", title, f"AdvCAM, {steps} steps"],
            [
                f"{short_name(one.name)}:  logit {at.logit[0]:.1f} → {at.logit[-1]:.1f},  "
                f"probability {at.probability[0]:.3f} → {at.probability[-1]:.3f}"
            ],
        )


def _overlay_names(stem: str, targets: Sequence[int], classes: Classes) -> list[str]:
    """File names of the classes, with the index where two share a name."""
    parts = [classes.file_part(target) for target in targets]
    return [
        f"{stem}.{part}.png" if parts.count(part) == 1 else f"{stem}.{part}_{target}.png"
        for part, target in zip(parts, targets, strict=True)
    ]
