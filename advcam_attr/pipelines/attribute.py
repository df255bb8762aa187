"""Image files and a model's name in; maps, overlays and scores of AdvCAM, one set of files an image, out."""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from advcam_attr import __version__
from advcam_attr.attr.advcam import AdvCAM
from advcam_attr.climbing import recipes
from advcam_attr.climbing.loop import totals
from advcam_attr.climbing.recipes import Recipe
from advcam_attr.data.images import is_image, read_rgb
from advcam_attr.files import digest, make_folder, replacing, write_bytes, write_json
from advcam_attr.heads import Head
from advcam_attr.networks.sources import LoadedModel
from advcam_attr.pipelines.model import ModelChoice, head_at
from advcam_attr.registry import nearest
from advcam_attr.runs.provenance import Job, outstanding
from advcam_attr.runs.sharding import choose_device
from advcam_attr.types import AdvCAMError, ClimbStep
from advcam_attr.viz.overlay import heat_over, panels

_BASE_TITLES = {"cam": "CAM", "grad_cam": "Grad-CAM", "grad_cam++": "Grad-CAM++", "layer_cam": "LayerCAM"}


@dataclass(frozen=True)
class Settings:
    """How images are attributed.

    Attributes:
        model: which classifier.
        targets: ``"top3"``, indices or names; each image is attributed to all of them.
        base: the base attribution's name.
        recipe: the recipe's name.
        overrides: parts of the recipe by name, and AdvCAM's ``autocast`` and ``channels_last``.
        layer: the module whose output is mapped; None finds it.
        probability: what turns logits into the probabilities that are written down.
        saliency: a folder of a detector's pictures, light for the foreground, named as the images are.
        device: ``"auto"`` takes the GPU if there is one.
        batch_size: how many maps (images times targets) are made at once.
        overwrite: do everything anew, whatever is there.
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
    """Logit and probability of the image at each step of one scale, the clean image first."""

    scale: float
    logit: tuple[float, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True)
class ClassScores:
    """How one class fared while it was climbed.

    Attributes:
        index, name: the class.
        overlay: the picture's file name.
        scores: one entry a scale.
    """

    index: int
    name: str
    overlay: str
    scores: tuple[ScaleScores, ...]


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

    Attributes:
        image: its file.
        status: ``"written"``, ``"kept"`` (it was done before) or ``"failed"``.
        classes: what was attributed, if it was written.
        error: why not, if it failed.
    """

    image: Path
    status: Literal["written", "kept", "failed"]
    classes: tuple[ClassScores, ...] = ()
    error: str = ""


def attribute_images(images: Sequence[Path], out: Path, settings: Settings) -> Iterator[ImageResult]:
    """Attribute image files; write ``NAME.CLASS.png``, ``NAME.safetensors`` and ``NAME.json`` for each into a folder.

    NAME is the file's stem, with its folder before it where two images share the stem. The safetensors file holds
    ``advcam`` and ``base`` (step 0 alone), raw and signed, each ``(T, H, W)`` in the frame of the model's input, their
    classes ``targets``, ``(T,)``, and ``steps``, the sums after each of S steps on the map's own grid, ``(T, S + 1, h,
    w)``, at the scale nearest 1. Images that are done with the same settings are kept as they are.

    Args:
        images: the files; see `advcam_attr.data.images.expand_images`.
        out: the folder; made when the first image is done.
        settings: how.

    Yields:
        One result an image, first those that are kept, then the others as they get done. An image that cannot be used
        does not stop the others.

    Raises:
        AdvCAMError: the settings cannot be used, or the folder holds results of other settings.
    """
    if settings.batch_size < 1:
        raise AdvCAMError(f"the batch size must be at least 1, got {settings.batch_size}")
    if settings.saliency is not None and not settings.saliency.is_dir():
        raise AdvCAMError(f"no such folder of saliency maps: {settings.saliency}")
    if out.exists() and not out.is_dir():
        raise AdvCAMError(f"the results need a folder, but {out} is a file; choose another --out")
    device = choose_device(settings.device)
    # Misspelt options are refused before anything costs time, so a stand-in for the model must do here.
    config = _config(settings, advcam_of(nn.Identity(), dataclasses.replace(settings, layer=None)).recipe)
    jobs, done = outstanding(images, out, config, overwrite=settings.overwrite)
    for image in done:
        yield ImageResult(image, "kept")
    if jobs:
        loaded = settings.model.load()
        loaded.model.to(device)
        advcam = advcam_of(loaded.model, settings)
        yield from _Run(loaded, advcam, settings, config, device, out).results(jobs)


def advcam_of(model: nn.Module, settings: Settings) -> AdvCAM:
    """Return the attribution that the settings describe."""
    execution = {name: settings.overrides.get(name, False) for name in ("autocast", "channels_last")}
    changes = {name: value for name, value in settings.overrides.items() if name not in execution}
    try:
        recipe = recipes.get(settings.recipe, **changes)
        return AdvCAM(model, settings.layer, base=settings.base, recipe=recipe, **execution)
    except (TypeError, ValueError) as error:
        raise AdvCAMError(str(error)) from error


def _config(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    """Everything but the image that results depend on, as JSON gives it back."""
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
    """A job with the model's input ``(3, H, W)``, its classes, and its saliency map ``(H, W)`` if there is one."""

    job: Job
    x: Tensor
    targets: list[int]
    saliency: Tensor | None


@dataclass(frozen=True)
class _Maps:
    """What a climb of one image gave: maps of its T classes, each ``(T, H, W)``, their scores, and ``steps``: the sums
    after each of S steps at the scale nearest the image's own, ``(T, S + 1, h, w)``."""

    advcam: Tensor
    base: Tensor
    scores: list[tuple[ScaleScores, ...]]
    steps: Tensor


@dataclass(frozen=True)
class _Run:
    """A loaded model at work on a list of jobs."""

    loaded: LoadedModel
    advcam: AdvCAM
    settings: Settings
    config: Mapping[str, Any]
    device: torch.device
    out: Path

    def results(self, jobs: Sequence[Job]) -> Iterator[ImageResult]:
        """Read, gather into batches of one shape, climb, write."""
        batch: list[_Ready] = []
        for job in jobs:
            try:
                x, saliency = self._read(job.image)
            except AdvCAMError as error:
                yield ImageResult(job.image, "failed", error=str(error))
                continue
            try:
                classes = self._classes(x)
            except AdvCAMError as error:
                yield self._failed(job, error)
                continue
            targets = self._targets(classes, x)
            rows = sum(len(ready.targets) for ready in batch)
            if batch and (rows + len(targets) > self.settings.batch_size or x.shape != batch[0].x.shape):
                yield from self._finish(batch)
                batch = []
            batch.append(_Ready(job, x, targets, saliency))
        if batch:
            yield from self._finish(batch)

    def _failed(self, job: Job, error: AdvCAMError) -> ImageResult:
        """A failure of one image, unless all images look the same to the model: then none can do better."""
        if self.loaded.preprocessing.size is not None:
            raise error
        return ImageResult(job.image, "failed", error=f"{job.image}: {error}")

    def _read(self, image: Path) -> tuple[Tensor, Tensor | None]:
        picture = read_rgb(image)
        x = self.loaded.preprocess(picture)
        if self.settings.saliency is None:
            return x.to(self.device), None
        found = [p for p in sorted(self.settings.saliency.glob(f"{glob.escape(image.stem)}.*")) if is_image(p)]
        if not found:
            raise AdvCAMError(f"no saliency map for {image} in {self.settings.saliency}")
        saliency = read_rgb(found[0]).resize(picture.size)
        return x.to(self.device), self.loaded.display(self.loaded.preprocess(saliency)).mean(0).to(self.device)

    def _classes(self, x: Tensor) -> Classes:
        """The model's classes, if it can be used with images of this size."""
        return Classes(self._head(x).classes, self.loaded.class_names)

    def _head(self, x: Tensor) -> Head:
        return head_at(self.advcam.view, x, self.loaded.name, class_weights=self.advcam.needs_class_weights)

    def _targets(self, classes: Classes, x: Tensor) -> list[int]:
        targets = [classes.parse(target) for target in self.settings.targets]
        if not any(isinstance(target, TopK) for target in targets):
            return resolve(targets, None)
        with torch.no_grad():
            return resolve(targets, self.advcam.view(x[None]).logits[0])

    def _finish(self, batch: Sequence[_Ready]) -> Iterator[ImageResult]:
        try:
            climbed = self._climb(batch)
        except AdvCAMError as error:
            yield from (self._failed(ready.job, error) for ready in batch)
            return
        for ready, maps in zip(batch, climbed, strict=True):
            yield self._write(ready, maps)

    def _climb(self, batch: Sequence[_Ready]) -> list[_Maps]:
        """Climb all classes of a batch of images at once."""
        x = torch.stack([ready.x for ready in batch])
        saliency = (
            None if batch[0].saliency is None else torch.stack([r.saliency for r in batch if r.saliency is not None])
        )
        classes = [ready.targets for ready in batch]
        rows = torch.tensor([c for one in classes for c in one], device=self.device)
        steps: list[tuple[int, Tensor]] = []
        walk: list[ClimbStep] = []

        def note(step: ClimbStep) -> None:
            logits = step.logits[:, 0]  # of the image; a mirror image comes after it
            likely = logits.softmax(1) if self.settings.probability == "softmax" else logits.sigmoid()
            steps.append((step.index, torch.stack([v.gather(1, rows[:, None])[:, 0] for v in (logits, likely)])))
            walk.append(dataclasses.replace(step, x=step.x[:0]))

        advcam = self.advcam.attribute_classes(x, classes, saliency=saliency, on_step=note)
        base = self.advcam.attribute_classes(x, classes, saliency=saliency, steps=0)
        starts = [i for i, (index, _) in enumerate(steps) if index == 0]
        bounds = list(pairwise([*starts, len(steps)]))
        plan = self.advcam.recipe.plan()
        scales = plan.scales
        first, last = bounds[min(range(len(scales)), key=lambda i: abs(scales[i] - 1))]
        sums = torch.stack([summed for _, summed in totals(walk[first:last], plan.aggregate)], 1).cpu()
        by_scale = [torch.stack([v for _, v in steps[a:b]]).cpu() for a, b in bounds]
        scores = [
            tuple(
                ScaleScores(scale, *(tuple(round(float(v), 6) for v in values) for values in track[:, :, row].T))
                for scale, track in zip(scales, by_scale, strict=True)
            )
            for row in range(len(rows))
        ]
        ends = list(accumulate(len(one) for one in classes))
        return [
            _Maps(a[:, 0].cpu(), b[:, 0].cpu(), scores[end - len(one) : end], sums[end - len(one) : end])
            for a, b, one, end in zip(advcam, base, classes, ends, strict=True)
        ]

    def _write(self, ready: _Ready, maps: _Maps) -> ImageResult:
        """Write the files of one image, the JSON last."""
        classes = self._classes(ready.x)
        names = _overlay_names(ready.job.name, ready.targets, classes)
        found = tuple(
            ClassScores(target, classes.name(target), overlay, scores)
            for target, overlay, scores in zip(ready.targets, names, maps.scores, strict=True)
        )
        record = self.out / f"{ready.job.name}.json"
        picture = self.loaded.display(ready.x).permute(1, 2, 0).cpu().numpy()
        drawings = [self._overlay(picture, one, maps, t) for t, one in enumerate(found)]
        make_folder(self.out)
        record.unlink(missing_ok=True)
        for name, drawing in zip(names, drawings, strict=True):
            with replacing(self.out / name) as file:
                drawing.save(file)
        tensors = {
            "advcam": maps.advcam,
            "base": maps.base,
            "steps": maps.steps,
            "targets": torch.tensor(ready.targets),
        }
        # save_file would make it readable for its owner alone
        write_bytes(record.with_suffix(".safetensors"), save({k: tensor.contiguous() for k, tensor in tensors.items()}))
        files = [*names, record.with_suffix(".safetensors").name]
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

    def _overlay(self, picture: np.ndarray, one: ClassScores, maps: _Maps, t: int) -> Image.Image:
        steps = sum(len(scores.logit) - 1 for scores in one.scores)
        title = _BASE_TITLES.get(self.settings.base, self.settings.base)
        at = min(one.scores, key=lambda scores: abs(scores.scale - 1))
        return panels(
            [[picture, heat_over(picture, maps.base[t].numpy()), heat_over(picture, maps.advcam[t].numpy())]],
            ["image", title, f"AdvCAM, {steps} steps"],
            [
                f"{one.name}:  logit {at.logit[0]:.1f} → {at.logit[-1]:.1f},  "
                f"probability {at.probability[0]:.3f} → {at.probability[-1]:.3f}"
            ],
        )


def _overlay_names(stem: str, targets: Sequence[int], classes: Classes) -> list[str]:
    """One file name a class; the index joins in where two classes go by one name."""
    parts = [classes.file_part(target) for target in targets]
    return [
        f"{stem}.{part}.png" if parts.count(part) == 1 else f"{stem}.{part}_{target}.png"
        for part, target in zip(parts, targets, strict=True)
    ]


@dataclass(frozen=True)
class TopK:
    """The classes of the k highest logits."""

    k: int


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        count: K.
        names: by index, or None where nobody knows them.
    """

    count: int
    names: tuple[str, ...] | None

    def __post_init__(self) -> None:
        """Raises: AdvCAMError: not as many names as classes."""
        if self.names is not None and len(self.names) != self.count:
            raise AdvCAMError(f"there are {len(self.names)} class names for the model's {self.count} classes")

    def name(self, index: int) -> str:
        """A class's name, or its number in words."""
        return self.names[index] if self.names else f"class {index}"

    def file_part(self, index: int) -> str:
        """A class's name as a part of file names: the first of its synonyms, letters and digits only."""
        first = self.name(index).split(",")[0]
        return re.sub(r"\W+", "_", first).strip("_").lower()[:40] or str(index)

    def parse(self, target: str) -> int | TopK:
        """Read a target: ``"top3"``, an index (negative ones count from the end), or a name.

        A name is compared without regard to case, with whole names first, then with the synonyms between commas.

        Raises:
            AdvCAMError: no such class (the nearest are told), or several of that name.
        """
        if top := re.fullmatch(r"top-?(\d+)", target.lower()):
            if not 1 <= int(top[1]) <= self.count:
                raise AdvCAMError(
                    f"target {target!r}: the model has {self.count} classes, so there are top1 to top{self.count}"
                )
            return TopK(int(top[1]))
        if re.fullmatch(r"-?\d+", target):
            if not -self.count <= int(target) < self.count:
                raise AdvCAMError(f"target {target} is not a class: the model has classes 0 to {self.count - 1}")
            return int(target) % self.count
        if self.names is None:
            raise AdvCAMError(f"target {target!r}: the model's classes have no names; give --labels FILE or an index")
        return self._find(target.strip().lower(), self.names)

    def _find(self, wanted: str, names: Sequence[str]) -> int:
        whole = [name.lower() for name in names]
        synonyms = [[part.strip() for part in name.split(",")] for name in whole]
        found = [i for i, name in enumerate(whole) if name == wanted]
        found = found or [i for i, parts in enumerate(synonyms) if wanted in parts]
        if not found:
            raise AdvCAMError(f"unknown class {wanted!r}{nearest(wanted, {p for parts in synonyms for p in parts})}")
        if len(found) > 1:
            raise AdvCAMError(
                f"class name {wanted!r} is ambiguous: give one of the indices {', '.join(map(str, found))}"
            )
        return found[0]


def resolve(targets: Sequence[int | TopK], logits: Tensor | None) -> list[int]:
    """The classes of one image, each once, in the order of the targets.

    Args:
        targets: what `Classes.parse` returned.
        logits: ``(K,)``; needed if one of the targets is a `TopK`.
    """
    found: list[int] = []
    for target in targets:
        if isinstance(target, TopK):
            assert logits is not None
            found += torch.topk(logits, target.k).indices.tolist()
        else:
            found.append(target)
    return list(dict.fromkeys(found))
